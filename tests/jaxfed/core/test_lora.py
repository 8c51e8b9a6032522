"""LoRA: factors of weight matrices, their merge against plain arithmetic, and what a federation of them sends."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxfed
from jaxfed import lora
from tests.support.jaxfed import problems

CONFIG = lora.LoRA(rank=3, alpha=12.0)


def params():
    generator = np.random.default_rng(0)
    arrays = {"w": (4, 6), "qkv": (2, 3, 5), "bias": (4,)}
    floats = {name: jnp.asarray(generator.normal(size=shape), jnp.float32) for name, shape in arrays.items()}
    return {"layers": [floats], "index": jnp.zeros((2, 2), jnp.int32)}


def test_fresh_factors_change_nothing():
    tree, factors = params(), lora.init_factors(params(), CONFIG, jax.random.key(0))
    (layer,) = factors["layers"]
    assert jax.tree.map(jnp.shape, layer["w"]) == lora.Factors((3, 6), (4, 3))
    assert jax.tree.map(jnp.shape, layer["qkv"]) == lora.Factors((3, 5), (6, 3))
    assert layer["bias"] is None is factors["index"]
    assert jnp.all(layer["w"].a != 0)
    jax.tree.map(np.testing.assert_array_equal, lora.merged(tree, factors, CONFIG), tree)


def test_merged_weights_are_those_of_the_equation():
    """W + (α/r)·B·A in numpy, for matrices of two axes and of more."""
    tree, generator = params(), np.random.default_rng(1)
    factors = lora.init_factors(tree, CONFIG, jax.random.key(0))
    factors = jax.tree.map(lambda leaf: jnp.asarray(generator.normal(size=leaf.shape), jnp.float32), factors)
    result = lora.merged(tree, factors, CONFIG)
    (before,), (after,), (own,) = tree["layers"], result["layers"], factors["layers"]
    for name in ("w", "qkv"):
        update = 12.0 / 3 * np.asarray(own[name].b, np.float64) @ np.asarray(own[name].a, np.float64)
        expected = np.asarray(before[name], np.float64) + update.reshape(before[name].shape)
        np.testing.assert_allclose(after[name], expected, rtol=1e-5, atol=1e-5)
    assert after["bias"] is before["bias"]
    assert result["index"] is tree["index"]


def test_a_federation_of_factors_learns_and_sends_them_alone():
    problem = problems.make_problem(3, np.float32)
    weights = problem.params
    factors = lora.init_factors(weights, CONFIG, jax.random.key(0))
    part, frozen, loss_fn, merge = lora.adapted(problems.loss_fn, weights, CONFIG, jax.random.key(0))
    chex.assert_trees_all_equal(part["lora"], factors)
    chex.assert_trees_all_equal(merge(part), weights)
    algorithm = jaxfed.fedavg(loss_fn, client_learning_rate=0.1)
    server = algorithm.init(part, problems.CLIENTS, frozen)
    ids = [0, 2]
    rows = jaxfed.DeviceStore().init(algorithm.init_client(part, frozen), problems.CLIENTS)
    cohort = problems.cohort_of(problem, ids, problems.indices(problem, 0, ids, 3, 5), rows)
    after, _, info = jax.jit(algorithm.step)(server, cohort, jax.random.key(1))
    assert info.client.sent_bytes == 4 * sum(leaf.size for leaf in jax.tree.leaves(factors))
    assert jnp.any(after.params["lora"]["weight"].b != 0)
    chex.assert_trees_all_equal(merge(after.params), lora.merged(weights, after.params["lora"], CONFIG))
    again = jax.jit(algorithm.step)(after, cohort, jax.random.key(1))[2]
    assert again.client.loss < info.client.loss


def test_only_chosen_matrices_have_factors():
    factors = lora.init_factors(params(), CONFIG, jax.random.key(0), lambda path: path.endswith("qkv"))
    assert factors["layers"][0]["w"] is None is not factors["layers"][0]["qkv"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lora.LoRA(rank=0), "rank"),
        (lambda: lora.LoRA(alpha=0.0), "alpha"),
        (
            lambda: lora.init_factors({"b": jnp.ones(3)}, CONFIG, jax.random.key(0)),
            "at least one weight matrix",
        ),
    ],
)
def test_what_has_no_factors_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
