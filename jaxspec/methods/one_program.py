"""A step of speculative decoding as one compiled program: target and draft on the same devices, one after the other."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxspec.drafts.base import Drafter
from jaxspec.drafts.beginning import next_window
from jaxspec.drafts.proposer import Proposer
from jaxspec.drafts.records import Pending, Verification, Window
from jaxspec.drafts.trees import TreePolicy
from jaxspec.models.base import Params
from jaxspec.verify.info import StepInfo, step_record
from jaxspec.verify.target import Target, TargetState, advance, advanced, choose, prefix_pass, tree_pass


class Fixed(NamedTuple):
    """What is fixed about both sides; static in the compiled step."""

    target: Target
    drafter: Drafter
    policy: TreePolicy | None


class SpeculativeState(NamedTuple):
    """Target state, the drafter's own state, and the window to verify next."""

    target: TargetState
    draft: Any
    window: Window


@partial(jax.jit, static_argnames=("fixed", "width"), donate_argnames="state")
def window_step(
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
def tree_step(
    fixed: Fixed, params: tuple[Params, Params], state: SpeculativeState
) -> tuple[SpeculativeState, StepInfo]:
    """Verify a tree, keep its longest path that is right, and grow the next."""
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
