"""When each program of a step ran: lanes of the target and the draft, as spans in seconds.

A timeline waits at the end of every step only; within a step, programs run as without it. Steps are not enqueued
ahead, so a traced step takes a little longer.
"""

import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxspec.verify.info import StepInfo


class Span(NamedTuple):
    """One program of one step; times in seconds since the timeline began."""

    lane: str
    name: str
    step: int
    start: float
    end: float


class Outcome(NamedTuple):
    """Result of a step for every sequence: accepted tokens A, and whether the next window was reused.

    ``reused`` is None for methods that never reuse a window.
    """

    num_accepted: list[int]
    reused: list[bool] | None


class Enqueued(NamedTuple):
    """A program, when it was enqueued, when its outputs were (or will be) ready, and outputs with the step's result."""

    lane: str
    name: str
    time: float
    ready: Future[float] | float
    outputs: Any = None


#: Programs that compute the verdict, and programs that end a step.
VERDICT, LAST = ("suffix", "whole"), ("select", "step")


class Timeline:
    """A ``Watch`` that times programs; pass it as ``watch=`` to ``jaxspec.generate``, then call ``spans()``."""

    def __init__(self) -> None:
        self._begin = time.perf_counter()
        self._threads: dict[str, ThreadPoolExecutor] = {}
        self._enqueued: list[Enqueued] = []

    def __call__(self, lane: str, name: str, outputs: Any) -> None:
        """Record a program. Wait for the last one of a step; a thread of each lane waits for the others."""
        now, kept = self._now(), outputs if name in (*VERDICT, *LAST) else None
        ready: Future[float] | float
        if name in LAST:
            ready = self._wait(outputs)
        else:
            thread = self._threads.setdefault(lane, ThreadPoolExecutor(1, thread_name_prefix=lane))
            ready = thread.submit(self._wait, outputs)
        self._enqueued.append(Enqueued(lane, name, now, ready, kept))

    def _wait(self, outputs: Any) -> float:
        jax.block_until_ready(outputs)
        return self._now()

    def _now(self) -> float:
        return time.perf_counter() - self._begin

    def spans(self) -> list[Span]:
        """Return all spans in order of enqueuing; a span starts when it is enqueued and its lane is free.

        The rollout also waits for the message (the end of the prefix), the selection for the verdict. A thread may
        notice the end of a program late, so no program ends after another that waits for it.
        """
        spans: list[Span] = []
        free: dict[str, float] = {}
        step, message, verdict = 0, 0.0, 0.0
        for index, (lane, name, enqueued, ready, _) in enumerate(self._enqueued):
            end = ready if isinstance(ready, float) else min(ready.result(), self._latest(index))
            waits = {"rollout": message, "select": verdict}.get(name, 0.0)
            start = max(enqueued, free.get(lane, 0.0), waits)
            spans.append(Span(lane, name, step, min(start, end), end))
            free[lane] = end
            message, verdict = (end if name == "prefix" else message), (end if name in VERDICT else verdict)
            step += name in LAST
        return spans

    def _latest(self, index: int) -> float:
        """Bound a program's end from above: by the end of its step, and of the rollout that waits for a prefix."""
        for item in self._enqueued[index:]:
            if isinstance(item.ready, float):
                return item.ready
            if self._enqueued[index].name == "prefix" and item.name == "rollout":
                return min(item.ready.result(), self._latest(index + 1))
        return float("inf")

    def outcomes(self) -> list[Outcome]:
        """Return the outcome of every step."""
        outcomes: list[Outcome] = []
        packed: Any = None
        for item in self._enqueued:
            if item.name in VERDICT:
                packed = item.outputs
            elif item.name == "select":
                outcomes.append(Outcome(StepInfo(packed).num_accepted.tolist(), np.asarray(item.outputs).tolist()))
            elif item.name == "step":
                outcomes.append(Outcome(item.outputs.num_accepted.tolist(), None))
        return outcomes

    def save(self, path: str | Path) -> None:
        """Write a trace for Perfetto (ui.perfetto.dev) or chrome://tracing: lanes, programs, A and reuse."""
        Path(path).write_text(json.dumps(perfetto(self.spans(), self.outcomes())))

    def close(self) -> None:
        """Stop the waiting threads."""
        for thread in self._threads.values():
            thread.shutdown()

    def __enter__(self) -> "Timeline":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def perfetto(spans: list[Span], outcomes: Sequence[Outcome] = ()) -> dict[str, Any]:
    """Return Chrome trace events: one thread for each lane, message and verdict as instants, outcomes as arguments."""
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
    lane = {"pid": 1, "tid": lanes[span.lane]}
    times = {"ts": 1e6 * span.start, "dur": 1e6 * (span.end - span.start)}
    yield lane | {"ph": "X", "name": span.name} | times | {"args": about}
    message = {"prefix": "message"} | dict.fromkeys(VERDICT, "verdict")
    if span.name in message:
        at = {"ts": 1e6 * span.end, "args": {"step": span.step}}
        yield lane | {"ph": "i", "s": "p", "name": message[span.name]} | at


def median_milliseconds(spans: list[Span]) -> dict[str, float]:
    """Return the median duration of each program, in milliseconds."""
    names = dict.fromkeys(span.name for span in spans)
    return {name: 1e3 * float(np.median([s.end - s.start for s in spans if s.name == name])) for name in names}


@dataclass
class Passes:
    """A ``Watch`` that counts the draft's passes J of every rolled-out branch; a batch waits for the largest.

    Attributes:
        counts: J of the branches, for every rollout.
        window: γ.
    """

    counts: list[np.ndarray] = field(default_factory=list)
    window: int = 0
    _ahead: int = 0

    def __call__(self, lane: str, name: str, outputs: Any) -> None:
        """Record rollouts; wait for them."""
        if name in ("ahead", "rollout"):
            passes = np.asarray(outputs.branches.passes)
            self.window = outputs.branches.tokens.shape[2]
            self.counts.append(passes[:, self._ahead if name == "rollout" else 0 :].reshape(-1))
            self._ahead = passes.shape[1] if name == "ahead" else 0

    @property
    def mean(self) -> float:
        """Mean J of a branch."""
        return float(np.mean(np.concatenate(self.counts)))

    @property
    def largest(self) -> float:
        """Mean over rollouts of the largest J in the batch, the number of passes of a rollout."""
        return float(np.mean([np.max(each) for each in self.counts]))

    @property
    def most(self) -> int:
        """The largest J."""
        return int(np.max(np.concatenate(self.counts)))

    @property
    def growth(self) -> float:
        """η̄ = γ / J̄, final tokens for each pass."""
        return self.window / self.mean
