"""Mirror speculative decoding: the draft rolls out likely next windows while the target finishes verifying.

One step is three compiled programs on two meshes and two messages between them:

    target:  prefix ──► suffix ──────────────► verdict
                │ message                        │ verdict
    draft:      └─► rollout of R branches ───────┴─► select ─► next window

One thread enqueues everything and waits for nothing; the programs overlap where the meshes do.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxspec import candidates
from jaxspec.acceptance import Acceptance, match
from jaxspec.candidates import Policy, Roots, message_like
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
    unwatched,
)
from jaxspec.drafts import Branches, Drafted, Pending, Proposer, Window, commit, first_window, rollout, take
from jaxspec.exits import LogitLens
from jaxspec.sampling import Sampling, noted, seen_along
from jaxspec.sharding import Placement, default_placement, place
from jaxspec.types import Array, Cache, Model, Network, Params
from jaxspec.verify import verdict_like


class Standing(NamedTuple):
    """Where the draft's side of each sequence stands.

    Attributes:
        window: the window under verification.
        position: of the last committed token: [B].
        sampling: how tokens are drawn.
        seen: tokens of the committed text, [B, V] bool, where repetitions are penalised.
    """

    window: Window
    position: Array
    sampling: Sampling | None
    seen: Array | None


class DraftState(NamedTuple):
    """The draft mesh's side: its rows, and where it stands."""

    cache: Cache
    standing: Standing


class Drafter(NamedTuple):
    """What is fixed on the draft's side; static in its programs."""

    network: Network
    acceptance: Acceptance
    policy: Policy
    num_candidates: int


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
        policy: which branches are rolled out; default ``candidates.mirror()``, all (γ+1)·κ of them.
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
    prefix = partial(target_prefix, network, exit_layer, num_candidates, target_params, head)
    suffix = partial(target_suffix, network, exit_layer, rule, target_params)
    side = Drafter(drafter, rule, policy, num_candidates)
    scratch = window * jax.eval_shape(policy, message_like(1, window, num_candidates)).tokens.shape[1]

    def init(request: Request, capacity: int) -> MirrorState:
        state = prefill(network, target_params, send(request, target_home), capacity)
        asked = send(request, draft_home)
        first, cache = first_window(drafter, rule, draft_params, asked, window, capacity + scratch)
        standing = Standing(first, asked.lengths - 1, asked.sampling, asked.seen)
        return MirrorState(state, DraftState(cache, standing))

    def step(state: MirrorState, watch: Watch = unwatched) -> tuple[MirrorState, StepInfo]:
        (cache, progress), (rows, standing) = state
        window, law = send(standing.window, target_home)
        x, lower, sent = prefix(cache[:exit_layer], progress, window)
        watch("target", "prefix", sent)
        upper, progress, verdict, packed = suffix(cache[exit_layer:], progress, x, window, law)
        watch("target", "suffix", packed)
        rolled, roots, rows = draft_rollout(side, draft_params, rows, standing, send(sent, draft_home))
        watch("draft", "rollout", rolled)
        drafting, reused = draft_select(side, draft_params, rows, standing, rolled, roots, send(verdict, draft_home))
        watch("draft", "select", reused)
        return MirrorState(TargetState((*lower, *upper), progress), drafting), StepInfo(packed, reused)

    return method_of(target, init, step, window, where.target, where.draft)


@partial(jax.jit, static_argnames="side", donate_argnames="cache")
def draft_rollout(
    side: Drafter, params: Params, cache: Cache, standing: Standing, received: Array
) -> tuple[Branches, Roots, Cache]:
    """Ranks the candidates of the packed message and rolls out the chosen branches, γ tokens each."""
    drafted, position = standing.window.tokens, standing.position
    roots = side.policy(unpack(received, message_like(drafted.shape[0], drafted.shape[1], side.num_candidates)))
    pending = Pending(drafted[:, -1], position + drafted.shape[1])
    at = Pending(roots.tokens, position[:, None] + roots.accepted + 1)
    seen = seen_at(standing.seen, drafted, roots)
    proposer = Proposer(side.acceptance, standing.sampling, seen).after(roots.tokens)
    rolled, cache = rollout(side.network, params, cache, at, drafted.shape[1], proposer, pending)
    return rolled, roots, cache


def seen_at(seen: Array | None, window: Array, roots: Roots) -> Array | None:
    """What branches have seen before their roots: [B, R, V]."""
    along = seen_along(seen, window)
    return None if along is None else jnp.take_along_axis(along, roots.accepted[..., None], axis=1)


@partial(jax.jit, static_argnames="side", donate_argnames="cache")
def draft_select(
    side: Drafter, params: Params, cache: Cache, standing: Standing, rolled: Branches, roots: Roots, received: Array
) -> tuple[DraftState, Array]:
    """The branch that came true becomes the next window; where none did, a fresh rollout does."""
    verdict = unpack(received, verdict_like(received.shape[0]))
    hit = (roots.accepted == verdict.num_accepted[:, None]) & (roots.tokens == verdict.next_token[:, None])
    reused, chosen = jnp.any(hit, axis=1), take(rolled, cache, jnp.argmax(hit, axis=1))
    root = Pending(verdict.next_token[:, None], verdict.position[:, None])
    seen = noted(standing.seen, standing.window.tokens, verdict.num_accepted)
    seen = noted(seen, root.token, jnp.ones_like(verdict.position))
    proposer = Proposer(side.acceptance, standing.sampling, None if seen is None else seen[:, None])

    def fall_back(_: None) -> Drafted:
        again = rollout(side.network, params, cache, root, rolled.tokens.shape[2], proposer)
        fresh = take(*again, jnp.zeros_like(verdict.position))
        return jax.tree.map(lambda old, new: jnp.where(_like(reused, old), old, new), chosen, fresh)

    following = jax.lax.cond(jnp.all(reused), lambda _: chosen, fall_back, None)
    window, cache = commit(cache, following, verdict.position)
    return DraftState(cache, Standing(window, verdict.position, standing.sampling, seen)), reused


def _like(flags: Array, array: Array) -> Array:
    """Flags [B] with as many axes as ``array``."""
    return flags.reshape(-1, *(1,) * (array.ndim - 1))
