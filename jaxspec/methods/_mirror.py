"""Mirror speculative decoding: the draft rolls out likely next windows while the target finishes verifying.

One step is three compiled programs on two meshes and two messages between them:

    target:  prefix ──► suffix ──────────────► verdict
                │ message                        │ verdict
    draft:      └─► rollout of R branches ───────┴─► select ─► next window

The policy decides what is rolled out, and when. Where it ranks the draft's own candidates, a rollout begins with the
step; where it does not rank the exit's, prefix and suffix are one program. A draft that reads hidden states of the
target gets those up to the exit with the message, the others with the verdict. One thread enqueues everything; the
programs overlap where the meshes are disjoint.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from jaxspec.devices.channel import Channel, channel_between
from jaxspec.devices.processes import Program, is_local, only_local, put, running
from jaxspec.devices.sharding import Placement, batch_sharding, default_placement, put_model
from jaxspec.drafts.base import Draft
from jaxspec.drafts.records import Window
from jaxspec.methods import candidates
from jaxspec.methods.candidates import Policy
from jaxspec.methods.checks import (
    check_branches,
    check_candidates,
    check_exit,
    check_fallback,
    check_meshes,
    check_pair,
    check_processes,
)
from jaxspec.methods.draft_side import (
    DraftSide,
    DraftState,
    draft_ahead,
    draft_begin,
    draft_rollout,
    draft_select,
    simplified,
)
from jaxspec.methods.fallbacks import Fallback, Full
from jaxspec.methods.protocol import DecodingMethod, Watch, method_of, unwatched
from jaxspec.models.base import Model, Params
from jaxspec.verify.acceptance import Acceptance, match
from jaxspec.verify.exits import LogitLens
from jaxspec.verify.features import Reads
from jaxspec.verify.info import StepInfo
from jaxspec.verify.programs import target_prefix, target_suffix, target_whole
from jaxspec.verify.target import Request, Target, TargetState, prefill


class MirrorState(NamedTuple):
    """The states of both meshes, which only the token channel joins, and the next window, on the target's mesh."""

    target: TargetState
    draft: DraftState
    window: Window


def mirror(
    target: Model,
    draft: Model | Draft,
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
    """Decode by Mirror-SD: lossless, with the next window drafted during the target's suffix if a branch is right.

    T_step = T_prefix + T_message + max(T_suffix, T_rollout) + T_verdict (+ T_draft if no branch was right)

    Args:
        target: network and parameters whose text comes out.
        draft: a model with the target's tokenizer (``fit_vocabulary``), or a ``Draft`` of another kind.
        window: γ, tokens drafted a step.
        num_candidates: κ, exit tokens sent for each position.
        exit_layer: ℓₑ, layers in the prefix; default N/2. At N it is the oracle, and no suffix is left.
        exit: exit head; default ``LogitLens()``.
        policy: what is rolled out ahead; default ``candidates.mirror()``, all (γ+1)·κ of the exit's candidates.
        placement: target and draft mesh; default: the first two devices.
        acceptance: ``jaxspec.acceptance.match()`` (default) or ``ratio()``.
        fallback: what is drafted where no branch was right: ``fallbacks.Full()`` (default), ``Short`` or ``NGram``.

    Raises:
        ValueError: vocabularies differ, window or num_candidates < 1, exit layer out of range, an exit head of another
            model, meshes that overlap in part, more than 512 branches without an explicit budget.

    Source: Bhendawade et al., Mirror Speculative Decoding (arXiv 2510.13161), §3.
    """
    made, window = check_pair(target, draft, window)
    exit_layer = max(1, target.network.config.num_layers // 2) if exit_layer is None else exit_layer
    where, policy = placement or default_placement(), policy or candidates.mirror()
    exit = LogitLens() if exit is None else exit
    exit_layer, num_candidates = check_exit(target, exit_layer, num_candidates, exit)
    check_processes(where.target, where.draft)
    check_meshes(where.target, where.draft)
    check_fallback(made.drafter, fallback)
    policy = simplified(policy, made.drafter, window, num_candidates)
    if policy.uses_own:
        kappa = check_candidates(target, policy.num_candidates, "num_candidates of the policy")
        policy = replace(policy, num_candidates=kappa)
    network, target_params, _, target_shared = put_model(target, where.target)
    drafter, draft_params = made.drafter.put_on_mesh(made.params, where.draft)
    rule = acceptance or match()
    side = DraftSide(drafter, rule, policy, num_candidates, fallback)
    check_branches(policy, sum(side.branches(window)), window, num_candidates)
    sides = Target(network, rule, drafter.reader()), side
    on_target = put((exit, drafter.fusion(made.params)), target_shared, where.target)
    parts = Placed(target_params, draft_params, *on_target)
    channel = channel_between(where.target, where.draft)
    sizes = window, num_candidates, exit_layer, policy, fallback, drafter.reads

    def check_peers(call: Any) -> None:
        channel.check_peers((sizes, call))

    step = _step(_programs(sides, parts, exit_layer, where), exit_layer, policy, channel, where)
    init = _init(sides, parts, window, channel, where)
    return method_of(target, init, step, window, where.target, where.draft)._replace(check_peers=check_peers)


class Placed(NamedTuple):
    """Parameters: of the target, of the draft, of the exit, and what the target fuses a draft's features with."""

    target: Params
    draft: Params
    exit: Any
    fusion: Params


def _init(
    sides: tuple[Target, DraftSide], parts: Placed, window: int, channel: Channel, where: Placement
) -> Callable[[Request, int], MirrorState]:
    """Return the function that runs the prompts on both sides and sends the first window to the target."""
    target, side = sides
    homes = [batch_sharding(mesh) for mesh in where]

    def init(request: Request, capacity: int) -> MirrorState:
        fixed = partial(prefill, target.network, capacity=capacity, reader=target.reader, fusion=parts.fusion)
        read = running(where.target)(fixed, parts.target)
        begin = running(where.draft)(partial(draft_begin, side, window, capacity), parts.draft)
        state, features = read(put(request, homes[0], where.target))
        if target.reads != Reads():
            features = channel.to_draft(features)[0]
        drafting = begin(put(request, homes[1], where.draft), features)
        return MirrorState(state, drafting, channel.to_target(drafting.standing.window)[0])

    return init


class Programs(NamedTuple):
    """The programs of a step, closed over what does not change; those of another process give shapes alone."""

    prefix: Program
    suffix: Program
    whole: Program
    ahead: Program
    rollout: Program
    select: Program


def _programs(sides: tuple[Target, DraftSide], parts: Placed, exit_layer: int, where: Placement) -> Programs:
    (target, side), (target_params, draft_params, head, fusion) = sides, parts
    on_target, on_draft = running(where.target), running(where.draft)
    return Programs(
        on_target(partial(target_prefix, target, exit_layer, side.num_candidates), target_params, head, fusion),
        on_target(partial(target_suffix, target, exit_layer), target_params, fusion),
        on_target(partial(target_whole, target), target_params, fusion),
        on_draft(partial(draft_ahead, side), draft_params),
        on_draft(partial(draft_rollout, side), draft_params),
        on_draft(partial(draft_select, side), draft_params),
    )


def _step(
    programs: Programs, exit_layer: int, policy: Policy, channel: Channel, where: Placement
) -> Callable[..., tuple[MirrorState, StepInfo]]:
    exits = policy.exit is not None
    target_here, draft_here = is_local(where.target), is_local(where.draft)
    local = target_here and draft_here
    # A copy to another platform waits for its program here, and would delay the suffix. Between processes the
    # crossing is a program itself, which would wait its turn behind the suffix.
    late = local and len({mesh.devices.flat[0].platform for mesh in where}) > 1

    def step(state: MirrorState, watch: Watch = unwatched) -> tuple[MirrorState, StepInfo]:
        (cache, progress), (rows, standing), (window, probabilities) = state
        watch = watch if local else only_local(watch)
        rolled, ahead, early = None, None, None
        if exits:
            half, lower, *message = programs.prefix(cache[:exit_layer], progress, window)
            watch("target", "prefix", message[0])
        else:
            cache, progress, verdict, packed, features = programs.whole(cache, progress, window, probabilities)
            watch("target", "whole", packed)
        if policy.ahead is not None:
            ahead, rows = programs.ahead(rows, standing)
            rolled = ahead.rolled
            watch("draft", "ahead", rolled)
        if exits:
            sent = message[0]
            message = message if late else channel.to_draft(message)[0]
            upper, progress, verdict, packed, features = programs.suffix(
                cache[exit_layer:], progress, half, window, probabilities, sent
            )
            received, early = channel.to_draft(message)[0] if late else message
            watch("target", "suffix", packed)
            cache = (*lower, *upper)
            rolled, rows = programs.rollout(rows, standing, ahead, received, early)
            watch("draft", "rollout", rolled)
        (verdict, features), packed = channel.to_draft((verdict, features), packed)
        if not target_here:
            watch("target", "suffix" if exits else "whole", packed)
        drafting, reused = programs.select(rows, standing, rolled, verdict, (early, features))
        watch("draft", "select", reused)
        following, reused = channel.to_target(drafting.standing.window, reused)
        if not draft_here:
            watch("draft", "select", reused)
        return MirrorState(TargetState(cache, progress), drafting, following), StepInfo(packed, reused)

    return step
