"""Vanilla speculative decoding: draft a window, verify it in one pass, draft the next one after the verdict."""

from functools import partial
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from jaxspec.devices.channel import send
from jaxspec.devices.sharding import place
from jaxspec.drafts.base import Draft, Drafter, Pending, Proposer, Verification, Window, first_window, next_window
from jaxspec.methods.checks import check_pair, check_processes
from jaxspec.methods.protocol import DecodingMethod, Watch, method_of, unwatched
from jaxspec.models.base import Model, Params
from jaxspec.verify.acceptance import Acceptance, match
from jaxspec.verify.info import StepInfo, step_record
from jaxspec.verify.target import Request, Target, TargetState, advance, choose, prefill, prefix_pass


class SpeculativeState(NamedTuple):
    """Target state, the drafter's own state, and the window to verify next."""

    target: TargetState
    draft: Any
    window: Window


def speculative(
    target: Model,
    draft: Model | Draft,
    window: int = 7,
    mesh: Mesh | None = None,
    *,
    acceptance: Acceptance | None = None,
) -> DecodingMethod:
    """Drafts γ tokens, verifies them in one target pass, keeps what is accepted and the target's next token.

    The whole step, drafting included, is one compiled program on one mesh. Under ``match`` the output equals that of
    plain decoding with the same seed, token for token; under ``ratio`` it has the same distribution.

    Args:
        target: network and parameters whose text comes out.
        draft: a model with the target's tokenizer (``fit_vocabulary``), or a ``Draft`` of another kind.
        window: γ, tokens drafted a step.
        mesh: where both run. Default: the first device.
        acceptance: ``jaxspec.acceptance.match()`` (default) or ``ratio()``.

    Raises:
        ValueError: vocabularies differ, ``window`` < 1, a mesh of another process, or one that does not divide a model.

    Source: Leviathan et al. (arXiv 2211.17192).
    """
    check_processes(mesh)
    made, window = check_pair(target, draft, window)
    network, target_params, home, _ = place(target, mesh)
    drafter, draft_params = made.drafter.place(made.params, mesh)
    fixed, params = (Target(network, acceptance or match(), drafter.reads), drafter), (target_params, draft_params)

    def init(request: Request, capacity: int) -> SpeculativeState:
        request = send(request, home)
        state, features = prefill(network, target_params, request, capacity, drafter.reads)
        begun = first_window(drafter, fixed[0].acceptance, draft_params, request, features, window, capacity)
        return SpeculativeState(state, begun[2], begun[0])

    def step(state: SpeculativeState, watch: Watch = unwatched) -> tuple[SpeculativeState, StepInfo]:
        state, info = _step(fixed, params, state)
        watch("target", "step", info)
        return state, info

    return method_of(target, init, step, window, mesh)


@partial(jax.jit, static_argnames="fixed", donate_argnames="state")
def _step(
    fixed: tuple[Target, Drafter], params: tuple[Params, Params], state: SpeculativeState
) -> tuple[SpeculativeState, StepInfo]:
    (target, drafter), (tokens, probabilities), old = fixed, state.window, state.target.progress
    x, cache, features = prefix_pass(target, params[0], state.target.cache, old, tokens, target.num_layers)
    choices = choose(target, params[0], old, x, tokens, probabilities)
    progress, verdict, emitted = advance(old, tokens, choices.tokens)
    verified = Verification(tokens, old.position, None, verdict.num_accepted, verdict.next_token, features)
    draft = drafter.absorb(params[1], state.draft, verified)
    root, proposer = Pending(verdict.next_token, verdict.position), Proposer(target.acceptance, progress.sampling)
    proposer = proposer._replace(seen=progress.seen)
    following, _, draft = next_window(drafter, params[1], draft, root, tokens.shape[1], proposer)
    info = StepInfo(step_record(choices, tokens, verdict, emitted))
    return SpeculativeState(TargetState(cache, progress), draft, following), info
