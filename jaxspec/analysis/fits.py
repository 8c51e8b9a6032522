"""Compile a step of Mirror-SD for devices that are not here: does it fit, what does it move, how long may it take?

Models are shapes (``shapes_of``), devices a topology (``devices.chips.topology``). Times are estimates, of the compiler
and of bytes over bandwidth; nothing is run.
"""

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxspec.analysis.compiled import Counted, count
from jaxspec.analysis.cost import ProgramTimes
from jaxspec.devices.chips import Chip
from jaxspec.devices.processes import put, shapes_on
from jaxspec.devices.sharding import Placement, batch_sharding, put_model, replicated_sharding
from jaxspec.drafts import init_draft
from jaxspec.drafts.base import Draft
from jaxspec.drafts.fresh import Kind
from jaxspec.loading.parameters import like_params
from jaxspec.methods import candidates
from jaxspec.methods.candidates import Policy
from jaxspec.methods.checks import check_meshes, check_pair
from jaxspec.methods.draft_side import DraftSide, draft_ahead, draft_begin, draft_rollout, draft_select
from jaxspec.methods.fallbacks import Full
from jaxspec.models import network
from jaxspec.models.base import Model
from jaxspec.models.config import DecoderConfig
from jaxspec.verify.acceptance import match
from jaxspec.verify.exits import LogitLens
from jaxspec.verify.features import Reads
from jaxspec.verify.programs import target_plain, target_prefix, target_suffix, target_whole
from jaxspec.verify.target import Request, Target, prefill


class CompiledProgram(NamedTuple):
    """A compiled program, on one device.

    Attributes:
        arguments: bytes that it reads, weights and cache among them.
        aliased: of these, what it updates in place.
        temporary: bytes that it needs besides.
        counted: what it moves and waits for.
        seconds: that its compilation took.
    """

    arguments: int
    aliased: int
    temporary: int
    counted: Counted
    seconds: float

    def estimate(self, chip: Chip) -> float:
        """Return seconds of a run: the larger of bytes over bandwidth and, where known, cycles over clock."""
        cycles = self.counted.cycles / chip.clock if chip.clock else 0.0
        return max(self.counted.hbm_bytes / chip.bandwidth, cycles)


class StepSizes(NamedTuple):
    """Sizes of a step.

    Attributes:
        batch: B.
        prompt: tokens of a prompt, P.
        capacity: rows of a sequence's cache, S.
        window: γ.
        num_candidates: κ.
        exit_layer: ℓₑ; None: half of the target's layers.
    """

    batch: int = 1
    prompt: int = 256
    capacity: int = 4096
    window: int = 7
    num_candidates: int = 8
    exit_layer: int | None = None


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


def _run(
    found: dict[str, CompiledProgram], report: Callable[[str], None], name: str, program: Any, *arguments: Any
) -> Any:
    """Compile a program, note what it needs, and return its outputs' shapes."""
    report(name)
    with _named(name):
        outputs, found[name] = compiled_program(program, *arguments)
    return outputs


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Convert the compiler's error of a program that does not fit."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        said = re.search(r"[^.\n]*exceed[^\n]*", str(error))
        raise MemoryError(
            f"expected a program {name} that fits into the memory of its devices, got: "
            f"{said[0].strip() if said else error}; use more devices, a smaller batch or cache, or eight bits"
        ) from error


def compiled_program(program: Any, *arguments: Any) -> tuple[Any, CompiledProgram]:
    """Compile a jitted function for shapes with shardings; return those of its outputs, and what it needs."""
    start = time.perf_counter()
    lowered = program.lower(*arguments)
    made = lowered.compile()
    seconds = time.perf_counter() - start
    memory = made.memory_analysis()
    arguments_of, aliased, temporary = (
        int(getattr(memory, f"{name}_size_in_bytes")) for name in ("argument", "alias", "temp")
    )
    outputs = shapes_on(lowered.out_info, made.output_shardings)
    return outputs, CompiledProgram(arguments_of, aliased, temporary, count(made), seconds)


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
        policy: what is rolled out; default: the 8 likeliest of the exit's candidates.
        report: called with the name of each program before it is compiled.

    Returns:
        By name: prefill, whole, prefix, suffix of the target; first_window, ahead, rollout, select of the draft, as far
        as the policy has them.

    Raises:
        ValueError: what ``jaxspec.mirror`` refuses of the pair or the meshes.
        MemoryError: a program does not fit into the devices' memory; names it.
    """
    check_meshes(placement.target, placement.draft)
    made, window = check_pair(target, draft, sizes.window)
    policy = candidates.mirror(8) if policy is None else policy
    sharded = put_model(target, placement.target)
    drafter, draft_params = made.drafter.put_on_mesh(made.params, placement.draft)
    fixed = Target(sharded.network, match(), drafter.reader())
    side = DraftSide(drafter, match(), policy, sizes.num_candidates, Full())
    fusion = put(drafter.fusion(made.params), sharded.replicated, placement.target)
    on = [batch_sharding(mesh) for mesh in placement]
    found: dict[str, CompiledProgram] = {}
    run = partial(_run, found, report)
    prompts = _request(sizes)
    state, features = run(
        "prefill",
        prefill,
        fixed.network,
        sharded.params,
        shapes_on(prompts, on[0]),
        sizes.capacity,
        fixed.reader,
        fusion,
    )
    features = None if fixed.reads == Reads() else shapes_on(features, on[1])
    begin = jax.jit(draft_begin, static_argnums=(0, 1, 2))
    drafting = run(
        "first_window", begin, side, window, sizes.capacity, draft_params, shapes_on(prompts, on[1]), features
    )
    drafted, probabilities = shapes_on(drafting.standing.window, on[0])
    rest = state.progress, drafted, probabilities
    run("plain", target_plain, Target(fixed.network), sharded.params, state)
    _, _, verdict, _, late = run("whole", target_whole, fixed, sharded.params, fusion, state.cache, *rest)
    rows, standing, rolled, early = drafting.drafter, drafting.standing, None, None
    if policy.ahead is not None:
        rolled, rows = run("ahead", draft_ahead, side, draft_params, rows, standing)
    if policy.exit is not None:
        layer = sizes.exit_layer or max(1, fixed.num_layers // 2)
        head = shapes_on(LogitLens(), replicated_sharding(placement.target))
        half, _, message, early = run(
            "prefix", target_prefix, fixed, layer, sizes.num_candidates, sharded.params, head, fusion,
            state.cache[:layer], state.progress, drafted,
        )  # fmt: skip
        _, _, verdict, _, late = run(
            "suffix", target_suffix, fixed, layer, sharded.params, fusion, state.cache[layer:], state.progress, half,
            drafted, probabilities, message,
        )  # fmt: skip
        early, message = shapes_on((early, message), on[1])
        rolled, rows = run("rollout", draft_rollout, side, draft_params, rows, standing, rolled, message, early)
    sent = shapes_on((verdict, late), on[1])
    run("select", draft_select, side, draft_params, rows, standing, rolled, sent[0], (early, sent[1]))
    return found


def _request(sizes: StepSizes) -> Request:
    whole = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32)  # noqa: E731
    return Request(whole(sizes.batch, sizes.prompt), whole(sizes.batch), whole(sizes.batch))


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
