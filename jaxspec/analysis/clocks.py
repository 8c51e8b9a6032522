"""Steps on independent clocks: programs that were timed alone, replayed with a clock for every mesh and the host.

    start = max(end of the last program of its mesh, arrival of all that it reads, the host's call)

What is timed alone on one machine tells how long steps take on two devices that share nothing. Every step has its own
times, and its own fallback. The order of calls is that of ``jaxspec.mirror``:

    target:  prefix ──► suffix ─────────────┐            a message takes ``Clocks.message`` seconds,
                │ message                   │ verdict     one at a time in each direction;
    draft:   ahead ──► rollout ─────────────┴─► select    a third message carries the window back
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from jaxspec.analysis.cost import FALLBACK, StepTiming
from jaxspec.generation import IN_FLIGHT, Span

#: Programs that run on the draft's mesh; the others run on the target's.
ON_DRAFT = ("ahead", "rollout", "select", FALLBACK)


@dataclass(frozen=True)
class Clocks:
    """Devices on which timed steps are replayed.

    Attributes:
        target: speed of the target's devices, over that of the timed ones.
        draft: of the draft's.
        message: seconds of a message from one mesh to the other.
        call: seconds in which the host enqueues a program or a message.

    Raises:
        ValueError: a speed that is not positive, or negative seconds.
    """

    target: float = 1.0
    draft: float = 1.0
    message: float = 0.0
    call: float = 0.0

    def __post_init__(self) -> None:
        if min(self.target, self.draft) <= 0 or min(self.message, self.call) < 0:
            raise ValueError(f"expected speeds > 0 and seconds >= 0, got {self}")


class Replayed(NamedTuple):
    """Timed steps on independent clocks.

    Attributes:
        spans: of every program, for ``plots.timeline``.
        seconds: of all steps.
        tokens_per_second: of all sequences.
    """

    spans: list[Span]
    seconds: float
    tokens_per_second: float

    @property
    def step(self) -> float:
        """Mean seconds of a step."""
        return self.seconds / (self.spans[-1].step + 1)


def replayed(timing: StepTiming, clocks: Clocks | None = None) -> Replayed:
    """Replay the steps of a measurement.

    Args:
        timing: of ``cost.measure``, with its steps.
        clocks: of the devices. Default: as fast as those that were timed, with the message that was timed.

    Raises:
        ValueError: no steps.
    """
    if not timing.steps:
        raise ValueError("expected the timing of at least one step, got none")
    lanes = _Lanes(Clocks(message=timing.times.rendezvous) if clocks is None else clocks)
    window, verdicts = 0.0, [0.0] * IN_FLIGHT
    for number, seconds in enumerate(timing.steps):
        lanes.begin(number, verdicts[number])
        window, verdict = lanes.step(seconds, window)
        verdicts.append(verdict)
    last = max(span.end for span in lanes.spans)
    return Replayed(lanes.spans, last, timing.tokens / last)


@dataclass
class _Lanes:
    """When each mesh, each direction between them, and the host are free."""

    clocks: Clocks
    spans: list[Span] = field(default_factory=list)
    _free: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    _number: int = 0

    def begin(self, number: int, read: float) -> None:
        """Begin a step; the host calls once it has ``read`` the verdict of an earlier one."""
        self._number = number
        self._free["host"] = max(self._free["host"], read)

    def step(self, seconds: Mapping[str, float], window: float) -> tuple[float, float]:
        """Run a step whose window arrives at the target; return when the next one does, and the verdict's time."""
        if "step" in seconds:
            end = self._run("step", seconds, window)
            return end, end
        first = "prefix" if "prefix" in seconds else "whole"
        verdict = message = self._run(first, seconds, window)
        if "ahead" in seconds:
            self._run("ahead", seconds)
        if "prefix" in seconds:
            message = self._send("to draft", message)
            verdict = self._run("suffix", seconds)
            self._run("rollout", seconds, message)
        arrived = self._send("to draft", verdict)
        chosen = self._run(FALLBACK if FALLBACK in seconds else "select", seconds, arrived)
        return self._send("to target", chosen), verdict

    def _run(self, name: str, seconds: Mapping[str, float], arrival: float = 0.0) -> float:
        lane = "draft" if name in ON_DRAFT else "target"
        speed = self.clocks.draft if lane == "draft" else self.clocks.target
        start = max(self._free[lane], arrival, self._called())
        self._free[lane] = end = start + seconds[name] / speed
        self.spans.append(Span(lane, "select" if name == FALLBACK else name, self._number, start, end))
        return end

    def _send(self, way: str, ready: float) -> float:
        start = max(self._free[way], ready, self._called())
        self._free[way] = start + self.clocks.message
        return self._free[way]

    def _called(self) -> float:
        self._free["host"] += self.clocks.call
        return self._free["host"]
