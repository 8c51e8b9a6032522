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

from jaxspec.devices.channel import Channel, channel_between
from jaxspec.devices.processes import Program, is_local, only_local, put, running
from jaxspec.devices.sharding import Placement, default_placement, put_model
from jaxspec.drafts.plain import Window
from jaxspec.methods import candidates
from jaxspec.methods.candidates import Policy
from jaxspec.methods.checks import (
    check_branches,
    check_candidates,
    check_exit,
    check_meshes,
    check_pair,
    check_processes,
)
from jaxspec.methods.draft_side import (
    Drafter,
    DraftState,
    Rolled,
    draft_ahead,
    draft_begin,
    draft_rollout,
    draft_select,
)
from jaxspec.methods.fallbacks import Fallback, Full
from jaxspec.methods.protocol import DecodingMethod, Watch, method_of, unwatched
from jaxspec.models.base import Model
from jaxspec.models.vocabulary import fitted
from jaxspec.verify.acceptance import Acceptance, match
from jaxspec.verify.exits import LogitLens
from jaxspec.verify.target import Request, StepInfo, TargetState, prefill, target_prefix, target_suffix, target_whole


class MirrorState(NamedTuple):
    """Both sides, which meet only through the token channel, and the window to verify next, on the target's mesh."""

    target: TargetState
    draft: DraftState
    window: Window


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
        draft: a model with the target's tokenizer (``vocabulary.fitted``).
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
            model, meshes that overlap in part, more branches than anybody can mean.

    Source: Bhendawade et al., Mirror Speculative Decoding (arXiv 2510.13161), §3.
    """
    window = check_pair(target, draft, window)
    draft = fitted(target, draft)
    exit_layer = max(1, target.network.config.num_layers // 2) if exit_layer is None else exit_layer
    where, rule, policy = placement or default_placement(), acceptance or match(), policy or candidates.mirror()
    exit = LogitLens() if exit is None else exit
    exit_layer, num_candidates = check_exit(target, exit_layer, num_candidates, exit)
    check_processes(where.target, where.draft)
    check_meshes(where.target, where.draft)
    if policy.ahead is not None:
        check_candidates(target, policy.num_candidates)
    network, target_params, target_home, target_shared = put_model(target, where.target)
    drafter, draft_params, draft_home, _ = put_model(draft, where.draft)
    head = put(exit, target_shared, where.target)
    side = Drafter(drafter, rule, policy, num_candidates, fallback)
    branches = sum(side.branches(window))
    check_branches(policy, branches, window, num_candidates)
    on_target, on_draft = running(where.target), running(where.draft)
    programs = Programs(
        on_target(partial(target_prefix, network, exit_layer, num_candidates), target_params, head),
        on_target(partial(target_suffix, network, exit_layer, rule), target_params),
        on_target(partial(target_whole, network, rule), target_params),
        on_draft(partial(draft_ahead, side), draft_params),
        on_draft(partial(draft_rollout, side), draft_params),
        on_draft(partial(draft_select, side), draft_params),
    )
    channel, scratch = channel_between(where.target, where.draft), window * max(1, branches)

    def init(request: Request, capacity: int) -> MirrorState:
        read = on_target(partial(prefill, network, capacity=capacity), target_params)
        begin = on_draft(partial(draft_begin, side, window, capacity + scratch), draft_params)
        state, drafting = read(put(request, target_home, where.target)), begin(put(request, draft_home, where.draft))
        return MirrorState(state, drafting, channel.to_target(drafting.standing.window)[0])

    step = _step(programs, exit_layer, policy, channel, where)
    sizes = window, num_candidates, exit_layer, policy, fallback

    def check_peers(call: Any) -> None:
        channel.check_peers((sizes, call))

    return method_of(target, init, step, window, where.target, where.draft)._replace(check_peers=check_peers)


class Programs(NamedTuple):
    """The programs of a step, closed over what does not change; those of another process give shapes alone."""

    prefix: Program
    suffix: Program
    whole: Program
    ahead: Program
    rollout: Program
    select: Program


def _step(
    programs: Programs, exit_layer: int, policy: Policy, channel: Channel, where: Placement
) -> Callable[..., tuple[MirrorState, StepInfo]]:
    ahead, exits = policy.ahead is not None, policy.exit is not None
    target_here, draft_here = is_local(where.target), is_local(where.draft)
    local = target_here and draft_here
    # A copy to another platform waits for its program here, and would hold back the suffix. Between processes the
    # crossing is a program itself, which would wait its turn behind the suffix.
    late = local and len({mesh.devices.flat[0].platform for mesh in where}) > 1

    def step(state: MirrorState, watch: Watch = unwatched) -> tuple[MirrorState, StepInfo]:
        (cache, progress), (rows, standing), (window, law) = state
        watch = watch if local else only_local(watch)
        rolled: Rolled | None = None
        if exits:
            x, lower, sent = programs.prefix(cache[:exit_layer], progress, window)
            watch("target", "prefix", sent)
        else:
            cache, progress, verdict, packed = programs.whole(cache, progress, window, law)
            watch("target", "whole", packed)
        if ahead:
            rolled, rows = programs.ahead(rows, standing)
            watch("draft", "ahead", rolled)
        if exits:
            message = None if late else channel.to_draft(sent)[0]
            upper, progress, verdict, packed = programs.suffix(cache[exit_layer:], progress, x, window, law, sent)
            message = channel.to_draft(sent)[0] if late else message
            watch("target", "suffix", packed)
            cache = (*lower, *upper)
            rolled, rows = programs.rollout(rows, standing, rolled, message)
            watch("draft", "rollout", rolled)
        verdict, packed = channel.to_draft(verdict, packed)
        if not target_here:
            watch("target", "suffix" if exits else "whole", packed)
        drafting, reused = programs.select(rows, standing, rolled, verdict)
        watch("draft", "select", reused)
        following, reused = channel.to_target(drafting.standing.window, reused)
        if not draft_here:
            watch("draft", "select", reused)
        return MirrorState(TargetState(cache, progress), drafting, following), StepInfo(packed, reused)

    return step
