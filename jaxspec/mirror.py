"""Mirror speculative decoding: the draft rolls out likely next windows while the target finishes verifying.

One step is three compiled programs on two meshes and two messages between them:

    target:  prefix ──► suffix ──────────────► verdict
                │ message                        │ verdict
    draft:      └─► rollout of R branches ───────┴─► select ─► next window

The policy decides what is rolled out, and when. Where it asks the draft itself, a rollout begins with the step; where
it does not ask the exit, prefix and suffix are one program. One thread enqueues everything and waits for nothing; the
programs overlap where the meshes do.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxspec import candidates
from jaxspec.acceptance import Acceptance, match
from jaxspec.candidates import Message, Policy, Roots, join, message_like
from jaxspec.channel import send, unpack
from jaxspec.checks import check_exit, check_pair
from jaxspec.decoding import (
    DecodingMethod,
    Request,
    StepInfo,
    TargetState,
    Watch,
    method_of,
    prefill,
    target_prefix,
    target_suffix,
    target_whole,
    unwatched,
)
from jaxspec.drafts import (
    Branches,
    Drafted,
    Pending,
    Proposer,
    Window,
    commit,
    drafted_after,
    extend,
    first_window,
    rollout,
    take,
)
from jaxspec.exits import LogitLens
from jaxspec.sampling import Sampling, noted, seen_along
from jaxspec.sharding import Home, Placement, default_placement, place
from jaxspec.types import Array, Cache, Model, Network, Params
from jaxspec.verify import Verdict, verdict_like


class Standing(NamedTuple):
    """Where the draft's side of each sequence stands.

    Attributes:
        window: the window under verification.
        likely: the draft's other candidates along it, where the policy asks for them.
        position: of the last committed token: [B].
        sampling: how tokens are drawn.
        seen: tokens of the committed text, [B, V] bool, where repetitions are penalised.
    """

    window: Window
    likely: Message | None
    position: Array
    sampling: Sampling | None
    seen: Array | None

    @property
    def pending(self) -> Pending:
        """The window's last token, whose row nothing has needed so far."""
        tokens = self.window.tokens
        return Pending(tokens[:, -1], self.position + tokens.shape[1])


class DraftState(NamedTuple):
    """The draft mesh's side: its rows, and where it stands."""

    cache: Cache
    standing: Standing


class Drafter(NamedTuple):
    """What is fixed on the draft's side; static in its programs.

    Attributes:
        network: the draft.
        acceptance: the rule.
        policy: what is rolled out ahead.
        num_candidates: κ of the exit's message.
    """

    network: Network
    acceptance: Acceptance
    policy: Policy
    num_candidates: int

    def branches(self, window: int) -> tuple[int, int]:
        """Branches rolled out from the draft's own message, and from the exit's."""
        policy = self.policy
        ranked = (policy.ahead, policy.num_candidates), (policy.exit, self.num_candidates)
        ahead, later = (count_roots(ranking, window, kappa) for ranking, kappa in ranked)
        return ahead, later

    @property
    def noted(self) -> int:
        """κ of the draft's own message, 0 where nobody asks for it."""
        return self.policy.num_candidates if self.policy.ahead else 0

    def proposer(self, standing: Standing, seen: Array | None) -> Proposer:
        """How tokens are drawn after ``seen``."""
        return Proposer(self.acceptance, standing.sampling, seen, self.noted)


def count_roots(ranking: Any, window: int, num_candidates: int) -> int:
    """R of a ranking; 0 without one."""
    if ranking is None:
        return 0
    return int(jax.eval_shape(ranking, message_like(1, window, num_candidates)).tokens.shape[1])


class Rolled(NamedTuple):
    """What has been rolled out ahead."""

    roots: Roots
    branches: Branches


class MirrorState(NamedTuple):
    """Both sides; they meet only through the token channel."""

    target: TargetState
    draft: DraftState


def mirror(
    target: Model,
    draft: Model,
    *,
    window: int = 7,
    num_candidates: int = 8,
    exit_layer: int | None = None,
    exit: Any = None,
    policy: Policy | None = None,
    placement: Placement | None = None,
    acceptance: Acceptance | None = None,
) -> DecodingMethod:
    """Mirror-SD: lossless, with the next window hidden behind the target's suffix whenever a branch comes true.

    T_step = T_prefix + T_message + max(T_suffix, T_rollout) + T_verdict (+ T_draft if no branch came true)

    Args:
        target: network and parameters whose text comes out.
        draft: a model over the same vocabulary.
        window: γ, tokens drafted a step.
        num_candidates: κ, exit tokens sent for each position.
        exit_layer: ℓₑ, layers in the prefix; default N/2. At N it is the oracle, with nothing left to hide behind.
        exit: exit head; default ``LogitLens()``.
        policy: what is rolled out ahead; default ``candidates.mirror()``, all (γ+1)·κ of the exit's candidates.
        placement: target and draft mesh; default: the first two devices.
        acceptance: ``jaxspec.acceptance.match()`` (default) or ``ratio()``.

    Raises:
        ValueError: vocabularies differ, window or num_candidates < 1, exit layer out of range.

    Source: Bhendawade et al., Mirror Speculative Decoding (arXiv 2510.13161), §3.
    """
    check_pair(target, draft, window)
    exit_layer = max(1, target.network.config.num_layers // 2) if exit_layer is None else exit_layer
    check_exit(target, exit_layer, num_candidates)
    where, rule, policy = placement or default_placement(), acceptance or match(), policy or candidates.mirror()
    network, target_params, target_home, target_shared = place(target, where.target)
    drafter, draft_params, draft_home, _ = place(draft, where.draft)
    head = send(LogitLens() if exit is None else exit, target_shared)
    programs = Programs(
        partial(target_prefix, network, exit_layer, num_candidates, target_params, head),
        partial(target_suffix, network, exit_layer, rule, target_params),
        partial(target_whole, network, rule, target_params),
    )
    side = Drafter(drafter, rule, policy, num_candidates)
    scratch = window * max(1, sum(side.branches(window)))

    def init(request: Request, capacity: int) -> MirrorState:
        state = prefill(network, target_params, send(request, target_home), capacity)
        asked = send(request, draft_home)
        room = capacity + scratch
        first, others, cache = first_window(drafter, rule, draft_params, asked, window, room, side.noted)
        standing = Standing(first, others, asked.lengths - 1, asked.sampling, asked.seen)
        return MirrorState(state, DraftState(cache, standing))

    step = _step(programs, exit_layer, side, draft_params, target_home, draft_home)
    return method_of(target, init, step, window, where.target, where.draft)


class Programs(NamedTuple):
    """The target's programs, closed over what does not change: prefix and suffix, or the whole pass."""

    prefix: Callable[..., Any]
    suffix: Callable[..., Any]
    whole: Callable[..., Any]


def _step(
    programs: Programs, exit_layer: int, side: Drafter, params: Params, target_home: Home, draft_home: Home
) -> Callable[..., tuple[MirrorState, StepInfo]]:
    ahead, exits = side.policy.ahead is not None, side.policy.exit is not None

    def step(state: MirrorState, watch: Watch = unwatched) -> tuple[MirrorState, StepInfo]:
        (cache, progress), (rows, standing) = state
        window, law = send(standing.window, target_home)
        rolled: Rolled | None = None
        if exits:
            x, lower, sent = programs.prefix(cache[:exit_layer], progress, window)
        else:
            cache, progress, verdict, packed = programs.whole(cache, progress, window, law)
            watch("target", "whole", packed)
        if ahead:
            rolled, rows = draft_ahead(side, params, rows, standing)
            watch("draft", "ahead", rolled)
        if exits:
            watch("target", "prefix", sent)
            upper, progress, verdict, packed = programs.suffix(cache[exit_layer:], progress, x, window, law)
            watch("target", "suffix", packed)
            cache = (*lower, *upper)
            rolled, rows = draft_rollout(side, params, rows, standing, rolled, send(sent, draft_home))
            watch("draft", "rollout", rolled)
        drafting, reused = draft_select(side, params, rows, standing, rolled, send(verdict, draft_home))
        watch("draft", "select", reused)
        return MirrorState(TargetState(cache, progress), drafting), StepInfo(packed, reused)

    return step


@partial(jax.jit, static_argnames="side", donate_argnames="cache")
def draft_ahead(side: Drafter, params: Params, cache: Cache, standing: Standing) -> tuple[Rolled, Cache]:
    """Runs the window's last token, and rolls out what the draft itself holds for likely."""
    assert side.policy.ahead is not None
    assert standing.likely is not None
    pending = standing.pending
    logits, cache = extend(side.network, params, cache, pending)
    along = seen_along(standing.seen, standing.window.tokens)
    proposer = side.proposer(standing, None if along is None else along[:, -1:])
    behind = proposer.others(logits, jnp.full_like(pending.token, -1)[:, None], pending.position[:, None] + 1)
    return _rolled(side, params, cache, standing, side.policy.ahead(join(standing.likely, behind), None), None, None)


@partial(jax.jit, static_argnames="side", donate_argnames="cache")
def draft_rollout(
    side: Drafter, params: Params, cache: Cache, standing: Standing, ahead: Rolled | None, received: Array
) -> tuple[Rolled, Cache]:
    """Ranks the candidates of the packed message and rolls out the best, beside what was rolled out ``ahead``."""
    assert side.policy.exit is not None
    batch, window = standing.window.tokens.shape
    sent = unpack(received, message_like(batch, window, side.num_candidates))
    roots = side.policy.exit(sent, None if ahead is None else ahead.roots)
    return _rolled(side, params, cache, standing, roots, ahead, standing.pending if ahead is None else None)


def _rolled(
    side: Drafter,
    params: Params,
    cache: Cache,
    standing: Standing,
    roots: Roots,
    ahead: Rolled | None,
    pending: Pending | None,
) -> tuple[Rolled, Cache]:
    """γ tokens from every root; all branches so far."""
    drafted, window = standing.window.tokens, standing.window.tokens.shape[1]
    at = Pending(roots.tokens, standing.position[:, None] + roots.accepted + 1)
    proposer = side.proposer(standing, seen_at(standing.seen, drafted, roots)).after(roots.tokens)
    place = (0 if ahead is None else ahead.roots.tokens.shape[1]), sum(side.branches(window))
    branches, cache = rollout(side.network, params, cache, at, window, proposer, pending, place)
    new = Rolled(roots, branches)
    both = lambda one, other: jnp.concatenate([one, other], axis=1)  # noqa: E731
    return new if ahead is None else jax.tree.map(both, ahead, new), cache


def seen_at(seen: Array | None, window: Array, roots: Roots) -> Array | None:
    """What branches have seen before their roots: [B, R, V]."""
    along = seen_along(seen, window)
    return None if along is None else jnp.take_along_axis(along, roots.accepted[..., None], axis=1)


@partial(jax.jit, static_argnames="side", donate_argnames="cache")
def draft_select(
    side: Drafter, params: Params, cache: Cache, standing: Standing, rolled: Rolled | None, received: Array
) -> tuple[DraftState, Array]:
    """The branch that came true becomes the next window; where none did, a fresh rollout does."""
    drafted, window = standing.window.tokens, standing.window.tokens.shape[1]
    verdict = unpack(received, verdict_like(drafted.shape[0]))
    root = Pending(verdict.next_token, verdict.position)
    seen = noted(standing.seen, drafted, verdict.num_accepted)
    seen = noted(seen, verdict.next_token[:, None], jnp.ones_like(verdict.position))
    proposer = side.proposer(standing, None if seen is None else seen[:, None])
    if rolled is None:
        following, cache = drafted_after(side.network, params, cache, root, window, proposer, standing.pending)
        reused = jnp.zeros(drafted.shape[0], bool)
    else:
        following, reused = _chosen(side, params, cache, rolled, verdict, root, proposer)
    new, likely, cache = commit(cache, following, verdict.position)
    return DraftState(cache, Standing(new, likely, verdict.position, standing.sampling, seen)), reused


def _chosen(
    side: Drafter, params: Params, cache: Cache, rolled: Rolled, verdict: Verdict, root: Pending, proposer: Proposer
) -> tuple[Drafted, Array]:
    roots, branches = rolled
    hit = (roots.accepted == verdict.num_accepted[:, None]) & (roots.tokens == verdict.next_token[:, None])
    reused, chosen = jnp.any(hit, axis=1), take(branches, cache, jnp.argmax(hit, axis=1))

    def fall_back(nothing: None) -> Drafted:
        again, _ = drafted_after(side.network, params, cache, root, branches.tokens.shape[2], proposer)
        return jax.tree.map(lambda old, new: jnp.where(_like(reused, old), old, new), chosen, again)

    return jax.lax.cond(jnp.all(reused), lambda _: chosen, fall_back, None), reused


def _like(flags: Array, array: Array) -> Array:
    """Flags [B] with as many axes as ``array``."""
    return flags.reshape(-1, *(1,) * (array.ndim - 1))
