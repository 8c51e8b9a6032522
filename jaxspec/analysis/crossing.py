"""What crosses between the meshes in a step of Mirror-SD: shapes and bytes, for any pair, without running it."""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxspec.drafts import Draft, Window, draft_for
from jaxspec.methods import DecodeSpec
from jaxspec.methods.candidates import Policy
from jaxspec.methods.draft_side import DraftSide, draft_begin
from jaxspec.models.base import Model, Params
from jaxspec.verify.acceptance import match
from jaxspec.verify.exits import LogitLens
from jaxspec.verify.programs import target_prefix, target_suffix, target_whole
from jaxspec.verify.target import Request, Target, prefill


class Crossing(NamedTuple):
    """Arrays that cross, or their shapes; None for what does not.

    Attributes:
        message: the exit's candidates, packed; None for a policy that does not rank them.
        early: what a draft reads of the target, as far as it is known at the exit: [B, γ+1, D'].
        verdict: packed.
        late: what it reads beside, with the verdict.
        window: the next one, to the target.
        prompts: what it reads of the prompts, once: [B, P, D'].
    """

    message: Any
    early: Any
    verdict: Any
    late: Any
    window: Window
    prompts: Any

    @property
    def bytes(self) -> "StepBytes":
        """Bytes of a step."""
        return StepBytes(*map(_num_bytes, self[:5]))


class StepBytes(NamedTuple):
    """Bytes that cross in a step.

    Attributes:
        candidates: the exit's message, to the draft.
        early_features: hidden states, fused, with the message.
        verdict: to the draft.
        late_features: hidden states with the verdict.
        window: the next one, to the target.
    """

    candidates: int
    early_features: int
    verdict: int
    late_features: int
    window: int

    @property
    def largest(self) -> int:
        """Bytes of the largest of the transfers."""
        return max(self.candidates + self.early_features, self.verdict + self.late_features, self.window)


def step_arrays(
    target: Target, side: DraftSide, params: tuple[Params, Params], request: Request, window: int, exit_layer: int
) -> Crossing:
    """Return the shapes of what crosses in a step after a request.

    Args:
        target: what is fixed about the target.
        side: what is fixed about the draft's side.
        params: of the target and of the draft, or their shapes.
        request: prompts, or their shapes.
        window: γ.
        exit_layer: ℓₑ.
    """
    (of_target, of_draft), capacity = params, request.tokens.shape[1] + 2 * (window + 1)
    fusion = jax.eval_shape(side.drafter.fusion, of_draft)
    start = partial(prefill, target.network, capacity=capacity, reader=target.reader)
    (cache, progress), prompts = jax.eval_shape(start, of_target, request, fusion=fusion)
    begun = jax.eval_shape(partial(draft_begin, side, window, capacity), of_draft, request, prompts)
    drawn: Window = begun.standing.window
    if side.policy.exit is None:
        whole = partial(target_whole, target)
        _, _, verdict, _, late = jax.eval_shape(whole, of_target, fusion, cache, progress, *drawn)
        return Crossing(None, None, verdict, late, drawn, prompts)
    prefix = partial(target_prefix, target, exit_layer, side.num_candidates)
    lower = of_target, LogitLens(), fusion, cache[:exit_layer], progress, drawn.tokens
    half, _, message, early = jax.eval_shape(prefix, *lower)
    upper = of_target, fusion, cache[exit_layer:], progress, half, *drawn, message
    _, _, verdict, _, late = jax.eval_shape(partial(target_suffix, target, exit_layer), *upper)
    return Crossing(message, early, verdict, late, drawn, prompts)


def step_bytes(target: Model, draft: Model | Draft, spec: DecodeSpec, batch: int = 1) -> StepBytes:
    """Return the bytes that cross between two meshes in a step; within a mesh nothing does.

    Decoding is greedy: tokens that are drawn under ``acceptance.ratio`` come with probabilities. Numbers have their own
    types; between two processes those of eight bits take four bytes.

    Args:
        target: network and parameters, or their shapes.
        draft: of any kind.
        spec: settings of Mirror-SD; the bytes do not depend on the exit head.
        batch: B.

    Raises:
        ValueError: settings of another method, or a draft that does not fit the target.
    """
    if spec.method != "mirror":
        raise ValueError(f"expected settings of mirror decoding, with a policy and a window, got {spec}")
    made = draft_for(target, draft)
    rule, count = spec.acceptance or match(), target.network.config.num_layers
    side = DraftSide(made.drafter, rule, spec.policy or Policy(), spec.num_candidates, spec.fallback)
    numbers: Any = jax.ShapeDtypeStruct((batch,), jnp.int32)
    request = Request(jax.ShapeDtypeStruct((batch, 2), jnp.int32), numbers, numbers)
    fixed = Target(target.network, rule, made.drafter.reader())
    layer = spec.exit_layer or max(1, count // 2)
    return step_arrays(fixed, side, (target.params, made.params), request, spec.window, layer).bytes


def _num_bytes(tree: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
