"""Compile a step of Mirror-SD for devices that are not here: does it fit, what does it move, how long may it take?

Models are shapes (``shapes_of``), devices a topology (``devices.chips.topology``). Times are estimates, of the compiler
and of bytes over bandwidth; nothing is run.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxspec.analysis.compiling import CompiledProgram, Compiling
from jaxspec.analysis.cost import ProgramTimes
from jaxspec.analysis.crossing import PairParams, StepShapes, StepSizes, Tracing, step_shapes
from jaxspec.devices.chips import Chip
from jaxspec.devices.processes import put, shapes_on
from jaxspec.devices.sharding import Placement, batch_sharding, put_model
from jaxspec.drafts import init_draft
from jaxspec.drafts.base import Draft
from jaxspec.drafts.beginning import first_tree, first_window
from jaxspec.drafts.fresh import Kind
from jaxspec.drafts.trees import TreePolicy
from jaxspec.loading.parameters import like_params
from jaxspec.methods import candidates
from jaxspec.methods.candidates import Policy
from jaxspec.methods.checks import check_meshes, check_pair, check_tree
from jaxspec.methods.draft_side import DraftSide, draft_ahead, draft_rollout, draft_select, simplified
from jaxspec.methods.fallbacks import Full
from jaxspec.methods.one_program import Fixed, SpeculativeState, tree_step, window_step
from jaxspec.models import network
from jaxspec.models.base import Model, Params
from jaxspec.models.config import DecoderConfig
from jaxspec.verify.acceptance import match
from jaxspec.verify.programs import target_plain, target_whole
from jaxspec.verify.target import Target, prefill


def shapes_of(config: DecoderConfig, dtype: Any = jnp.bfloat16, int8: bool = False) -> Model:
    """Return a model whose parameters are shapes, as ``load_huggingface`` would put them on devices."""
    return Model(network(config), like_params(config, dtype, int8))


def draft_shapes(kind: Kind, target: Model, dtype: Any = jnp.bfloat16, **options: Any) -> Draft:
    """Return a new draft for a target, whose parameters are shapes as the target's are.

    Args:
        kind: of ``drafts.init_draft``: "eagle3", "eagle", "medusa", "hydra".
        target: ``shapes_of`` its configuration.
        dtype: of the draft's parameters.
        options: of ``drafts.init_draft``.
    """
    made: list[Draft] = []

    def params(of_target: Any) -> Any:
        made.append(init_draft(kind, target._replace(params=of_target), **options))
        return made[0].params

    shapes = jax.eval_shape(params, target.params)
    floating = lambda leaf: jnp.issubdtype(leaf.dtype, jnp.floating)  # noqa: E731
    cast = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype) if floating(leaf) else leaf  # noqa: E731
    return made[0]._replace(params=jax.tree.map(cast, shapes))


def compile_step(
    target: Model,
    draft: Model | Draft,
    placement: Placement,
    sizes: StepSizes = StepSizes(),
    policy: Policy | None = None,
    report: Callable[[str], None] = lambda name: None,
) -> dict[str, CompiledProgram]:
    """Compile the programs of ``jaxspec.mirror`` and plain verification for a placement.

    Args:
        target: network, and shapes of its parameters (``shapes_of``).
        draft: likewise; of another kind with shapes as its parameters.
        placement: meshes of a topology.
        sizes: of the step.
        policy: what is rolled out; default: the 8 likeliest outcomes by the exit's message alone.
        report: called with the name of each program before it is compiled.

    Returns:
        By name: prefill, plain, whole, prefix, suffix of the target; first_window, ahead, rollout, select of the draft,
        as far as the policy has them.

    Raises:
        ValueError: what ``jaxspec.mirror`` refuses of the pair or the meshes.
        MemoryError: a program does not fit into the devices' memory; names it.
    """
    check_meshes(placement.target, placement.draft)
    made, window = check_pair(target, draft, sizes.window)
    sharded = put_model(target, placement.target)
    drafter, draft_params = made.drafter.put_on_mesh(made.params, placement.draft)
    fixed = Target(sharded.network, match(), drafter.reader())
    policy = simplified(policy or candidates.mirror(8, exit_weight=None), drafter, window, sizes.num_candidates)
    side = DraftSide(drafter, match(), policy, sizes.num_candidates, Full())
    fusion = put(drafter.fusion(made.params), sharded.replicated, placement.target)
    parts, compiling = PairParams(sharded.params, draft_params, fusion), Compiling(report)
    on_target, on_draft = (partial(shapes_on, sharding=batch_sharding(mesh)) for mesh in placement)
    tracing = Tracing(compiling, on_target, on_draft)
    step = step_shapes(fixed, side, parts, sizes.request(), sizes._replace(window=window), tracing)
    compiling("plain", target_plain, Target(fixed.network), parts.target, step.target)
    if side.policy.exit is not None:
        compiling("whole", target_whole, fixed, parts.target, fusion, *step.target, *step.crossing.window)
    _compile_draft(side, draft_params, step, tracing)
    return compiling.found


def _compile_draft(side: DraftSide, params: Params, step: StepShapes, tracing: Tracing) -> None:
    """Compile what the draft does between two verdicts."""
    (rows, standing), crossing, ahead, rolled = step.draft, step.crossing, None, None
    message, early, verdict, late = tracing.on_draft(crossing[:4])
    if side.policy.ahead is not None:
        ahead, rows = tracing.run("ahead", draft_ahead, side, params, rows, standing)
        rolled = ahead.rolled
    if side.policy.exit is not None:
        rolled, rows = tracing.run("rollout", draft_rollout, side, params, rows, standing, ahead, message, early)
    tracing.run("select", draft_select, side, params, rows, standing, rolled, verdict, (early, late))


def compile_speculative(
    target: Model,
    draft: Model | Draft,
    mesh: Mesh,
    sizes: StepSizes = StepSizes(),
    tree: TreePolicy | None = None,
    report: Callable[[str], None] = lambda name: None,
) -> dict[str, CompiledProgram]:
    """Compile the programs of ``jaxspec.speculative``: target and draft on the same devices.

    Args:
        target: network, and shapes of its parameters (``shapes_of``).
        draft: likewise; of another kind with shapes as its parameters.
        mesh: of a topology.
        sizes: of the step.
        tree: what is drafted in place of a window.
        report: called with the name of each program before it is compiled.

    Returns:
        By name: prefill, first_window, step.

    Raises:
        ValueError: what ``jaxspec.speculative`` refuses.
        MemoryError: a program does not fit into the devices' memory; names it.
    """
    made, window = check_pair(target, draft, sizes.window if tree is None else tree.max_depth)
    check_tree(target, made.drafter, match(), tree)
    network, params, _, _ = put_model(target, mesh)
    drafter, draft_params = made.drafter.put_on_mesh(made.params, mesh)
    fixed, fusion = Fixed(Target(network, match(), drafter.reader()), drafter, tree), drafter.fusion(draft_params)
    request, run = shapes_on(sizes.request(), batch_sharding(mesh)), Compiling(report)
    state, features = run("prefill", prefill, network, params, request, sizes.capacity, fixed.target.reader, fusion)
    begin = drafter, match(), draft_params, request, features, window, sizes.capacity
    if tree is None:
        first, _, own = run("first_window", first_window, *begin)
        run("step", window_step, fixed, (params, draft_params), SpeculativeState(state, own, first), window)
    else:
        first, _, own = run("first_window", first_tree, *begin, tree)
        run("step", tree_step, fixed, (params, draft_params), SpeculativeState(state, own, first))
    return run.found


def program_times(programs: Mapping[str, CompiledProgram], chips: tuple[Chip, Chip]) -> ProgramTimes:
    """Return the estimates of a step's programs, for the cost model; chips of the target and of the draft.

    A selection compiles with its fallback: both branches are one program, so the fallback's time is all of it.
    """
    at = lambda name, chip: programs[name].estimate(chip) if name in programs else 0.0  # noqa: E731
    split = "prefix" in programs
    return ProgramTimes(
        prefix=at("prefix", chips[0]),
        suffix=at("suffix" if split else "whole", chips[0]),
        ahead=at("ahead", chips[1]),
        rollout=at("rollout", chips[1]),
        fallback=at("select", chips[1]),
    )
