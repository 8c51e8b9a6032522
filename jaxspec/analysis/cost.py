"""The cost model of a step: the time of each program alone, what overlaps, and what a fallback adds.

    T = max(T_target, T_draft side) + T_rv + T_select + FF_B·T_fallback
    T_draft side = max(T_prefix + T_rv, T_ahead) + T_rollout      with an exit's message
                 = T_ahead                                        without one
    FF_B = 1 − (1 − FF)^B

A step adds 1 + E[A] tokens to a sequence. FF is the probability that no branch of a sequence matches the verdict. A
batch drafts again if one of its sequences must, because enqueued programs cannot be cancelled.

Source: Mirror-SD (arXiv 2510.13161), §3; the fallback term is ours.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from jaxspec.core.arguments import whole
from jaxspec.devices.channel import channel_between
from jaxspec.devices.processes import is_local, put
from jaxspec.devices.sharding import DATA_AXIS, Placement, axis_size, batch_sharding
from jaxspec.generation import Stats, generate
from jaxspec.generation.requests import Prompt
from jaxspec.generation.trace import VERDICT
from jaxspec.methods.checks import check_processes
from jaxspec.methods.protocol import DecodingMethod, Watch
from jaxspec.verify.info import StepInfo


@dataclass(frozen=True)
class ProgramTimes:
    """Seconds of every program of a step, each alone on its mesh, with the time to enqueue it.

    Attributes:
        prefix: layers 1..ℓₑ and the exit's message.
        suffix: the other layers and the verdict; for a policy without the exit's message, the whole pass.
        ahead: rollouts from the draft's own candidates.
        rollout: rollouts from the exit's message.
        select: select the branch that matches the verdict.
        fallback: draft again, in addition to that.
        rendezvous: a message from one mesh to the other.
    """

    prefix: float = 0.0
    suffix: float = 0.0
    ahead: float = 0.0
    rollout: float = 0.0
    select: float = 0.0
    fallback: float = 0.0
    rendezvous: float = 0.0

    @property
    def target(self) -> float:
        """T_target, a lower bound of every step."""
        return self.prefix + self.suffix

    @property
    def draft_side(self) -> float:
        """Time from the start of the step to the end of all rollouts."""
        if not self.rollout:
            return self.ahead
        return max(self.prefix + self.rendezvous, self.ahead) + self.rollout

    @property
    def hidden(self) -> float:
        """Time that overlaps according to the cost model: programs in sequence take this much longer."""
        return max(self.target + self.ahead + self.rollout - max(self.target, self.draft_side), 0.0)


def step_time(times: ProgramTimes, fallback_rate: float, batch: int = 1, overlap: float = 1.0) -> float:
    """Return T, in the unit of ``times``.

    Args:
        times: of the programs of a step.
        fallback_rate: FF of one sequence.
        batch: B.
        overlap: share of ``times.hidden`` that really overlaps; the cost model assumes 1.

    Raises:
        ValueError: a rate outside [0, 1], or a batch below 1.
    """
    if not 0 <= fallback_rate <= 1 or batch < 1:
        raise ValueError(f"expected 0 <= fallback_rate <= 1 and batch >= 1, got {fallback_rate} and {batch}")
    batch_rate = 1 - (1 - fallback_rate) ** batch
    visible = max(times.target, times.draft_side) + (1 - overlap) * times.hidden
    return visible + times.rendezvous + times.select + batch_rate * times.fallback


def accepted_length(acceptance_rate: float, window: int) -> float:
    """Return E[A] = Σ_{r=1..γ} αʳ, if every token is accepted with probability α, independently."""
    return float(np.sum(acceptance_rate ** np.arange(1, window + 1)))


#: Name of a selection after which a sequence had to draft again.
FALLBACK = "fallback"


@dataclass
class SerialWatch:
    """A ``Watch`` that runs one program at a time and records the seconds of each.

    The selection of a step in which a sequence had to draft again is recorded as "fallback".

    Attributes:
        steps: seconds by program, for every step.
        emitted: tokens that each step added to all sequences.
    """

    steps: list[dict[str, float]] = field(default_factory=list)
    emitted: list[int] = field(default_factory=list)
    _last: float = 0.0

    def watched(self, method: DecodingMethod) -> DecodingMethod:
        """Return the method, whose steps begin here; what the host does between two steps is not timed."""

        def step(state: Any, watch: Watch = self) -> Any:
            self.steps.append({})
            self._last = time.perf_counter()
            return method.step(state, watch)

        return method._replace(step=step)

    def __call__(self, lane: str, name: str, outputs: Any) -> None:
        """Wait for the outputs of a program and record the time since the last one."""
        jax.block_until_ready(outputs)
        now = time.perf_counter()
        if name in (*VERDICT, "step"):
            info = outputs if isinstance(outputs, StepInfo) else StepInfo(outputs)
            self.emitted.append(int(info.num_emitted.sum()))
        name = FALLBACK if name == "select" and not np.all(outputs) else name
        self.steps[-1][name] = now - self._last
        self._last = time.perf_counter()


def rendezvous(placement: Placement, count: int = 64, repeats: int = 50) -> float:
    """Return the seconds to send ``count`` 32-bit numbers from one mesh to the other: half of a round trip, median.

    If the meshes belong to two processes, both must call it.
    """
    check_processes(*placement)
    channel = channel_between(*placement)
    rows = math.lcm(*(axis_size(mesh, DATA_AXIS) for mesh in placement))
    message = put(np.zeros((rows, -(-count // rows)), np.int32), batch_sharding(placement.target), placement.target)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        there, _ = jax.block_until_ready(channel.to_draft(message))
        message, _ = jax.block_until_ready(channel.to_target(there))
        times.append(time.perf_counter() - start)
    return float(np.median(times)) / 2


@dataclass(frozen=True)
class StepTiming:
    """Result of ``measure``.

    Attributes:
        times: of the programs, each alone.
        step: seconds of a step in normal operation.
        stats: of the last run.
        batch: B.
        steps: seconds of each program alone, for every step; a selection's without waiting for the verdict's message.
        tokens: that these steps added, to all sequences.
    """

    times: ProgramTimes
    step: float
    stats: Stats
    batch: int = 1
    steps: Sequence[Mapping[str, float]] = ()
    tokens: int = 0

    @property
    def fallback_rate(self) -> float:
        """FF of one sequence."""
        return 1 - self.stats.reuse_rate

    @property
    def predicted(self) -> float:
        """Seconds of a step by the cost model, at the fallback rate of this run."""
        return step_time(self.times, self.fallback_rate, self.batch)

    @property
    def overlap(self) -> float | None:
        """Share of ``times.hidden`` that really overlaps: 1 as predicted, 0 in sequence; None if nothing can."""
        return 1 - (self.step - self.predicted) / self.times.hidden if self.times.hidden > 0 else None


def pooled(timings: Sequence[StepTiming]) -> StepTiming:
    """Return the medians over several measurements with the same batch; counts are added, steps put together.

    Args:
        timings: of the same method. A program that did not run in one of them does not count there.
    """
    by_name = {name: [getattr(each.times, name) for each in timings] for name in vars(timings[0].times)}
    ran = {name: [seconds for seconds in values if seconds] or [0.0] for name, values in by_name.items()}
    times = ProgramTimes(**{name: float(np.median(values)) for name, values in ran.items()})
    stats = Stats(**{name: sum(getattr(each.stats, name) for each in timings) for name in vars(timings[0].stats)})
    step, steps = float(np.median([each.step for each in timings])), [step for each in timings for step in each.steps]
    return StepTiming(times, step, stats, timings[0].batch, steps, sum(each.tokens for each in timings))


def check_local(placement: Placement) -> None:
    """Check that programs of both meshes can be timed in this process.

    Raises:
        ValueError: a mesh belongs to another process.
    """
    if not all(map(is_local, placement)):
        raise ValueError("expected both meshes in this process, which times every program, got one of another process")


def measure(
    method: DecodingMethod,
    placement: Placement,
    prompts: Sequence[Prompt],
    new_tokens: int = 64,
    repeats: int = 3,
    numbers: int = 64,
) -> StepTiming:
    """Decode with one program at a time and normally, in turns; return medians, and the times of every step.

    Args:
        method: from ``jaxspec.mirror``.
        placement: its meshes.
        prompts: one batch.
        new_tokens: per run.
        repeats: of both, after one run that compiles.
        numbers: of 32 bits in the largest message between the meshes (``crossing.step_bytes``).

    Raises:
        ValueError: a mesh belongs to another process, no prompts, or fewer than one repeat.
    """
    check_local(placement)
    if not prompts:
        raise ValueError("expected at least one prompt to measure with, got none")
    repeats = whole("repeats", repeats, 1)
    generate(method, prompts, new_tokens)
    runs, seconds, stats, tokens = [], [], Stats(), [0]
    for _ in range(repeats):
        watch = SerialWatch()
        generate(watch.watched(method), prompts, new_tokens, watch=watch)
        tokens = [count for count in watch.emitted if count]  # steps enqueued beyond the end add none
        runs.append(watch.steps[: len(tokens)])
        stats = generate(method, prompts, new_tokens).stats
        seconds.append(stats.decode_seconds / max(stats.steps / len(prompts), 1))
    message = rendezvous(placement, numbers)
    steps = _alone(runs, message)
    return StepTiming(_medians(steps, message), float(np.median(seconds)), stats, len(prompts), steps, sum(tokens))


def _alone(runs: Sequence[Sequence[Mapping[str, float]]], message: float) -> list[dict[str, float]]:
    """Return the medians of each step over runs, or the last run where rounding made them differ.

    A selection waits for the verdict's message, a rollout does not wait.
    """
    equal = all([set(step) for step in run] == [set(step) for step in runs[-1]] for run in runs)
    every, waited = zip(*(runs if equal else runs[-1:]), strict=True), {"select": message, FALLBACK: message}
    return [
        {name: max(float(np.median([run[name] for run in same])) - waited.get(name, 0.0), 0.0) for name in same[0]}
        for same in every
    ]


def _medians(steps: Sequence[Mapping[str, float]], message: float) -> ProgramTimes:
    """Return the medians over steps."""
    names = dict.fromkeys(name for step in steps for name in step)
    median = {name: float(np.median([step[name] for step in steps if name in step])) for name in names}
    select = median.get("select", 0.0)
    return ProgramTimes(
        median.get("prefix", 0.0),
        median.get("suffix", 0.0) + median.get("whole", 0.0),
        median.get("ahead", 0.0),
        median.get("rollout", 0.0),
        select,
        max(median.get(FALLBACK, 0.0) - select, 0.0),
        message,
    )
