"""Vanilla speculative decoding: draft a window, verify it in one pass, draft the next one after the verdict."""

from functools import partial
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from jaxspec.devices.channel import send
from jaxspec.devices.sharding import put_model
from jaxspec.drafts.branches import Pending, Proposer
from jaxspec.drafts.plain import Window, drafted_next, first_window
from jaxspec.methods.checks import check_pair, check_processes
from jaxspec.methods.protocol import DecodingMethod, Watch, method_of, unwatched
from jaxspec.models.base import Cache, Model, Network, Params
from jaxspec.models.vocabulary import fitted
from jaxspec.verify.acceptance import Acceptance, match
from jaxspec.verify.target import Request, StepInfo, TargetState, advance, prefill, prefix_pass, suffix_pass


class SpeculativeState(NamedTuple):
    """Target state, the draft's rows, and the window to verify next."""

    target: TargetState
    draft_cache: Cache
    window: Window


def speculative(
    target: Model, draft: Model, window: int = 7, mesh: Mesh | None = None, *, acceptance: Acceptance | None = None
) -> DecodingMethod:
    """Drafts γ tokens, verifies them in one target pass, keeps what is accepted and the target's next token.

    The whole step, drafting included, is one compiled program on one mesh. Under ``match`` the output equals that of
    plain decoding with the same seed, token for token; under ``ratio`` its law does.

    Args:
        target: network and parameters whose text comes out.
        draft: a model with the target's tokenizer (``vocabulary.fitted``).
        window: γ, tokens drafted a step.
        mesh: where both run. Default: the first device.
        acceptance: ``jaxspec.acceptance.match()`` (default) or ``ratio()``.

    Raises:
        ValueError: vocabularies differ, ``window`` < 1, a mesh of another process, or one that does not divide a model.

    Source: Leviathan et al. (arXiv 2211.17192).
    """
    check_processes(mesh)
    window = check_pair(target, draft, window)
    draft = fitted(target, draft)
    rule, (network, target_params, home, _) = acceptance or match(), put_model(target, mesh)
    drafter, draft_params, _, _ = put_model(draft, mesh)

    def init(request: Request, capacity: int) -> SpeculativeState:
        request = send(request, home)
        state = prefill(network, target_params, request, capacity)
        first, _, cache = first_window(drafter, rule, draft_params, request, window, capacity + window)
        return SpeculativeState(state, cache, first)

    def step(state: SpeculativeState, watch: Watch = unwatched) -> tuple[SpeculativeState, StepInfo]:
        state, info = _step((network, drafter), rule, target_params, draft_params, state)
        watch("target", "step", info)
        return state, info

    return method_of(target, init, step, window, mesh)


@partial(jax.jit, static_argnames=("networks", "acceptance"), donate_argnames="state")
def _step(
    networks: tuple[Network, Network],
    acceptance: Acceptance,
    target_params: Params,
    draft_params: Params,
    state: SpeculativeState,
) -> tuple[SpeculativeState, StepInfo]:
    (target, draft), (window, law), old = networks, state.window, state.target.progress
    count = target.config.num_layers
    x, cache = prefix_pass(target, target_params, state.target.cache, old, window, count)
    choices, _ = suffix_pass(target, target_params, (), old, x, count, window, law, acceptance)
    progress, verdict, emitted = advance(old, window, choices.tokens)
    pending = Pending(window[:, -1], old.position + window.shape[1])
    root = Pending(verdict.next_token, verdict.position)
    proposer = Proposer(acceptance, progress.sampling, progress.seen)
    following, _, rows = drafted_next(draft, draft_params, state.draft_cache, root, window.shape[1], proposer, pending)
    info = StepInfo(choices.packed(window, verdict, emitted))
    return SpeculativeState(TargetState(cache, progress), rows, following), info
