"""Seconds of the programs that every step is made of, each alone on its mesh; any step is put together from them.

    T_prefix(γ, ℓ) = T_head(γ) + ℓ·c₁(γ)             T_suffix(γ, ℓ) = T_head(γ) + (N − ℓ)·c₂(γ)
    T_draft(γ, R) = T_enqueue + γ·T_pass(R)

c₁ and c₂ are a layer's time before and behind the one exit that is timed. A program is compiled for each window on the
target's side and for a few R on the draft's, not for every setting. Numbers that are passed around are zeros: what a
program computes does not change how long it takes.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from jaxspec.analysis.cost import Parts, rendezvous
from jaxspec.devices.channel import pack, send
from jaxspec.devices.sharding import Placement, put_model
from jaxspec.drafts.plain import Window
from jaxspec.methods import autoregressive
from jaxspec.methods.candidates import Likeliest, Policy
from jaxspec.methods.draft_side import Drafter, Standing, count_roots, draft_rollout, draft_select
from jaxspec.methods.fallbacks import Full
from jaxspec.models.attention import fill
from jaxspec.models.base import Model
from jaxspec.verify import message_like
from jaxspec.verify.acceptance import match
from jaxspec.verify.target import Request, prefill, target_prefix, target_suffix, target_whole
from jaxspec.verify.verdict import Verdict


class Pass(NamedTuple):
    """The target's pass over γ+1 tokens, in seconds.

    Attributes:
        whole: as one program.
        prefix: up to the exit, and its message.
        suffix: from there on, and the verdict.
        head: an exit and its message alone, without layers.
    """

    whole: float
    prefix: float
    suffix: float
    head: float


class Drafting(NamedTuple):
    """The draft's side, in seconds.

    Attributes:
        enqueue: what a program takes beside its passes.
        passes: one pass over R tokens, by R.
        selects: taking one of R branches, by R.
    """

    enqueue: float
    passes: Mapping[int, float]
    selects: Mapping[int, float] = MappingProxyType({})

    def pass_over(self, branches: int) -> float:
        """T_pass(R), along straight lines between those measured."""
        return _between(self.passes, branches)

    def select(self, branches: int) -> float:
        """T_select(R), likewise."""
        return _between(self.selects, branches)


def _between(measured: Mapping[int, float], at: int) -> float:
    return float(np.interp(at, list(measured), list(measured.values())))


@dataclass(frozen=True)
class Primitives:
    """All that was measured.

    Attributes:
        plain: a step of plain decoding.
        passes: of the target, by γ.
        exit_layer: ℓₑ of the exit that was timed.
        num_layers: N.
        drafting: on the draft's mesh.
        beside: on the target's mesh, where vanilla speculative decoding drafts.
        rendezvous: a message from one mesh to the other.
        overlap: share of the shorter of two programs that is hidden when both meshes work.
        batch: B, sequences decoded together.
    """

    plain: float
    passes: Mapping[int, Pass]
    exit_layer: int
    num_layers: int
    drafting: Drafting
    beside: Drafting
    rendezvous: float
    overlap: float = 1.0
    batch: int = 1

    def vanilla(self, window: int) -> Parts:
        """Speculative decoding as one program on the target's mesh; its FF is 1."""
        return Parts(suffix=self.passes[window].whole, fallback=window * self.beside.pass_over(1))

    def parts(self, window: int, policy: Policy, num_candidates: int, exit_layer: int) -> Parts:
        """A step of ``jaxspec.mirror``, whatever is rolled out ahead."""
        drafting, rankings = self.drafting, ((policy.ahead, policy.num_candidates), (policy.exit, num_candidates))
        ahead, later = (count_roots(ranking, window, kappa) for ranking, kappa in rankings)
        one, many = drafting.pass_over(1), lambda count: drafting.enqueue + window * drafting.pass_over(count)
        prefix, suffix = self._split(window, exit_layer) if later else (0.0, self.passes[window].whole)
        return Parts(
            prefix=prefix,
            suffix=suffix,
            ahead=many(ahead) + one if ahead else 0.0,
            rollout=many(later) if later else 0.0,
            select=drafting.select(ahead + later) if ahead + later else 0.0,
            fallback=window * one if ahead + later else many(1),
            rendezvous=self.rendezvous,
        )

    def _split(self, window: int, exit_layer: int) -> tuple[float, float]:
        """T_prefix and T_suffix of an exit: a layer takes the same wherever it is on its side of the timed one."""
        _, prefix, suffix, head = self.passes[window]
        before, behind = self.exit_layer, self.num_layers - self.exit_layer
        early = max(prefix - head, 0.0) / before
        late = max(suffix - head, 0.0) / behind if behind else early
        if exit_layer <= before:
            return prefix - (before - exit_layer) * early, suffix + (before - exit_layer) * early
        return prefix + (exit_layer - before) * late, suffix - (exit_layer - before) * late


class Setup(NamedTuple):
    """What is timed: a pair on its meshes, an exit, and a batch of prompts.

    Attributes:
        target: network and parameters.
        draft: likewise.
        placement: their meshes.
        exit: exit head.
        exit_layer: ℓₑ.
        num_candidates: κ of the message.
        request: prompts.
        capacity: rows of a cache.
    """

    target: Model
    draft: Model
    placement: Placement
    exit: Any
    exit_layer: int
    num_candidates: int
    request: Request
    capacity: int


@dataclass
class Laps:
    """Seconds of programs that are run in turns, one at a time, so that a machine that slows down slows all of them."""

    seconds: dict[Any, list[float]] = field(default_factory=lambda: defaultdict(list))

    def __call__(self, name: Any, program: Callable[..., Any], *args: Any) -> Any:
        """Runs a program to its end; what it gave."""
        start = time.perf_counter()
        outputs = jax.block_until_ready(program(*args))
        self.seconds[name].append(time.perf_counter() - start)
        return outputs

    def median(self, *name: Any) -> float:
        """Of all laps but the first, which compiles."""
        return float(np.median(self.seconds[name][1:]))


def measure(
    setup: Setup,
    windows: Sequence[int],
    branches: Sequence[int],
    *,
    laps: int = 50,
    most: float = 10.0,
    progress: bool = False,
) -> Primitives:
    """Times every primitive.

    Args:
        setup: what is timed.
        windows: γ.
        branches: R, ascending from 1.
        laps: medians are over so many, after one that compiles.
        most: seconds after which no lap is begun, once there are three.
        progress: show a bar.
    """
    longest = max(*windows, 2)
    verifier = _Verifier(setup, windows)
    here, there = (
        [_Roller(setup, side, 1, 1), *(_Roller(setup, side, count, longest) for count in counts)]
        for side, counts in (("draft", branches), ("target", (1,)))
    )
    chosen = here[1], here[-1]
    sides: list[Any] = [_Plain(setup), verifier, *here, *there, _Both(verifier, here[len(here) // 2], max(windows))]
    clock, start = Laps(), 0.0
    with tqdm(total=(1 + laps) * len(sides), desc="time", unit="program", disable=not progress) as bar:
        for lap in range(1 + laps):
            start = time.perf_counter() if lap == 1 else start
            if lap > 3 and time.perf_counter() - start > most:
                break
            for side in sides:
                side.lap(clock)
                bar.update()
            for roller in chosen:
                roller.lap_select(clock)
    passes = {size: Pass(*(clock.median(part, size) for part in Pass._fields)) for size in windows}
    return Primitives(
        clock.median("plain"),
        passes,
        setup.exit_layer,
        setup.target.network.config.num_layers,
        _drafting(clock, here)._replace(selects={one.name[1]: clock.median("select", *one.name) for one in chosen}),
        _drafting(clock, there),
        rendezvous(setup.placement),
        _overlap(clock, here[len(here) // 2], max(windows)),
        len(setup.request.lengths),
    )


class _Plain:
    """Plain decoding."""

    def __init__(self, setup: Setup):
        self.method = autoregressive(setup.target, setup.placement.target)
        self.state = self.method.init(setup.request, setup.capacity)

    def lap(self, clock: Laps) -> None:
        """One step."""
        self.state, _ = clock(("plain",), self.method.step, self.state)


class _Verifier:
    """The target's programs."""

    def __init__(self, setup: Setup, windows: Sequence[int]):
        self.network, self.params, home, shared = put_model(setup.target, setup.placement.target)
        self.layer, self.kappa, self.head = setup.exit_layer, setup.num_candidates, send(setup.exit, shared)
        self.cache, self.progress = prefill(self.network, self.params, send(setup.request, home), setup.capacity)
        batch = len(setup.request.lengths)
        self.windows = {size: send(np.zeros((batch, size), np.int32), home) for size in windows}

    def whole(self, size: int) -> Any:
        """A pass as one program; the cache after it."""
        window = self.windows[size]
        self.cache, *_ = target_whole(self.network, match(), self.params, self.cache, self.progress, window, None)
        return self.cache

    def prefix(self, stop: int, cache: Any, window: Any) -> Any:
        """Up to an exit after ``stop`` layers, and its message."""
        return target_prefix(self.network, stop, self.kappa, self.params, self.head, cache, self.progress, window)

    def suffix(self, cache: Any, x: Any, window: Any) -> Any:
        """From the exit on."""
        return target_suffix(self.network, self.layer, match(), self.params, cache, self.progress, x, window, None)

    def lap(self, clock: Laps) -> None:
        """Every window: whole, an exit without layers, prefix, suffix."""
        for size, window in self.windows.items():
            clock(("whole", size), self.whole, size)
            clock(("head", size), self.prefix, 0, (), window)
            x, lower, _ = clock(("prefix", size), self.prefix, self.layer, self.cache[: self.layer], window)
            upper, *_ = clock(("suffix", size), self.suffix, self.cache[self.layer :], x, window)
            self.cache = (*lower, *upper)


class _Roller:
    """The draft's programs on one side's mesh, for so many branches of a window."""

    def __init__(self, setup: Setup, side: str, branches: int, window: int):
        self.network, self.params, self.home, _ = put_model(setup.draft, getattr(setup.placement, side))
        self.name = side, branches, window
        request, batch = send(setup.request, self.home), len(setup.request.lengths)
        room, kappa = setup.capacity + branches * window, -(-branches // (window + 1))
        self.cache = jax.jit(fill, static_argnums=(0, 3))(self.network, self.params, request.tokens, room)
        self.side = Drafter(self.network, match(), Policy(exit=Likeliest(branches)), kappa, Full())
        tokens = send(np.zeros((batch, window), np.int32), self.home)
        self.standing = Standing(Window(tokens, None), None, request.lengths - 1, None, None, None)
        zeros = [
            np.zeros((batch, int(np.prod(leaf.shape[1:]))), np.int32) for leaf in message_like(batch, window, kappa)
        ]
        self.sent = send(np.concatenate(zeros, axis=1), self.home)

    def rollout(self) -> Any:
        """What is rolled out after a message."""
        rolled, self.cache = draft_rollout(self.side, self.params, self.cache, self.standing, None, self.sent)
        return rolled

    def select(self, rolled: Any, verdict: Any) -> Any:
        """What is decided after a verdict."""
        (self.cache, _), reused = draft_select(self.side, self.params, self.cache, self.standing, rolled, verdict)
        return reused, self.cache

    def lap(self, clock: Laps) -> None:
        """A rollout."""
        clock(("rollout", *self.name), self.rollout)

    def lap_select(self, clock: Laps) -> None:
        """A selection in which the first branch comes true."""
        rolled = self.rollout()
        first = Verdict(rolled.roots.accepted[:, 0], rolled.roots.tokens[:, 0], self.standing.position)
        sent = jax.block_until_ready(pack(first))
        clock(("select", *self.name), self.select, rolled, sent)


class _Both:
    """A pass of the target and a rollout, enqueued together."""

    def __init__(self, verifier: _Verifier, roller: _Roller, window: int):
        self.verifier, self.roller, self.window = verifier, roller, window

    def lap(self, clock: Laps) -> None:
        """Waits for both."""
        clock(("both",), lambda: (self.verifier.whole(self.window), self.roller.rollout()))


def _drafting(clock: Laps, rollers: Sequence[_Roller]) -> Drafting:
    """From rollouts of one branch by one token, and of every number of them by γ."""
    short, one, *_ = rollers
    seconds = {roller.name[1]: clock.median("rollout", *roller.name) for roller in rollers[1:]}
    once, window = clock.median("rollout", *short.name), one.name[2]
    enqueue = min(max((window * once - seconds[1]) / (window - 1), 0.0), once)
    return Drafting(enqueue, {count: max(whole - enqueue, 0.0) / window for count, whole in seconds.items()})


def _overlap(clock: Laps, roller: _Roller, window: int) -> float:
    """(T₁ + T₂ − T_both) / min(T₁, T₂); the median over laps, since a busy machine has good and bad ones."""
    names = ("whole", window), ("rollout", *roller.name), ("both",)
    one, other, both = (np.asarray(clock.seconds[name][1:]) for name in names)
    return float(np.clip(np.median((one + other - both) / np.minimum(one, other)), 0.0, 1.0))
