"""Speculative decoding: draft a window or a tree, verify it in one pass, draft the next one after the verdict.

``lookup`` is the same without a draft.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxspec.devices.channel import send
from jaxspec.devices.sharding import put_model
from jaxspec.drafts.base import Draft, Drafter
from jaxspec.drafts.beginning import first_tree, first_window, next_window
from jaxspec.drafts.ngram import SIZES, prompt_lookup, verified_width
from jaxspec.drafts.proposer import Proposer
from jaxspec.drafts.records import Pending, Verification, Window
from jaxspec.drafts.trees import TreePolicy
from jaxspec.methods.checks import check_pair, check_processes, check_tree
from jaxspec.methods.protocol import DecodingMethod, Watch, method_of, unwatched
from jaxspec.models.base import Model, Params
from jaxspec.verify.acceptance import Acceptance, match
from jaxspec.verify.info import StepInfo, step_record
from jaxspec.verify.target import (
    Request,
    Target,
    TargetState,
    advance,
    advanced,
    choose,
    prefill,
    prefix_pass,
    tree_pass,
)


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
    tree: TreePolicy | None = None,
) -> DecodingMethod:
    """Draft γ tokens, or a tree of them, verify all in one target pass, keep what is accepted and the next token.

    The whole step, drafting included, is one compiled program on one mesh. Under ``match`` the output equals that of
    plain decoding with the same seed, token for token; under ``ratio`` it has the same distribution.

    Args:
        target: network and parameters whose text comes out.
        draft: a model with the target's tokenizer (``fit_vocabulary``), or a ``Draft`` of another kind.
        window: γ, tokens drafted a step.
        mesh: where both run. Default: the first device.
        acceptance: ``jaxspec.acceptance.match()`` (default) or ``ratio()``.
        tree: of ``drafts.trees``, such as ``static((4, 2, 1))`` or ``dynamic()``; its depth replaces ``window``.

    Raises:
        ValueError: vocabularies differ, ``window`` < 1, a mesh of another process, or one that does not divide a model;
            a tree under ``ratio``, with more children than tokens, or from a draft that cannot grow one.

    Source: Leviathan et al. (arXiv 2211.17192); trees: SpecInfer (arXiv 2305.09781).
    """
    check_processes(mesh)
    made, window = check_pair(target, draft, window if tree is None else tree.max_depth)
    rule = acceptance or match()
    check_tree(target, made.drafter, rule, tree)
    network, target_params, home, _ = put_model(target, mesh)
    drafter, draft_params = made.drafter.put_on_mesh(made.params, mesh)
    fixed, params = Fixed(Target(network, rule, drafter.reader()), drafter, tree), (target_params, draft_params)
    fusion = drafter.fusion(draft_params)

    def init(request: Request, capacity: int) -> SpeculativeState:
        request = send(request, home)
        state, features = prefill(network, target_params, request, capacity, fixed.target.reader, fusion)
        begin = first_window if tree is None else partial(first_tree, policy=tree)
        first, _, own = begin(drafter, rule, draft_params, request, features, window, capacity)
        return SpeculativeState(state, own, first)

    # Only the host can choose the pass over a window: a branch in the program would copy the cache.
    fits = tree is None and drafter.may_be_empty and rule == match()

    def step(state: SpeculativeState, watch: Watch = unwatched) -> tuple[SpeculativeState, StepInfo]:
        if tree is not None:
            state, info = _tree_step(fixed, params, state)
        else:
            width = verified_width(np.asarray(state.window.tokens)) if fits else window
            state, info = _step(fixed, params, state, width)
        watch("target", "step", info)
        return state, info

    return method_of(target, init, step, window, mesh)


class Fixed(NamedTuple):
    """What is fixed about both sides; static in the compiled step."""

    target: Target
    drafter: Drafter
    policy: TreePolicy | None


def lookup(
    target: Model, window: int = 7, sizes: int | Sequence[int] = SIZES, mesh: Mesh | None = None
) -> DecodingMethod:
    """Decode without a draft: what followed the text's last tokens when they occurred before is verified as a window.

    A step that finds nothing is a step of plain decoding, one that finds little verifies little. The tokens are those
    of plain decoding with the same seed.

    Args:
        target: network and parameters.
        window: γ, tokens verified a step.
        sizes: how many last tokens must have occurred before; the first of several that have are taken.
        mesh: where it runs. Default: the first device.

    Raises:
        ValueError: a size or window below 1; what ``speculative`` refuses.

    Source: prompt lookup decoding (Saxena, 2023).
    """
    return speculative(target, prompt_lookup(sizes), window, mesh)._replace(trained=False)


@partial(jax.jit, static_argnames=("fixed", "width"), donate_argnames="state")
def _step(
    fixed: Fixed, params: tuple[Params, Params], state: SpeculativeState, width: int
) -> tuple[SpeculativeState, StepInfo]:
    """Verify the first ``width`` places of a window, behind which there is no token, and draft the next."""
    (target, drafter, _), (tokens, probabilities), old = fixed, state.window, state.target.progress
    window = tokens.shape[1]
    tokens = tokens[:, :width]
    x, cache, features = prefix_pass(target, params[0], state.target.cache, old, tokens, target.num_layers)
    choices = choose(target, params[0], old, x, tokens, probabilities)
    progress, verdict, emitted = advance(old, tokens, choices.tokens)
    sent = target.reader.sent(drafter.fusion(params[1]), features)
    verified = Verification(tokens, old.position, None, verdict.num_accepted, verdict.next_token, sent)
    draft = drafter.absorb(params[1], state.draft, verified)
    root = Pending(verdict.next_token, verdict.position)
    proposer = Proposer(target.acceptance, progress.sampling, progress.seen)
    following, _, draft = next_window(drafter, params[1], draft, root, window, proposer)
    info = StepInfo(step_record(choices, tokens, verdict, emitted))
    return SpeculativeState(TargetState(cache, progress), draft, following), info


@partial(jax.jit, static_argnames="fixed", donate_argnames="state")
def _tree_step(
    fixed: Fixed, params: tuple[Params, Params], state: SpeculativeState
) -> tuple[SpeculativeState, StepInfo]:
    (target, drafter, policy), old = fixed, state.target.progress
    assert policy is not None
    tree = policy.tree(state.window.tokens)
    choices, verdict, path, cache, features = tree_pass(target, params[0], state.target.cache, old, tree)
    progress, _, emitted = advanced(old, choices.tokens, verdict)
    window = jnp.take_along_axis(tree.tokens, path[:, 1:], axis=1)
    sent = target.reader.sent(drafter.fusion(params[1]), features)
    verified = Verification(window, old.position, None, verdict.num_accepted, verdict.next_token, sent, path)
    draft = drafter.absorb(params[1], state.draft, verified)
    root = Pending(verdict.next_token, verdict.position)
    proposer = Proposer(target.acceptance, progress.sampling, progress.seen)
    drawn, draft = drafter.grow(params[1], draft, root, policy, proposer)
    info = StepInfo(step_record(choices, tree.tokens, verdict, emitted))
    return SpeculativeState(TargetState(cache, progress), draft, Window(drawn, None)), info
