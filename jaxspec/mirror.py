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
from jaxspec.candidates import Policy, Roots, message_like
from jaxspec.channel import send, unpack
from jaxspec.checks import check_exit, check_pair
from jaxspec.decoding import (
    DecodingMethod,
    StepInfo,
    TargetState,
    Watch,
    prefill,
    target_prefix,
    target_suffix,
    unwatched,
)
from jaxspec.drafts import Drafted, Pending, commit, first_window, rollout, take
from jaxspec.exits import LogitLens
from jaxspec.sharding import Placement, default_placement, place
from jaxspec.types import Array, Cache, Model, Network, Params
from jaxspec.verify import verdict_like


class DraftState(NamedTuple):
    """The draft mesh's side: rows, the window under verification [B, γ], position of the last committed token [B]."""

    cache: Cache
    window: Array
    position: Array


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

    Raises:
        ValueError: vocabularies differ, window or num_candidates < 1, exit layer out of range.

    Source: Bhendawade et al., Mirror Speculative Decoding (arXiv 2510.13161), §3.
    """
    check_pair(target, draft, window)
    exit_layer = max(1, target.network.config.num_layers // 2) if exit_layer is None else exit_layer
    check_exit(target, exit_layer, num_candidates)
    where = placement or default_placement()
    policy = policy or candidates.mirror()
    (target_params, target_home), (draft_params, draft_home) = place(target, where.target), place(draft, where.draft)
    head = send(LogitLens() if exit is None else exit, target_home)
    prefix = partial(target_prefix, target.network, exit_layer, num_candidates, target_params, head)
    suffix = partial(target_suffix, target.network, exit_layer, target_params)
    ahead = partial(draft_rollout, draft.network, policy, num_candidates, draft_params)
    choose = partial(draft_select, draft.network, draft_params)
    scratch = window * jax.eval_shape(policy, message_like(1, window, num_candidates)).tokens.shape[1]

    def init(tokens: Array, lengths: Array, max_new_tokens: int, capacity: int) -> MirrorState:
        state = prefill(
            target.network, target_params, *send((tokens, lengths, jnp.int32(max_new_tokens)), target_home), capacity
        )
        tokens, lengths = send((tokens, lengths), draft_home)
        first, cache = first_window(draft.network, draft_params, tokens, lengths, window, capacity + scratch)
        return MirrorState(state, DraftState(cache, first, lengths - 1))

    def step(state: MirrorState, watch: Watch = unwatched) -> tuple[MirrorState, StepInfo]:
        (cache, progress), drafting = state
        window = send(drafting.window, target_home)
        x, lower, sent = prefix(cache[:exit_layer], progress, window)
        watch("target", "prefix", sent)
        choices, upper, progress, verdict, accepted, emitted = suffix(cache[exit_layer:], progress, x, window)
        watch("target", "suffix", choices)
        rolled, roots, rows = ahead(*drafting, send(sent, draft_home))
        watch("draft", "rollout", rolled)
        drafting, reused = choose(rows, rolled, roots, send(verdict, draft_home))
        watch("draft", "select", reused)
        return MirrorState(TargetState((*lower, *upper), progress), drafting), StepInfo(
            choices, emitted, accepted, reused
        )

    return DecodingMethod(init, step, window, target.network.config.vocab_size)


@partial(jax.jit, static_argnames=("network", "policy", "num_candidates"), donate_argnames="cache")
def draft_rollout(
    network: Network,
    policy: Policy,
    num_candidates: int,
    params: Params,
    cache: Cache,
    window: Array,
    position: Array,
    received: Array,
) -> tuple[Array, Roots, Cache]:
    """Ranks the candidates of the packed message and rolls out the chosen branches, γ tokens each."""
    roots = policy(unpack(received, message_like(window.shape[0], window.shape[1], num_candidates)))
    pending = Pending(window[:, -1], position + window.shape[1])
    at = Pending(roots.tokens, position[:, None] + roots.accepted + 1)
    rolled, cache = rollout(network, params, cache, at, window.shape[1], pending)
    return rolled, roots, cache


@partial(jax.jit, static_argnames="network", donate_argnames="cache")
def draft_select(
    network: Network, params: Params, cache: Cache, rolled: Array, roots: Roots, received: Array
) -> tuple[DraftState, Array]:
    """The branch that came true becomes the next window; where none did, a fresh rollout does."""
    verdict = unpack(received, verdict_like(received.shape[0]))
    hit = (roots.accepted == verdict.num_accepted[:, None]) & (roots.tokens == verdict.next_token[:, None])
    reused, chosen = jnp.any(hit, axis=1), take(rolled, cache, jnp.argmax(hit, axis=1))
    root = Pending(verdict.next_token[:, None], verdict.position[:, None])

    def fall_back(_: None) -> Drafted:
        fresh = take(*rollout(network, params, cache, root, rolled.shape[2]), jnp.zeros_like(verdict.position))
        return jax.tree.map(lambda old, new: jnp.where(_like(reused, old), old, new), chosen, fresh)

    following = jax.lax.cond(jnp.all(reused), lambda _: chosen, fall_back, None)
    window, cache = commit(cache, following, verdict.position)
    return DraftState(cache, window, verdict.position), reused


def _like(flags: Array, array: Array) -> Array:
    """Flags [B] with as many axes as ``array``."""
    return flags.reshape(-1, *(1,) * (array.ndim - 1))
