"""A step compiled from shapes: on eight CPU devices here; for TPUs in tests/tpu."""

import json

import jax
import jax.numpy as jnp
import pytest

import jaxspec
from jaxspec.__main__ import main
from jaxspec.analysis.compiled import Counted
from jaxspec.analysis.compiling import CompiledProgram
from jaxspec.analysis.crossing import StepSizes
from jaxspec.analysis.fits import compile_speculative, compile_step, program_times, shapes_of
from jaxspec.cli._fits import parts_of
from jaxspec.devices.chips import Chip, chip_of, topology
from jaxspec.devices.sharding import put_model
from jaxspec.drafts import init_draft, trees
from jaxspec.loading.huggingface import read_config
from jaxspec.methods import candidates
from tests.support.jaxspec import models

SIZES = StepSizes(batch=2, prompt=8, capacity=64, window=3, num_candidates=2, exit_layer=2)
TARGET, DRAFT = ("prefill", "plain", "whole"), ("first_window", "select")


def compiled(policy=None, placement=(1, 1), draft=models.DRAFT, sizes=SIZES):
    return compile_step(
        shapes_of(models.TARGET, jnp.float32), shapes_of(draft, jnp.float32), models.meshes(*placement), sizes, policy
    )


def bytes_of(tree):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("policy", "names"),
    [
        (candidates.mirror(2), ("prefix", "suffix", "rollout")),
        (candidates.hybrid(2, 2), ("ahead", "prefix", "suffix", "rollout")),
        (candidates.saguaro(2), ("ahead",)),
        (candidates.none(), ()),
    ],
    ids=["mirror", "hybrid", "saguaro", "none"],
)
def test_a_policy_has_its_programs(policy, names):
    reported = []
    made = compile_step(
        shapes_of(models.TARGET, jnp.float32), shapes_of(models.DRAFT, jnp.float32), models.meshes(), SIZES, policy,
        reported.append,
    )  # fmt: skip
    assert set(made) == {*TARGET, *DRAFT, *names}
    assert list(made) == reported
    times = program_times(made, (chip_of("v5e:1x1"),) * 2)
    assert (times.rollout > 0) == ("rollout" in names)
    assert (times.ahead > 0) == ("ahead" in names)
    assert min(times.suffix, times.fallback) > 0


def test_programs_are_those_that_decode():
    """What is compiled from shapes holds what the arrays of the same models take."""
    made, config = compiled(), models.TARGET
    rows = 2 * config.num_layers * SIZES.batch * config.num_kv_heads * SIZES.capacity * config.head_size * 4
    weights = bytes_of(models.target().params)
    assert made["whole"].aliased == rows
    assert weights + rows <= made["whole"].arguments <= weights + rows + 512
    assert made["prefix"].aliased == rows // 2
    assert made["prefix"].counted.collectives == ()


def test_a_divided_model_sends_two_sums_a_layer():
    whole, halves = compiled()["whole"], compiled(placement=(2, 1))["whole"]
    sums = [each for each in halves.counted.collectives if each.kind == "all-reduce"]
    stream = 4 * models.TARGET.width * SIZES.batch * (SIZES.window + 1)
    assert sum(each.bytes == stream for each in sums) >= 2 * models.TARGET.num_layers
    assert halves.aliased == whole.aliased // 2


def test_heads_are_repeated_in_shapes_as_in_arrays():
    mesh = jaxspec.mesh_of(jax.devices()[:4])
    shapes, arrays = (put_model(model, mesh) for model in (shapes_of(models.TARGET, jnp.float32), models.target()))
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.sharding), shapes.params) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.sharding), arrays.params
    )
    assert shapes.network is arrays.network


def test_a_draft_that_reads_hidden_states_compiles():
    target = shapes_of(models.TARGET, jnp.float32)
    made = init_draft("eagle3", models.target(), taps=(0, 1, 2))
    shapes = made._replace(params=jax.eval_shape(lambda: made.params))
    programs = compile_step(target, shapes, models.meshes(), SIZES, candidates.mirror(2))
    assert {"prefix", "rollout", "select"} <= set(programs)


@pytest.mark.parametrize(
    "tree", [None, trees.static((2, 1)), trees.dynamic(2, 2, 4)], ids=["window", "static", "dynamic"]
)
def test_target_and_draft_on_the_same_devices_are_one_program(tree):
    pair, mesh = (shapes_of(models.TARGET, jnp.float32), shapes_of(models.DRAFT, jnp.float32)), models.meshes().target
    made = compile_speculative(*pair, mesh, SIZES, tree)
    assert set(made) == {"prefill", "first_window", "step"}
    rows = [2 * config.num_layers * config.num_kv_heads * config.head_size for config in (models.TARGET, models.DRAFT)]
    assert made["step"].aliased >= sum(rows) * SIZES.batch * SIZES.capacity * 4
    assert made["step"].memory >= made["step"].arguments


def test_drawn_tokens_are_other_programs():
    made, greedy = compiled(sizes=SIZES._replace(sampled=True)), compiled()
    assert set(made) == set(greedy)
    assert made["plain"].arguments > greedy["plain"].arguments


def test_an_estimate_is_the_larger_of_bytes_and_cycles():
    counted = Counted(8_000, 30, (), (), 0, 0)
    program = CompiledProgram(0, 0, 0, counted, 0.0)
    assert program.estimate(Chip(1.0, 1_000.0, 1.0)) == 8.0
    assert program.estimate(Chip(1.0, 1_000.0, 1.0, clock=2.0)) == 15.0


def test_configurations_are_read_without_weights(tmp_path):
    jaxspec.save_huggingface(models.target(), tmp_path)
    expected = jaxspec.load_huggingface(tmp_path).network.config
    (tmp_path / "model.safetensors").unlink()
    assert read_config(tmp_path) == read_config(tmp_path / "config.json") == expected
    with pytest.raises(ValueError, match=r"expected a folder with config\.json"):
        read_config(tmp_path / "other")


@pytest.mark.parametrize(
    ("split", "count", "parts"), [(None, 8, (4, 4)), (None, 1, (1, 1)), ("6+2", 8, (6, 2)), (None, 3, (1, 2))]
)
def test_chips_are_split(split, count, parts):
    assert parts_of(split, count) == parts


@pytest.mark.parametrize("split", ["8", "8+0", "5+2", "a+b", "2+2+4"])
def test_splits_that_are_none(split):
    with pytest.raises(ValueError, match=r"expected --split of 8 chips, as 7\+1"):
        parts_of(split, 8)


def test_bad_input_is_named_before_anything_is_compiled(tmp_path, capsys):
    jaxspec.save_huggingface(models.target(), tmp_path)
    where = "fits", "--target", str(tmp_path), "--draft", str(tmp_path)
    with pytest.raises(SystemExit, match="expected a topology of v4, v5e"):
        main([*where, "--topology", "v7:2x2"])
    with pytest.raises(SystemExit, match="capacity"):
        main([*where, "--capacity", "16"])


def test_without_libtpu_the_remedy_is_named():
    try:
        import libtpu  # noqa: F401
    except ModuleNotFoundError:
        with pytest.raises(ModuleNotFoundError, match=r"pip install \"jax\[tpu\]\""):
            topology("v5e:2x4")
    else:
        assert len(topology("v5e:2x4")) == 8


def test_the_command_prints_a_table_and_json(tmp_path, capsys, monkeypatch):
    """Eight CPU devices in place of a slice: the command is the same."""
    from jaxspec.devices import chips

    jaxspec.save_huggingface(models.target(), tmp_path)
    monkeypatch.setattr(chips, "topology", lambda name: jax.devices())
    where = ["fits", "--target", str(tmp_path), "--draft", str(tmp_path), "--capacity", "64", "--prompt", "8"]
    main([*where, "--window", "3", "--split", "4+4", "--num-candidates", "2", "--budget", "2", "--json"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["target_chips"], result["draft_chips"]) == (4, 4)
    assert set(result["programs"]) == {*TARGET, *DRAFT, "prefix", "suffix", "rollout"}
    assert result["programs"]["whole"]["collectives"] >= 2 * models.TARGET.num_layers
    assert result["step_anew_ms"] >= result["step_reused_ms"]
