"""When each program of a step ran: lanes of the target and the draft, as spans in seconds.

Everything a step enqueues is watched by one waiting thread a lane; the decoding loop itself waits for nothing more than
it does untraced.
"""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np


class Span(NamedTuple):
    """One program of one step: seconds since the timeline began."""

    lane: str
    name: str
    step: int
    start: float
    end: float


class Enqueued(NamedTuple):
    """A program that was enqueued at a time and whose outputs become ready in the future."""

    lane: str
    name: str
    time: float
    ready: Future[float]


#: What a program waits for beside its own lane: the message for the rollout, the verdict for the selection.
WAITS_FOR = {"prefix": "select", "rollout": "prefix", "select": "suffix"}


class Timeline:
    """Watches a decoding loop; pass it as ``watch=`` to ``jaxspec.generate``, then read ``spans()``."""

    def __init__(self) -> None:
        self._begin = time.perf_counter()
        self._threads: dict[str, ThreadPoolExecutor] = {}
        self._enqueued: list[Enqueued] = []

    def __call__(self, lane: str, name: str, outputs: Any) -> None:
        """Notes a program and waits for its outputs in the lane's own thread."""
        thread = self._threads.setdefault(lane, ThreadPoolExecutor(1, thread_name_prefix=lane))
        self._enqueued.append(Enqueued(lane, name, self._now(), thread.submit(self._wait, outputs)))

    def _wait(self, outputs: Any) -> float:
        jax.block_until_ready(outputs)
        return self._now()

    def _now(self) -> float:
        return time.perf_counter() - self._begin

    def spans(self) -> list[Span]:
        """All spans in the order they were enqueued.

        A program starts when it is enqueued, its lane is free, and what it waits for on the other lane is there.
        """
        spans: list[Span] = []
        free: dict[str, float] = {}
        ended: dict[str, float] = {}
        step = -1
        for item in self._enqueued:
            step += item.name in ("prefix", "step")
            end = item.ready.result()
            start = max(item.time, free.get(item.lane, 0.0), ended.get(WAITS_FOR.get(item.name, ""), 0.0))
            spans.append(Span(item.lane, item.name, step, min(start, end), end))
            free[item.lane] = ended[item.name] = end
        return spans

    def close(self) -> None:
        """Ends the waiting threads."""
        for thread in self._threads.values():
            thread.shutdown()

    def __enter__(self) -> "Timeline":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def median_milliseconds(spans: list[Span]) -> dict[str, float]:
    """Median duration of each program, in milliseconds."""
    names = dict.fromkeys(span.name for span in spans)
    return {name: 1e3 * float(np.median([s.end - s.start for s in spans if s.name == name])) for name in names}
