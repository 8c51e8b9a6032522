"""How fast this machine reads memory: the floor of decoding."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np


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
