"""Steps of other kinds, compiled for TPUs that are not here: trees, streams, eight bits, drawn tokens, training."""

import math

import jax
import jax.numpy as jnp
import pytest

pytest.importorskip("libtpu", reason="libtpu, which compiles for TPUs, is not installed: make tpu")

from jaxspec.analysis.compiling import compiled_program
from jaxspec.analysis.crossing import StepSizes
from jaxspec.analysis.fits import compile_speculative, compile_step, draft_shapes, shapes_of
from jaxspec.devices.chips import chip_of, topology
from jaxspec.devices.processes import shapes_on
from jaxspec.devices.sharding import Placement, batch_sharding, mesh_of, put_model, replicated_sharding
from jaxspec.drafts import streaming, trees
from jaxspec.methods import candidates
from jaxspec.training import draft_task
from tests.tpu.published import LARGE, LAYERS, LLAMA, QWEN, SMALL, cache_bytes

SIZES, SLICE = StepSizes(window=3), "v5e:2x4"


def halves():
    devices = topology(SLICE)
    return Placement(mesh_of(devices[:4]), mesh_of(devices[4:]))


def taps(kind):
    """Of two layers; by default a target has more."""
    return {"taps": (0, 1, 2)} if kind == "eagle3" else {}


def changed(model, change):
    """A model that ``change`` makes of one, as shapes."""
    made = []

    def params(of):
        made.append(change(model._replace(params=of)))
        return made[0].params

    shapes = jax.eval_shape(params, model.params)
    return made[0]._replace(params=shapes)


@pytest.mark.parametrize(
    ("kind", "tree"),
    [("eagle3", trees.dynamic(4, 3, 12)), ("medusa", trees.static((4, 2)))],
    ids=["EAGLE-3, dynamic", "Medusa, static"],
)
def test_a_step_with_a_tree_copies_scores_alone(kind, tree):
    target, mesh = shapes_of(LLAMA), halves().target
    draft = draft_shapes(kind, target, vocabulary=range(32_000), **taps(kind))
    made = compile_speculative(target, draft, mesh, SIZES, tree)["step"]
    assert made.aliased >= cache_bytes(LLAMA, mesh, SIZES)
    copied = sum(copy.bytes for copy in made.counted.copied(LARGE))  # of the draft's scores, for its best tokens
    assert copied <= 0.02 * made.counted.hbm_bytes
    assert made.counted.matrix_vector_bytes < LARGE
    sent = [each for each in made.counted.collectives if each.kind != "all-reduce"]
    assert all(each.bytes <= SMALL for each in sent)


def test_streams_copy_little():
    """Their loop of passes copies some rows once, before it begins; a selection copies none."""
    draft = changed(shapes_of(QWEN), lambda model: streaming(model, 2))
    made = compile_step(shapes_of(LLAMA), draft, halves(), SIZES, candidates.mirror(4))
    assert made["select"].counted.copied(LARGE) == []
    rolled = made["rollout"].counted
    assert sum(copy.bytes * copy.times for copy in rolled.copied(LARGE)) <= 0.03 * rolled.hbm_bytes
    assert max(made[name].counted.matrix_vector_bytes for name in ("rollout", "select")) < LARGE


def test_layers_of_eight_bits_are_read_as_bytes():
    """Not written out wider: a byte of a layer's weights, two of the head's and of the rows of the cache."""
    model, placement = shapes_of(LLAMA, int8=True), halves()
    int8 = compile_step(model, shapes_of(QWEN), placement, SIZES, candidates.none())["whole"].counted
    layers, head = (
        sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes_of(LLAMA).params[name]))
        for name in ("layers", "head")
    )
    rows = cache_bytes(LLAMA, placement.target, SIZES)
    assert int8.hbm_bytes <= 1.05 * ((layers + 2 * head) / placement.target.size + rows)
    assert int8.copied(LARGE) == []


def test_drawn_tokens_need_no_loop_and_few_messages():
    """All filters: eight sums over devices each for top-k and top-p; a search bit by bit takes 64, in loops."""
    made = compile_step(shapes_of(LLAMA), shapes_of(QWEN), halves(), SIZES._replace(sampled=True), candidates.none())
    for name in ("plain", "whole"):
        counted = made[name].counted
        assert counted.loops == 0
        assert counted.copied(LARGE) == []
        assert all(each.bytes <= SMALL for each in counted.collectives if each.kind != "all-reduce")
        assert len(counted.collectives) <= 2 * LAYERS + 2 + 24


def test_a_training_step_fits_beside_its_target():
    """Hidden states of the target, loss and gradients of a draft; prompts are divided over two pairs of chips."""
    mesh, target = mesh_of(topology(SLICE)[:4], data=2), shapes_of(LLAMA)
    draft = draft_shapes("medusa", target, jnp.float32, vocabulary=range(8_192))
    sharded = put_model(target, mesh)
    shards = [leaf.sharding.shard_shape(leaf.shape) for leaf in jax.tree.leaves(sharded.params)]
    held = 2 * sum(map(math.prod, shards))
    batch = shapes_on({"tokens": jax.ShapeDtypeStruct((4, 513), jnp.int32)}, batch_sharding(mesh))

    def gradients(target_params, draft_params, batch):
        task = draft_task(draft._replace(params=draft_params), sharded._replace(params=target_params))
        return jax.value_and_grad(task.loss, has_aux=True)(task.own, batch, jax.random.key(0))

    made = compiled_program(
        jax.jit(gradients), sharded.params, shapes_on(draft.params, replicated_sharding(mesh)), batch
    )[1]
    assert held < made.memory < chip_of(SLICE).memory
