"""Speculative decoding: draft a window or a tree, verify it in one pass, draft the next one after the verdict.

``lookup`` is the same without a draft.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
from jax.sharding import Mesh

from jaxspec.devices.channel import send
from jaxspec.devices.sharding import put_model
from jaxspec.drafts.base import Draft
from jaxspec.drafts.beginning import first_tree, first_window
from jaxspec.drafts.ngram import SIZES, prompt_lookup, verified_width
from jaxspec.drafts.trees import TreePolicy
from jaxspec.methods.checks import check_pair, check_processes, check_tree
from jaxspec.methods.one_program import Fixed, SpeculativeState, tree_step, window_step
from jaxspec.methods.protocol import DecodingMethod, Watch, method_of, unwatched
from jaxspec.models.base import Model
from jaxspec.verify.acceptance import Acceptance, match
from jaxspec.verify.info import StepInfo
from jaxspec.verify.target import Request, Target, prefill


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
            state, info = tree_step(fixed, params, state)
        else:
            width = verified_width(np.asarray(state.window.tokens)) if fits else window
            state, info = window_step(fixed, params, state, width)
        watch("target", "step", info)
        return state, info

    return method_of(target, init, step, window, mesh)


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
