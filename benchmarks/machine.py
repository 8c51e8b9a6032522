"""What the machine is: its accelerator, and how fast it reads memory, the floor of decoding."""

import time
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np


def card() -> dict[str, str]:
    """The accelerator's name, as a line of figures holds it; nothing on a CPU."""
    device = jax.local_devices()[0]
    return {} if device.platform == "cpu" else {"card": device.device_kind}


def read_bandwidth(size: int = 2**30, tries: int = 5, threads: int = 2) -> float:
    """Bytes a second that some threads read: the best of several sums over a GiB."""
    parts = np.array_split(np.ones(size // 8, np.float64), threads)
    best = float("inf")
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(tries):
            start = time.perf_counter()
            list(pool.map(np.sum, parts))
            best = min(best, time.perf_counter() - start)
    return size / best
