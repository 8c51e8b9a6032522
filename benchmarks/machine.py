"""Measurements that several benchmarks share: seconds of a call, memory bandwidth, the accelerator's name."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from tqdm import tqdm


def seconds_of(run: Callable[[], Any], times: int = 1) -> float:
    """Seconds of a blocking call; the best of several."""
    best = float("inf")
    for _ in range(times):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best


def in_turns(runs: dict[str, Callable[[], Any]], rounds: int, label: str | None = None) -> dict[str, float]:
    """Median seconds of blocking calls that take turns, after a first run of each; with a ``label`` a bar is shown."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in tqdm(range(rounds + 1), label, leave=False, disable=label is None):
        for name, run in runs.items():
            taken = seconds_of(run)
            seconds[name] += [taken] if number else []
    return {name: float(np.median(times)) for name, times in seconds.items()}


def card() -> dict[str, str]:
    """The accelerator's name as an entry of a line; empty on a CPU."""
    device = jax.local_devices()[0]
    return {} if device.platform == "cpu" else {"card": device.device_kind}


def read_bandwidth(size: int = 2**30, tries: int = 5, threads: int = 2) -> float:
    """Bytes per second that ``threads`` threads read: the best of several sums over a GiB."""
    parts = np.array_split(np.ones(size // 8, np.float64), threads)
    with ThreadPoolExecutor(threads) as pool:
        return size / seconds_of(lambda: list(pool.map(np.sum, parts)), tries)
