"""When each program of a step ran: lanes of the target and the draft, as spans in seconds.

A timeline stops the loop at both rendezvous, the message and the end of the step, and nowhere else: suffix and rollout
run side by side as they do untraced. The loop loses its enqueuing ahead, so a traced step is a little longer.
"""

import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxspec.decoding import StepInfo


class Span(NamedTuple):
    """One program of one step: seconds since the timeline began."""

    lane: str
    name: str
    step: int
    start: float
    end: float


class Outcome(NamedTuple):
    """What a step did, for every sequence: A, and whether the next window was ready; None where it cannot be."""

    num_accepted: list[int]
    reused: list[bool] | None


class Enqueued(NamedTuple):
    """A program, when it was enqueued, when its outputs were (or will be) ready, and what tells the step's outcome."""

    lane: str
    name: str
    time: float
    ready: Future[float] | float
    outputs: Any = None


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
        now, kept = self._now(), outputs if name in (*VERDICT, *LAST) else None
        if name in RENDEZVOUS:
            self._enqueued.append(Enqueued(lane, name, now, self._wait(outputs), kept))
        else:
            thread = self._threads.setdefault(lane, ThreadPoolExecutor(1, thread_name_prefix=lane))
            self._enqueued.append(Enqueued(lane, name, now, thread.submit(self._wait, outputs), kept))

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
        for index, (lane, name, enqueued, ready, _) in enumerate(self._enqueued):
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

    def outcomes(self) -> list[Outcome]:
        """What every step did."""
        return [Outcome(np.asarray(info.num_accepted).tolist(), flags) for info, flags in self._outcomes()]

    def _outcomes(self) -> Iterator[tuple[StepInfo, list[bool] | None]]:
        packed: Any = None
        for item in self._enqueued:
            if item.name in VERDICT:
                packed = item.outputs
            elif item.name == "select":
                yield StepInfo(packed), np.asarray(item.outputs).tolist()
            elif item.name == "step":
                yield item.outputs, None

    def save(self, path: str | Path) -> None:
        """Writes a trace that Perfetto (ui.perfetto.dev) and chrome://tracing open: lanes, programs, A and reuse."""
        Path(path).write_text(json.dumps(perfetto(self.spans(), self.outcomes())))

    def close(self) -> None:
        """Ends the waiting threads."""
        for thread in self._threads.values():
            thread.shutdown()

    def __enter__(self) -> "Timeline":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def perfetto(spans: list[Span], outcomes: Sequence[Outcome] = ()) -> dict[str, Any]:
    """The spans as Chrome's trace events: one thread a lane, the two rendezvous as instants, outcomes as arguments."""
    lanes = {name: number for number, name in enumerate(dict.fromkeys(span.lane for span in spans), start=1)}
    names = [
        {"ph": "M", "pid": 1, "tid": number, "name": "thread_name", "args": {"name": name}}
        for name, number in lanes.items()
    ]
    return {"traceEvents": [*names, *(event for span in spans for event in _events(span, lanes, outcomes))]}


def _events(span: Span, lanes: dict[str, int], outcomes: Sequence[Outcome]) -> Iterator[dict[str, Any]]:
    about: dict[str, Any] = {"step": span.step}
    if span.name in LAST and span.step < len(outcomes):
        about |= outcomes[span.step]._asdict()
    place = {"pid": 1, "tid": lanes[span.lane]}
    yield place | {
        "ph": "X",
        "name": span.name,
        "ts": 1e6 * span.start,
        "dur": 1e6 * (span.end - span.start),
        "args": about,
    }
    message = {"prefix": "message"} | dict.fromkeys(VERDICT, "verdict")
    if span.name in message:
        yield place | {
            "ph": "i",
            "s": "p",
            "name": message[span.name],
            "ts": 1e6 * span.end,
            "args": {"step": span.step},
        }


def median_milliseconds(spans: list[Span]) -> dict[str, float]:
    """Median duration of each program, in milliseconds."""
    names = dict.fromkeys(span.name for span in spans)
    return {name: 1e3 * float(np.median([s.end - s.start for s in spans if s.name == name])) for name in names}
