"""Vanilla speculative decoding: draft a window, verify it in one pass, draft the next one after the verdict."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxspec.channel import send
from jaxspec.checks import check_pair
from jaxspec.decoding import (
    DecodingMethod,
    StepInfo,
    TargetState,
    Watch,
    advance,
    prefill,
    prefix_pass,
    suffix_pass,
    unwatched,
)
from jaxspec.drafts import Pending, drafted_next, first_window
from jaxspec.sharding import place
from jaxspec.types import Array, Cache, Model, Network, Params


class SpeculativeState(NamedTuple):
    """Target state, the draft's rows, and the window to verify next [B, γ]."""

    target: TargetState
    draft_cache: Cache
    window: Array


def speculative(target: Model, draft: Model, window: int = 7, mesh: Mesh | None = None) -> DecodingMethod:
    """Drafts γ tokens, verifies them in one target pass, keeps the matching prefix and the target's next token.

    The whole step, drafting included, is one compiled program on one mesh. Greedy output equals plain greedy decoding.

    Args:
        target: network and parameters whose text comes out.
        draft: a model over the same vocabulary.
        window: γ, tokens drafted a step.
        mesh: where both run. Default: the first device.

    Raises:
        ValueError: vocabularies differ, or ``window`` < 1.

    Source: Leviathan et al. (arXiv 2211.17192), with sample-and-match verification.
    """
    check_pair(target, draft, window)
    networks = target.network, draft.network
    (target_params, home), (draft_params, _) = place(target, mesh), place(draft, mesh)

    def init(tokens: Array, lengths: Array, max_new_tokens: int, capacity: int) -> SpeculativeState:
        tokens, lengths = send((tokens, lengths), home)
        state = prefill(networks[0], target_params, tokens, lengths, jnp.int32(max_new_tokens), capacity)
        first, cache = first_window(networks[1], draft_params, tokens, lengths, window, capacity + window)
        return SpeculativeState(state, cache, first)

    def step(state: SpeculativeState, watch: Watch = unwatched) -> tuple[SpeculativeState, StepInfo]:
        state, info = _step(networks, target_params, draft_params, state)
        watch("target", "step", info)
        return state, info

    return DecodingMethod(init, step, window, target.network.config.vocab_size)


@partial(jax.jit, static_argnames="networks", donate_argnames="state")
def _step(
    networks: tuple[Network, Network], target_params: Params, draft_params: Params, state: SpeculativeState
) -> tuple[SpeculativeState, StepInfo]:
    (target, draft), window, old = networks, state.window, state.target.progress
    count = target.config.num_layers
    x, cache = prefix_pass(target, target_params, state.target.cache, old, window, count)
    choices, _ = suffix_pass(target, target_params, (), old, x, count)
    progress, verdict, emitted = advance(old, window, choices)
    pending = Pending(window[:, -1], old.position + window.shape[1])
    root = Pending(verdict.next_token, verdict.position)
    following, rows = drafted_next(draft, draft_params, state.draft_cache, root, window.shape[1], pending)
    info = StepInfo(choices, emitted, verdict.num_accepted, jnp.zeros(emitted.shape, bool))
    return SpeculativeState(TargetState(cache, progress), rows, following), info
