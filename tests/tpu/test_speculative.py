"""Programs of a step of Mirror-SD, compiled for TPUs that are not here: what they hold, move, copy and send."""

import math

import jax
import pytest

pytest.importorskip("libtpu", reason="libtpu, which compiles for TPUs, is not installed: make tpu")

from jaxspec.analysis.crossing import StepSizes
from jaxspec.analysis.fits import compile_step, draft_shapes, program_times, shapes_of
from jaxspec.devices.chips import chip_of, topology
from jaxspec.devices.sharding import Placement, mesh_of, put_model
from tests.tpu.published import LARGE, LAYERS, LLAMA, QWEN, SMALL, cache_bytes

SIZES = StepSizes()
#: Chips of target and draft; on one chip they share it.
CHIPS = {"v5e:2x4": (4, 4), "v5e:1x1": (1, 1), "v6e:2x4": (4, 4)}
TARGET = "plain", "whole", "prefix", "suffix"


@pytest.fixture(scope="module", params=[("v5e:2x4", 1), ("v5e:2x4", 4), ("v5e:1x1", 1), ("v6e:2x4", 1)], ids=str)
def step(request):
    """Name, placement, sizes and compiled programs."""
    name, batch = request.param
    devices, (target, draft) = topology(name), CHIPS[name]
    placement, sizes = Placement(mesh_of(devices[:target]), mesh_of(devices[-draft:])), SIZES._replace(batch=batch)
    return name, placement, sizes, compile_step(shapes_of(LLAMA), shapes_of(QWEN), placement, sizes)


def held(config, mesh):
    """Bytes of a model's parameters on one chip, and of those that a pass reads whole: all but the embedding."""
    params = put_model(shapes_of(config), mesh).params
    size = lambda leaf: math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize  # noqa: E731
    return sum(map(size, jax.tree.leaves(params))), size(params["embedding"])


def test_nothing_is_padded_and_caches_are_updated_in_place(step):
    _, placement, sizes, programs = step
    weights, embedding = held(LLAMA, placement.target)
    rows = cache_bytes(LLAMA, placement.target, sizes)
    assert programs["whole"].aliased == rows
    assert programs["prefix"].aliased == programs["suffix"].aliased == rows // 2
    assert weights + rows <= programs["whole"].arguments <= 1.02 * (weights + rows)


def test_a_pass_reads_weights_and_rows_once(step):
    _, placement, sizes, programs = step
    weights, embedding = held(LLAMA, placement.target)
    needed = weights - embedding + cache_bytes(LLAMA, placement.target, sizes)
    assert needed <= 1.01 * programs["whole"].counted.hbm_bytes <= 1.06 * needed


def test_the_target_copies_nothing_and_has_no_loop(step):
    for name in TARGET:
        counted = step[3][name].counted
        assert counted.copied(LARGE) == []
        assert counted.loops == 0


def test_the_draft_copies_no_cache(step):
    """Not even where its fallback drafts a window."""
    for name in ("rollout", "select"):
        assert step[3][name].counted.copied(LARGE) == []


def test_no_matrix_is_multiplied_on_the_vector_unit(step):
    """Single columns are doubled: first windows, fallbacks."""
    for program in step[3].values():
        assert program.counted.matrix_vector_bytes < LARGE


def test_collectives_are_two_a_layer(step):
    name, placement, _, programs = step
    for part in TARGET:
        sent = programs[part].counted.collectives
        large = [each for each in sent if each.bytes >= LLAMA.width * 8 * 2]
        assert {each.kind for each in large} <= {"all-reduce"}
        assert len(large) <= 2 * LAYERS + 2
        assert all(each.bytes <= SMALL for each in sent if each.kind != "all-reduce")
        assert bool(sent) == (placement.target.size > 1)


def test_estimates_are_no_less_than_the_bytes_take(step):
    name, _, _, programs = step
    chip = chip_of(name)
    times = program_times(programs, (chip, chip))
    assert min(times.prefix, times.suffix, times.rollout, times.fallback) > 0
    for program in programs.values():
        assert program.estimate(chip) >= program.counted.hbm_bytes / chip.bandwidth


def test_programs_with_an_eagle3_draft_copy_nothing():
    devices, target = topology("v5e:2x4"), shapes_of(LLAMA)
    draft = draft_shapes("eagle3", target, taps=(0, 1, 2), vocabulary=range(32_000))
    made = compile_step(target, draft, Placement(mesh_of(devices[:4]), mesh_of(devices[4:])), SIZES)
    assert {"plain", "whole", "prefix", "suffix", "rollout", "select"} <= set(made)
    for name in (*TARGET, "rollout", "select"):
        assert made[name].counted.copied(LARGE) == []
    assert made["rollout"].counted.matrix_vector_bytes < LARGE
