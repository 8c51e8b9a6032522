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

import jax.numpy as jnp

from jaxspec import candidates
from jaxspec.acceptance import Acceptance, match
from jaxspec.candidates import Policy
from jaxspec.channel import send
from jaxspec.checks import check_candidates, check_exit, check_meshes, check_pair
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
from jaxspec.drafting import Drafter, DraftState, Rolled, Standing, draft_ahead, draft_rollout, draft_select
from jaxspec.drafts import first_window
from jaxspec.exits import LogitLens
from jaxspec.fallbacks import Fallback, Full
from jaxspec.sharding import Home, Placement, default_placement, place
from jaxspec.types import Model, Params


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
    fallback: Fallback = Full(),
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
        fallback: what is drafted where no branch came true: ``fallbacks.Full()`` (default), ``Short`` or ``NGram``.

    Raises:
        ValueError: vocabularies differ, window or num_candidates < 1, exit layer out of range, an exit head of another
            model, meshes that overlap in part.

    Source: Bhendawade et al., Mirror Speculative Decoding (arXiv 2510.13161), §3.
    """
    check_pair(target, draft, window)
    exit_layer = max(1, target.network.config.num_layers // 2) if exit_layer is None else exit_layer
    where, rule, policy = placement or default_placement(), acceptance or match(), policy or candidates.mirror()
    exit = LogitLens() if exit is None else exit
    check_exit(target, exit_layer, num_candidates, exit)
    check_meshes(where.target, where.draft)
    if policy.ahead is not None:
        check_candidates(target, policy.num_candidates)
    network, target_params, target_home, target_shared = place(target, where.target)
    drafter, draft_params, draft_home, _ = place(draft, where.draft)
    head = send(exit, target_shared)
    programs = Programs(
        partial(target_prefix, network, exit_layer, num_candidates, target_params, head),
        partial(target_suffix, network, exit_layer, rule, target_params),
        partial(target_whole, network, rule, target_params),
    )
    side = Drafter(drafter, rule, policy, num_candidates, fallback)
    scratch = window * max(1, sum(side.branches(window)))

    def init(request: Request, capacity: int) -> MirrorState:
        state = prefill(network, target_params, send(request, target_home), capacity)
        asked = send(request, draft_home)
        room = capacity + scratch
        first, others, cache = first_window(drafter, rule, draft_params, asked, window, room, side.noted)
        text = jnp.pad(asked.tokens, ((0, 0), (0, room - asked.tokens.shape[1]))) if fallback.reads_text else None
        standing = Standing(first, others, asked.lengths - 1, asked.sampling, asked.seen, text)
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
            watch("target", "prefix", sent)
        else:
            cache, progress, verdict, packed = programs.whole(cache, progress, window, law)
            watch("target", "whole", packed)
        if ahead:
            rolled, rows = draft_ahead(side, params, rows, standing)
            watch("draft", "ahead", rolled)
        if exits:
            upper, progress, verdict, packed = programs.suffix(cache[exit_layer:], progress, x, window, law)
            watch("target", "suffix", packed)
            cache = (*lower, *upper)
            rolled, rows = draft_rollout(side, params, rows, standing, rolled, send(sent, draft_home))
            watch("draft", "rollout", rolled)
        drafting, reused = draft_select(side, params, rows, standing, rolled, send(verdict, draft_home))
        watch("draft", "select", reused)
        return MirrorState(TargetState(cache, progress), drafting), StepInfo(packed, reused)

    return step
