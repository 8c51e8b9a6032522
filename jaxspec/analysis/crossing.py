"""The programs of a step of Mirror-SD from shapes alone, and what crosses between the meshes, for any pair."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxspec.drafts import Draft, Window, draft_for
from jaxspec.drafts.base import Drafter
from jaxspec.methods import DecodeSpec
from jaxspec.methods.candidates import Policy
from jaxspec.methods.draft_side import DraftSide, DraftState, draft_begin
from jaxspec.models.base import Model, Params
from jaxspec.verify.acceptance import match
from jaxspec.verify.exits import LogitLens
from jaxspec.verify.programs import target_prefix, target_suffix, target_whole
from jaxspec.verify.sampling import SamplingArrays
from jaxspec.verify.target import Request, Target, TargetState, prefill


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


class StepSizes(NamedTuple):
    """Sizes of a step.

    Attributes:
        batch: B.
        prompt: tokens of a prompt, P.
        capacity: rows of a sequence's cache, S.
        window: γ.
        num_candidates: κ.
        exit_layer: ℓₑ; None: half of the target's layers.
        sampled: whether tokens are drawn, with all filters; else the most likely is taken.
    """

    batch: int = 1
    prompt: int = 256
    capacity: int = 4096
    window: int = 7
    num_candidates: int = 8
    exit_layer: int | None = None
    sampled: bool = False

    def request(self) -> Request:
        """Return the shapes of prompts, and of how their tokens are drawn."""
        each: Any = lambda dtype: jax.ShapeDtypeStruct((self.batch,), dtype)  # noqa: E731
        real = each(jnp.float32)
        drawn = SamplingArrays(each(jnp.uint32), real, each(jnp.int32), real, real, real)
        prompts = jax.ShapeDtypeStruct((self.batch, self.prompt), jnp.int32)
        return Request(prompts, each(jnp.int32), each(jnp.int32), drawn if self.sampled else None)


class PairParams(NamedTuple):
    """Parameters, or their shapes: of the target, of the draft, and what the target fuses a draft's features with."""

    target: Params
    draft: Params
    fusion: Params

    @classmethod
    def of(cls, target: Params, draft: Params, drafter: Drafter) -> "PairParams":
        """Return those of a pair; the target's part of the draft's are shapes."""
        return cls(target, draft, jax.eval_shape(drafter.fusion, draft))


class Tracing(NamedTuple):
    """How the programs of a step are traced, or compiled, in order.

    Attributes:
        run: (name, jitted function, arguments) → shapes of its outputs.
        on_target: shapes, put on the target's mesh.
        on_draft: shapes, put on the draft's mesh.
    """

    run: Callable[..., Any] = lambda name, program, *arguments: program.eval_shape(*arguments)
    on_target: Callable[[Any], Any] = lambda tree: tree
    on_draft: Callable[[Any], Any] = lambda tree: tree


class StepShapes(NamedTuple):
    """Shapes after the prompts, and of what crosses in the step that follows."""

    target: TargetState
    draft: DraftState
    crossing: Crossing


_begin = jax.jit(draft_begin, static_argnums=(0, 1, 2))


def step_shapes(
    target: Target, side: DraftSide, parts: PairParams, request: Request, sizes: StepSizes, tracing: Tracing = Tracing()
) -> StepShapes:
    """Trace the prompts' programs and those of a step whose outputs cross; no program is run.

    Args:
        target: what is fixed about the target.
        side: what is fixed about the draft's side.
        parts: parameters, or their shapes.
        request: prompts, or their shapes.
        sizes: capacity, window and exit; the other sizes are those of ``request`` and ``side``.
        tracing: what is done with each program; by default its shapes are evaluated.
    """
    run, on_target, on_draft = tracing
    start = target.network, parts.target, on_target(request), sizes.capacity, target.reader, parts.fusion
    state, prompts = run("prefill", prefill, *start)
    first = side, sizes.window, sizes.capacity, parts.draft, on_draft(request), on_draft(prompts)
    drafting = run("first_window", _begin, *first)
    drawn: Window = on_target(drafting.standing.window)
    if side.policy.exit is None:
        whole = target, parts.target, parts.fusion, state.cache, state.progress, *drawn
        _, _, verdict, _, late = run("whole", target_whole, *whole)
        return StepShapes(state, drafting, Crossing(None, None, verdict, late, drawn, prompts))
    layer = sizes.exit_layer or max(1, target.num_layers // 2)
    lower = parts.target, LogitLens(), parts.fusion, state.cache[:layer], state.progress, drawn.tokens
    half, _, message, early = run("prefix", target_prefix, target, layer, side.num_candidates, *lower)
    upper = parts.target, parts.fusion, state.cache[layer:], state.progress, half, *drawn, message
    _, _, verdict, _, late = run("suffix", target_suffix, target, layer, *upper)
    return StepShapes(state, drafting, Crossing(message, early, verdict, late, drawn, prompts))


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
    rule = spec.acceptance or match()
    side = DraftSide(made.drafter, rule, spec.policy or Policy(), spec.num_candidates, spec.fallback)
    capacity = 2 * spec.window + 4
    sizes = StepSizes(batch, 2, capacity, spec.window, spec.num_candidates, spec.exit_layer)
    fixed = Target(target.network, rule, made.drafter.reader())
    parts = PairParams.of(target.params, made.params, made.drafter)
    return step_shapes(fixed, side, parts, sizes.request(), sizes).crossing.bytes


def _num_bytes(tree: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
