"""The law of a step: how long each program takes alone, what is hidden behind what, and what a policy would gain.

    T = max(T_target, T_draft side) + T_rv + T_select + FF_B·T_fallback
    T_draft side = max(T_prefix + T_rv, T_ahead) + T_rollout      with an exit's message
                 = T_ahead                                        without one
    FF_B = 1 − (1 − FF)^B

A step adds 1 + E[A] tokens to a sequence. FF is the chance that no branch of a sequence comes true; a batch drafts anew
if one of its sequences must, since enqueued programs cannot be recalled.

Source: Mirror-SD (arXiv 2510.13161), §3; the term of the fallback is ours.
"""

import math
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from jaxspec.devices.channel import channel_between
from jaxspec.devices.processes import is_local, put
from jaxspec.devices.sharding import DATA_AXIS, Placement, axis_size, batch_sharding
from jaxspec.generation import Stats, generate
from jaxspec.generation.requests import Prompt
from jaxspec.methods.checks import check_processes
from jaxspec.methods.protocol import DecodingMethod


@dataclass(frozen=True)
class Parts:
    """Seconds of every program, each alone on its mesh, what was enqueued for it included.

    Attributes:
        prefix: layers 1..ℓₑ and the exit's message.
        suffix: the other layers and the verdict; with a policy that sends no message, the whole pass.
        ahead: rollouts from the draft's own message.
        rollout: rollouts from the exit's message.
        select: taking the branch that came true.
        fallback: drafting anew, beyond that.
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
        """T_target, which no step of Mirror-SD undercuts."""
        return self.prefix + self.suffix

    @property
    def drafting(self) -> float:
        """When the draft's side is done rolling out, counted from the start of the step."""
        if not self.rollout:
            return self.ahead
        return max(self.prefix + self.rendezvous, self.ahead) + self.rollout

    @property
    def hidden(self) -> float:
        """What the law hides: how much longer a step takes whose programs run in turn."""
        return max(self.target + self.ahead + self.rollout - max(self.target, self.drafting), 0.0)


def step_time(parts: Parts, fallback_rate: float, batch: int = 1, overlap: float = 1.0) -> float:
    """T of the law, in the unit of ``parts``.

    Args:
        parts: of a step.
        fallback_rate: FF of one sequence.
        batch: B.
        overlap: share of ``parts.hidden`` that is hidden indeed; the law itself is at 1.

    Raises:
        ValueError: a rate outside [0, 1], or a batch below 1.
    """
    if not 0 <= fallback_rate <= 1 or batch < 1:
        raise ValueError(f"expected 0 <= fallback_rate <= 1 and batch >= 1, got {fallback_rate} and {batch}")
    failing = 1 - (1 - fallback_rate) ** batch
    shown = max(parts.target, parts.drafting) + (1 - overlap) * parts.hidden
    return shown + parts.rendezvous + parts.select + failing * parts.fallback


def speed_up(parts: Parts, fallback_rate: float, accepted_length: float, plain_step: float, batch: int = 1) -> float:
    """Tokens a second over those of plain decoding, whose step takes ``plain_step``."""
    return (1 + accepted_length) * plain_step / step_time(parts, fallback_rate, batch)


def accepted_length(acceptance_rate: float, window: int) -> float:
    """E[A] = Σ_{r=1..γ} αʳ, if every token is accepted with probability α."""
    return float(np.sum(acceptance_rate ** np.arange(1, window + 1)))


@dataclass
class Alone:
    """A ``Watch`` that lets one program run at a time, and notes how long each took.

    Selections of a step in which a sequence had to draft anew are noted as "fallback".
    """

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    _last: float = field(default_factory=time.perf_counter)

    def __call__(self, lane: str, name: str, outputs: Any) -> None:
        """Waits for a program here."""
        jax.block_until_ready(outputs)
        now = time.perf_counter()
        name = "fallback" if name == "select" and not np.all(outputs) else name
        self.seconds[name].append(now - self._last)
        self._last = time.perf_counter()


def rendezvous(placement: Placement, count: int = 64, repeats: int = 50) -> float:
    """Seconds that ``count`` numbers take from one mesh to the other: half of a way there and back, median.

    Between two processes both call it.
    """
    check_processes(*placement)
    channel = channel_between(*placement)
    rows = math.lcm(*(axis_size(mesh, DATA_AXIS) for mesh in placement))
    message = put(np.zeros((rows, count), np.int32), batch_sharding(placement.target), placement.target)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        there, _ = jax.block_until_ready(channel.to_draft(message))
        message, _ = jax.block_until_ready(channel.to_target(there))
        times.append(time.perf_counter() - start)
    return float(np.median(times)) / 2


@dataclass(frozen=True)
class Measured:
    """What ``measure`` found: parts alone, seconds of a step as it is, and the counts of the run."""

    parts: Parts
    step: float
    stats: Stats
    batch: int = 1

    @property
    def fallback_rate(self) -> float:
        """FF of one sequence."""
        return 1 - self.stats.reuse_rate

    @property
    def law(self) -> float:
        """What the law makes of the parts, at this run's rate of fallback."""
        return step_time(self.parts, self.fallback_rate, self.batch)

    @property
    def overlap(self) -> float | None:
        """Share of what could be hidden that is: 1 at the law's time, 0 in turn; None where nothing could be."""
        return 1 - (self.step - self.law) / self.parts.hidden if self.parts.hidden > 0 else None


def check_local(placement: Placement) -> None:
    """Checks that programs of both meshes can be timed here.

    Raises:
        ValueError: one belongs to another process.
    """
    if not all(map(is_local, placement)):
        raise ValueError("expected both meshes in this process, which times every program, got one of another's")


def measure(
    method: DecodingMethod, placement: Placement, prompts: Sequence[Prompt], new_tokens: int = 64, repeats: int = 3
) -> Measured:
    """Decodes with one program at a time and as usual, in turns; medians.

    Args:
        method: from ``jaxspec.mirror``.
        placement: its meshes.
        prompts: one batch.
        new_tokens: decoded each time.
        repeats: of both, after one that compiles.

    Raises:
        ValueError: meshes of two processes, of which neither sees all programs.
    """
    check_local(placement)
    generate(method, prompts, new_tokens)
    seconds: dict[str, list[float]] = defaultdict(list)
    steps, stats = [], Stats()
    for _ in range(repeats):
        watch = Alone()
        generate(method, prompts, new_tokens, watch=watch)
        for name, times in watch.seconds.items():
            seconds[name] += times[1:] if name in ("prefix", "whole") else times
        stats = generate(method, prompts, new_tokens).stats
        steps.append(stats.decode_seconds / max(stats.steps / len(prompts), 1))
    return Measured(_parts(seconds, rendezvous(placement)), float(np.median(steps)), stats, len(prompts))


def _parts(seconds: dict[str, list[float]], message: float) -> Parts:
    """Medians; what the selection waits for the verdict is counted apart. The rollout's message has come by then."""
    median = {name: float(np.median(times)) for name, times in seconds.items() if times}
    select = max(median.get("select", 0.0) - message, 0.0)
    return Parts(
        median.get("prefix", 0.0),
        median.get("suffix", 0.0) + median.get("whole", 0.0),
        median.get("ahead", 0.0),
        median.get("rollout", 0.0),
        select,
        max(median.get("fallback", 0.0) - message - select, 0.0),
        message,
    )
