"""When each program of a step ran: lanes of the target and the draft, as spans in seconds.

A timeline stops the loop at both rendezvous, the message and the end of the step, and nowhere else: suffix and rollout
run side by side as they do untraced. The loop loses its enqueuing ahead, so a traced step is a little longer.
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
    """A program, when it was enqueued, and when its outputs were (or will be) ready."""

    lane: str
    name: str
    time: float
    ready: Future[float] | float


#: Programs at whose end one side waits for the other; those that give the verdict; those that end a step.
RENDEZVOUS, VERDICT, LAST = ("prefix", "select", "step"), ("suffix", "whole"), ("select", "step")


class Timeline:
    """Watches a decoding loop; pass it as ``watch=`` to ``jaxspec.generate``, then read ``spans()``."""

    def __init__(self) -> None:
        self._begin = time.perf_counter()
        self._threads: dict[str, ThreadPoolExecutor] = {}
        self._enqueued: list[Enqueued] = []

    def __call__(self, lane: str, name: str, outputs: Any) -> None:
        """Notes a program; waits for it here at a rendezvous, else in the lane's own thread."""
        now = self._now()
        if name in RENDEZVOUS:
            self._enqueued.append(Enqueued(lane, name, now, self._wait(outputs)))
        else:
            thread = self._threads.setdefault(lane, ThreadPoolExecutor(1, thread_name_prefix=lane))
            self._enqueued.append(Enqueued(lane, name, now, thread.submit(self._wait, outputs)))

    def _wait(self, outputs: Any) -> float:
        jax.block_until_ready(outputs)
        return self._now()

    def _now(self) -> float:
        return time.perf_counter() - self._begin

    def spans(self) -> list[Span]:
        """All spans in the order they were enqueued; one starts when it is enqueued and its lane is free.

        The selection also waits for the verdict, that is, for the suffix. A waiting thread may wake late: what ends a
        step ends everything in it.
        """
        spans: list[Span] = []
        free: dict[str, float] = {}
        step, verdict = 0, 0.0
        for index, (lane, name, enqueued, ready) in enumerate(self._enqueued):
            end = ready if isinstance(ready, float) else min(ready.result(), self._end_of_step(index))
            start = max(enqueued, free.get(lane, 0.0), verdict if name == "select" else 0.0)
            spans.append(Span(lane, name, step, min(start, end), end))
            free[lane], verdict = end, end if name in VERDICT else verdict
            step += name in LAST
        return spans

    def _end_of_step(self, index: int) -> float:
        """When the next rendezvous after a program was reached."""
        later = (item.ready for item in self._enqueued[index:] if isinstance(item.ready, float))
        return next(later, float("inf"))

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
