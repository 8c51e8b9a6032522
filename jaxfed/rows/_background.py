"""A thread beside the rounds."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import jax
import numpy as np

T = TypeVar("T")


class BackgroundThread:
    """One thread that does one job after the other, with the precision of the thread that made it.

    `jax.enable_x64` as a context holds for one thread: without it here, another would round float64 silently.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._wide = jax.dtypes.canonicalize_dtype(np.float64) == np.float64

    def submit(self, job: Callable[..., T], *args: Any) -> "Future[T]":
        """Add a job."""

        def run() -> T:
            with jax.enable_x64(self._wide):
                return job(*args)

        return self._pool.submit(run)

    def close(self) -> None:
        """Wait for all jobs."""
        self._pool.shutdown()
