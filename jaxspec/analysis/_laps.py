"""Timing in turns, one program at a time; steps of what the target decodes without a draft."""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jaxspec.devices.channel import send
from jaxspec.devices.sharding import Placement, batch_sharding
from jaxspec.drafts import Draft, Window
from jaxspec.drafts.ngram import verified_widths
from jaxspec.methods import autoregressive, speculative
from jaxspec.models.base import Model
from jaxspec.verify.target import Request


class TimedPair(NamedTuple):
    """A pair on its meshes, an exit, and a batch of prompts.

    Attributes:
        target: network and parameters.
        draft: a model, or a draft of another kind; None: the target alone.
        placement: their meshes.
        exit: exit head.
        exit_layer: ℓₑ.
        num_candidates: κ of the message.
        request: prompts.
        capacity: rows of a cache.
    """

    target: Model
    draft: Model | Draft | None
    placement: Placement
    exit: Any
    exit_layer: int
    num_candidates: int
    request: Request
    capacity: int


@dataclass
class Laps:
    """Seconds of programs that run in turns, one at a time, so that a slow phase of the machine affects all of them."""

    seconds: dict[Any, list[float]] = field(default_factory=lambda: defaultdict(list))

    def __call__(self, name: Any, program: Callable[..., Any], *args: Any) -> Any:
        """Run a program to its end and return its outputs."""
        start = time.perf_counter()
        outputs = jax.block_until_ready(program(*args))
        self.seconds[name].append(time.perf_counter() - start)
        return outputs

    def median(self, *name: Any) -> float:
        """Return the median of all laps but the first, which compiles."""
        return float(np.median(self.seconds[name][1:]))


def run_in_turns(
    programs: Sequence[Callable[[Laps], None]], clock: Laps, laps: int, most: float, progress: bool
) -> None:
    """Run all programs up to ``laps`` times after one that compiles, but three times at least, for ``most`` seconds."""
    start = 0.0
    with tqdm(total=(1 + laps) * len(programs), desc="time", unit="program", disable=not progress) as bar:
        for lap in range(1 + laps):
            start = time.perf_counter() if lap == 1 else start
            if lap > 3 and time.perf_counter() - start > most:
                break
            for program in programs:
                program(clock)
                bar.update()


class PlainLaps:
    """Plain decoding."""

    def __init__(self, pair: TimedPair):
        self.method = autoregressive(pair.target, pair.placement.target)
        self.state = self.method.init(pair.request, pair.capacity)

    def lap(self, clock: Laps) -> None:
        """Time one step."""
        self.state, _ = clock(("plain",), self.method.step, self.state)


class LookupLaps:
    """A draft without a model: a step over a whole window of every width that occurs, and one that found nothing."""

    def __init__(self, name: str, draft: Draft, pair: TimedPair, windows: Sequence[int]):
        windows = sorted({width for window in windows for width in verified_widths(window) if width})
        mesh, batch = pair.placement.target, len(pair.request.lengths)
        self.name = name
        self.methods = {size: speculative(pair.target, draft, size, mesh) for size in windows}
        self.windows = {size: send(np.zeros((batch, size), np.int32), batch_sharding(mesh)) for size in windows}
        self.longest = max(windows)
        self.windows[0] = self.windows[self.longest] - 1
        self.state = self.methods[self.longest].init(pair.request, pair.capacity)

    def lap(self, clock: Laps) -> None:
        """Time one step of each; 0 is that of an empty window."""
        for size, tokens in self.windows.items():
            step = self.methods[size or self.longest].step
            state = self.state._replace(window=Window(jnp.copy(tokens), None))
            self.state, _ = clock((self.name, size), step, jax.block_until_ready(state))

    def medians(self, clock: Laps) -> dict[int, float]:
        """Return the times by width."""
        return {size: clock.median(self.name, size) for size in sorted(self.windows)}


def laps_without_model(pair: TimedPair, drafts: Mapping[str, Draft], windows: Sequence[int]) -> list[LookupLaps]:
    """Return laps of drafts without a model, by the name of the method that uses each."""
    return [LookupLaps(name, draft, pair, windows) for name, draft in drafts.items()]
