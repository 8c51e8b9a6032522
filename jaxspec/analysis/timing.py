"""Seconds of the programs of a step, each alone on its mesh; the step of any setting is composed of them.

    T_prefix(γ, ℓ) = T_head(γ) + ℓ·c₁(γ)             T_suffix(γ, ℓ) = T_head(γ) + (N − ℓ)·c₂(γ)
    T_draft(γ, R) = T_enqueue + γ·T_pass(R)

c₁ and c₂ are the time of a layer before and after the one exit that is timed. Programs are compiled for each window on
the target's side and for a few R on the draft's, not for every setting. Inputs are zeros, as are hidden states
that a draft reads: values do not affect times.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.analysis._laps import Laps, PlainLaps, laps_without_model, run_in_turns
from jaxspec.analysis._laps import TimedPair as TimedPair
from jaxspec.analysis.cost import ProgramTimes, rendezvous
from jaxspec.analysis.crossing import Crossing, PairParams, StepSizes, step_shapes
from jaxspec.devices.channel import pack, send
from jaxspec.devices.sharding import batch_sharding, put_model
from jaxspec.drafts import Draft, draft_for
from jaxspec.methods import candidates
from jaxspec.methods.candidates import Likeliest, Policy
from jaxspec.methods.draft_side import DraftSide, count_roots, draft_begin, draft_rollout, draft_select
from jaxspec.methods.fallbacks import Full
from jaxspec.verify.acceptance import match
from jaxspec.verify.programs import target_prefix, target_suffix, target_whole
from jaxspec.verify.target import Request, Target, prefill
from jaxspec.verify.verdict import Verdict


class TargetPass(NamedTuple):
    """The target's pass over γ+1 tokens, in seconds.

    Attributes:
        whole: as one program.
        prefix: the layers before the exit, and its message.
        suffix: the other layers, and the verdict.
        head: an exit and its message, without layers.
    """

    whole: float
    prefix: float
    suffix: float
    head: float


class DraftTimes(NamedTuple):
    """The draft's side, in seconds.

    Attributes:
        enqueue: of a program, in addition to its passes.
        passes: one pass over R tokens, by R.
        selects: select one of R branches, by R.
    """

    enqueue: float
    passes: Mapping[int, float]
    selects: Mapping[int, float] = MappingProxyType({})

    def pass_over(self, branches: int) -> float:
        """Return T_pass(R), interpolated linearly."""
        return _between(self.passes, branches)

    def select(self, branches: int) -> float:
        """Return T_select(R), interpolated linearly."""
        return _between(self.selects, branches)


def _between(measured: Mapping[int, float], at: int) -> float:
    return float(np.interp(at, list(measured), list(measured.values())))


@dataclass(frozen=True)
class Primitives:
    """Measured times, in seconds; without a draft those of plain decoding and prompt lookup alone.

    Attributes:
        plain: a step of plain decoding.
        passes: of the target, by γ.
        exit_layer: ℓₑ of the timed exit.
        num_layers: N.
        drafting: on the draft's mesh.
        beside: on the target's mesh, where speculative decoding drafts.
        rendezvous: a message from one mesh to the other.
        overlap: share of the shorter of two programs that is hidden when both meshes are busy.
        batch: B, sequences decoded together.
        lookup: a step with a draft without a model, by method and places that are verified; 0: it found nothing.
    """

    plain: float
    passes: Mapping[int, TargetPass] = field(default_factory=dict)
    exit_layer: int = 0
    num_layers: int = 0
    drafting: DraftTimes = DraftTimes(0.0, {})
    beside: DraftTimes = DraftTimes(0.0, {})
    rendezvous: float = 0.0
    overlap: float = 1.0
    batch: int = 1
    lookup: Mapping[str, Mapping[int, float]] = field(default_factory=dict)

    def speculative(self, window: int) -> ProgramTimes:
        """Return a step of speculative decoding, one program on the target's mesh; its FF is 1."""
        return ProgramTimes(suffix=self.passes[window].whole, fallback=window * self.beside.pass_over(1))

    def programs(self, window: int, policy: Policy, num_candidates: int, exit_layer: int) -> ProgramTimes:
        """Return a step of ``jaxspec.mirror`` for any policy."""
        drafting, rankings = self.drafting, ((policy.ahead, policy.num_candidates), (policy.exit, num_candidates))
        ahead, later = (count_roots(ranking, window, kappa) for ranking, kappa in rankings)
        one, many = drafting.pass_over(1), lambda count: drafting.enqueue + window * drafting.pass_over(count)
        prefix, suffix = self._split(window, exit_layer) if later else (0.0, self.passes[window].whole)
        return ProgramTimes(
            prefix=prefix,
            suffix=suffix,
            ahead=many(ahead) + one if ahead else 0.0,
            rollout=many(later) if later else 0.0,
            select=drafting.select(ahead + later) if ahead + later else 0.0,
            fallback=window * one if ahead + later else many(1),
            rendezvous=self.rendezvous,
        )

    def _split(self, window: int, exit_layer: int) -> tuple[float, float]:
        """Return T_prefix and T_suffix of an exit; layers on the same side of the timed exit take the same time."""
        _, prefix, suffix, head = self.passes[window]
        before, after = self.exit_layer, self.num_layers - self.exit_layer
        early = max(prefix - head, 0.0) / before
        late = max(suffix - head, 0.0) / after if after else early
        if exit_layer <= before:
            return prefix - (before - exit_layer) * early, suffix + (before - exit_layer) * early
        return prefix + (exit_layer - before) * late, suffix - (exit_layer - before) * late


def measure(
    pair: TimedPair,
    windows: Sequence[int],
    branches: Sequence[int],
    *,
    without_model: Mapping[str, Draft] = MappingProxyType({}),
    lookups: Sequence[int] = (),
    laps: int = 50,
    most: float = 10.0,
    progress: bool = False,
) -> Primitives:
    """Time every program.

    Args:
        pair: to be timed.
        windows: γ of the draft.
        branches: R, ascending from 1.
        without_model: drafts without a model, by the name of the method that uses each.
        lookups: γ of these.
        laps: repetitions for the medians, after one that compiles.
        most: seconds after which no further lap begins, but at least three are run.
        progress: show a bar.
    """
    plain, clock, batch = PlainLaps(pair), Laps(), len(pair.request.lengths)
    looking = laps_without_model(pair, without_model, lookups)
    drafting = [] if pair.draft is None else [_Drafting(pair, windows, branches)]
    programs = [plain.lap, *(part.lap for part in looking), *(lap for part in drafting for lap in part.laps())]
    run_in_turns(programs, clock, laps, most, progress)
    looked_up = {part.name: part.medians(clock) for part in looking}
    alone = Primitives(clock.median("plain"), batch=batch, lookup=looked_up)
    return drafting[0].times(clock, alone) if drafting else alone


class _Drafting:
    """All programs of a pair: the target's passes over windows, and the draft's on both meshes."""

    def __init__(self, pair: TimedPair, windows: Sequence[int], branches: Sequence[int]):
        self.pair, self.windows, self.verifier = pair, windows, _Verifier(pair, windows)
        longest = max(*windows, 2)
        longest = min(longest, self.verifier.made.drafter.max_window or longest)
        self.on_draft, self.on_target = (
            [_Roller(pair, side, 1, 1), *(_Roller(pair, side, count, longest) for count in counts)]
            for side, counts in (("draft", branches), ("target", (1,)))
        )
        self.selecting, self.middle = (self.on_draft[1], self.on_draft[-1]), self.on_draft[len(self.on_draft) // 2]

    def laps(self) -> list[Callable[[Laps], None]]:
        """Return a function for each program, or group of them, that times it once."""
        rollers = [roller.lap for roller in (*self.on_draft, *self.on_target)]
        return [self.verifier.lap, *rollers, self._lap_both, *(roller.lap_select for roller in self.selecting)]

    def _lap_both(self, clock: Laps) -> None:
        """Time a pass of the target and a rollout at once."""

        def both(state: Any) -> Any:
            return self.verifier.whole(max(self.windows)), self.middle.rollout(state)

        clock(("both",), both, self.middle.copied())

    def times(self, clock: Laps, alone: Primitives) -> Primitives:
        """Return all medians, with those that need no draft."""
        passes = {size: TargetPass(*(clock.median(part, size) for part in TargetPass._fields)) for size in self.windows}
        selects = {one.name[1]: clock.median("select", *one.name) for one in self.selecting}
        return replace(
            alone,
            passes=passes,
            exit_layer=self.pair.exit_layer,
            num_layers=self.pair.target.network.config.num_layers,
            drafting=_drafting(clock, self.on_draft)._replace(selects=selects),
            beside=_drafting(clock, self.on_target),
            rendezvous=rendezvous(self.pair.placement, self.on_draft[-1].crosses.bytes.largest // 4),
            overlap=_overlap(clock, self.middle, max(self.windows)),
        )


class _Verifier:
    """The target's programs; with them it fuses what the draft reads."""

    def __init__(self, pair: TimedPair, windows: Sequence[int]):
        network, self.params, home, shared = put_model(pair.target, pair.placement.target)
        self.made = _made(pair)
        self.target = Target(network, reader=self.made.drafter.reader())
        parts = pair.exit, self.made.drafter.fusion(self.made.params)
        (self.head, self.fusion), self.layer, self.kappa = send(parts, shared), pair.exit_layer, pair.num_candidates
        self.cache, self.progress = self._started(send(pair.request, home), pair.capacity)
        batch = len(pair.request.lengths)
        self.windows = {size: send(np.zeros((batch, size), np.int32), home) for size in windows}

    def _started(self, request: Request, capacity: int) -> Any:
        return prefill(self.target.network, self.params, request, capacity, self.target.reader, self.fusion)[0]

    def whole(self, size: int) -> Any:
        """Run a pass as one program and return the cache."""
        rest = self.cache, self.progress, self.windows[size], None
        self.cache, *_ = target_whole(self.target, self.params, self.fusion, *rest)
        return self.cache

    def prefix(self, stop: int, cache: Any, window: Any) -> Any:
        """Run the layers before an exit, and its message."""
        rest = self.params, self.head, self.fusion, cache, self.progress, window
        return target_prefix(self.target, stop, self.kappa, *rest)

    def suffix(self, cache: Any, half: Any, window: Any) -> Any:
        """Run the layers after the exit."""
        rest = self.params, self.fusion, cache, self.progress, half, window, None
        return target_suffix(self.target, self.layer, *rest)

    def lap(self, clock: Laps) -> None:
        """Time every window: whole, exit without layers, prefix, suffix."""
        for size, window in self.windows.items():
            clock(("whole", size), self.whole, size)
            clock(("head", size), self.prefix, 0, (), window)
            half, lower, *_ = clock(("prefix", size), self.prefix, self.layer, self.cache[: self.layer], window)
            upper, *_ = clock(("suffix", size), self.suffix, self.cache[self.layer :], half, window)
            self.cache = (*lower, *upper)


class _Roller:
    """The draft's programs on one side's mesh, for a number of branches of a window.

    Every lap begins at the same state, of which it gets a copy: programs take the memory of what they are passed.
    """

    def __init__(self, pair: TimedPair, side: str, branches: int, window: int):
        mesh, draft = getattr(pair.placement, side), _made(pair)
        drafter, self.params = draft.drafter.put_on_mesh(draft.params, mesh)
        self.name, kappa, home = (side, branches, window), -(-branches // (window + 1)), batch_sharding(mesh)
        noted = side == "draft" and branches > 1
        policy = candidates.mirror(branches, num_candidates=kappa) if noted else Policy(exit=Likeliest(branches))
        self.side = DraftSide(drafter, match(), policy, kappa, Full())
        target = Target(pair.target.network, reader=draft.drafter.reader())
        parts = PairParams.of(pair.target.params, self.params, drafter)
        sizes = StepSizes(capacity=pair.capacity, window=window, exit_layer=pair.exit_layer)
        shapes = step_shapes(target, self.side, parts, pair.request, sizes).crossing
        self.crosses: Crossing = send(jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes), home)
        request = send(pair.request, home)
        self.state, self.standing = draft_begin(
            self.side, window, pair.capacity, self.params, request, self.crosses.prompts
        )
        if self.crosses.late is not None:  # after a step it holds more than after the prompts
            (self.state, self.standing), _ = self.select(*self.rolled())

    def copied(self) -> Any:
        """Return a copy of the state, made when this returns."""
        return jax.block_until_ready(jax.tree.map(jnp.copy, self.state))

    def rollout(self, state: Any) -> Any:
        """Roll out after a message."""
        arrived = self.crosses.message, self.crosses.early
        return draft_rollout(self.side, self.params, state, self.standing, None, *arrived)

    def rolled(self) -> tuple[Any, Any, Any]:
        """Return a rollout, the state after it, and a packed verdict that selects its first branch."""
        rolled, state = self.rollout(self.copied())
        accepted, token = rolled.roots.accepted[:, 0], rolled.roots.tokens[:, 0]
        return rolled, state, pack(Verdict(accepted, token, self.standing.position + accepted + 1))

    def select(self, rolled: Any, state: Any, verdict: Any) -> Any:
        """Select after a verdict."""
        features = self.crosses.early, self.crosses.late
        return draft_select(self.side, self.params, state, self.standing, rolled, verdict, features)

    def lap(self, clock: Laps) -> None:
        """Time a rollout."""
        clock(("rollout", *self.name), self.rollout, self.copied())

    def lap_select(self, clock: Laps) -> None:
        """Time a selection of the first branch."""
        clock(("select", *self.name), self.select, *jax.block_until_ready(self.rolled()))


def _made(pair: TimedPair) -> Draft:
    assert pair.draft is not None
    return draft_for(pair.target, pair.draft)


def _drafting(clock: Laps, rollers: Sequence[_Roller]) -> DraftTimes:
    """Fit enqueue and pass times to rollouts of one branch by one token and of R branches by γ."""
    short, one, *_ = rollers
    seconds = {roller.name[1]: clock.median("rollout", *roller.name) for roller in rollers[1:]}
    once, window = clock.median("rollout", *short.name), one.name[2]
    enqueue = min(max((window * once - seconds[1]) / max(window - 1, 1), 0.0), once)
    return DraftTimes(enqueue, {count: max(whole - enqueue, 0.0) / window for count, whole in seconds.items()})


def _overlap(clock: Laps, roller: _Roller, window: int) -> float:
    """Return (T₁ + T₂ − T_both) / min(T₁, T₂), median over laps."""
    names = ("whole", window), ("rollout", *roller.name), ("both",)
    one, other, both = (np.asarray(clock.seconds[name][1:]) for name in names)
    return float(np.clip(np.median((one + other - both) / np.minimum(one, other)), 0.0, 1.0))
