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
from collections import defaultdict
from collections.abc import Sequence
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
from jaxspec.methods.checks import check_processes
from jaxspec.methods.protocol import DecodingMethod


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


@dataclass
class SerialWatch:
    """A ``Watch`` that runs one program at a time and records the seconds of each.

    The selection of a step in which a sequence had to draft again is recorded as "fallback".
    """

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    _last: float = field(default_factory=time.perf_counter)

    def __call__(self, lane: str, name: str, outputs: Any) -> None:
        """Wait for the outputs of a program and record the time since the last one."""
        jax.block_until_ready(outputs)
        now = time.perf_counter()
        name = "fallback" if name == "select" and not np.all(outputs) else name
        self.seconds[name].append(now - self._last)
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
    """

    times: ProgramTimes
    step: float
    stats: Stats
    batch: int = 1

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
    """Return the medians over several measurements with the same batch; counts are added.

    Args:
        timings: of the same method. A program that did not run in one of them does not count there.
    """
    by_name = {name: [getattr(each.times, name) for each in timings] for name in vars(timings[0].times)}
    ran = {name: [seconds for seconds in values if seconds] or [0.0] for name, values in by_name.items()}
    times = ProgramTimes(**{name: float(np.median(values)) for name, values in ran.items()})
    stats = Stats(**{name: sum(getattr(each.stats, name) for each in timings) for name in vars(timings[0].stats)})
    return StepTiming(times, float(np.median([each.step for each in timings])), stats, timings[0].batch)


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
    """Decode with one program at a time and normally, in turns, and return medians.

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
    seconds: dict[str, list[float]] = defaultdict(list)
    steps, stats = [], Stats()
    for _ in range(repeats):
        watch = SerialWatch()
        generate(method, prompts, new_tokens, watch=watch)
        for name, times in watch.seconds.items():
            seconds[name] += times[1:] if name in ("prefix", "whole") else times
        stats = generate(method, prompts, new_tokens).stats
        steps.append(stats.decode_seconds / max(stats.steps / len(prompts), 1))
    return StepTiming(_medians(seconds, rendezvous(placement, numbers)), float(np.median(steps)), stats, len(prompts))


def _medians(seconds: dict[str, list[float]], message: float) -> ProgramTimes:
    """Return medians. A selection waits for the verdict's message, which is subtracted; a rollout does not wait."""
    median = {name: float(np.median(times)) for name, times in seconds.items() if times}
    select = max(median.get("select", 0.0) - message, 0.0)
    return ProgramTimes(
        median.get("prefix", 0.0),
        median.get("suffix", 0.0) + median.get("whole", 0.0),
        median.get("ahead", 0.0),
        median.get("rollout", 0.0),
        select,
        max(median.get("fallback", 0.0) - message - select, 0.0),
        message,
    )
