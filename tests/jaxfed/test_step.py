"""A step: randomness, optax on both sides, any model, refusals. What all algorithms promise: `test_conformance.py`."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxfed
from tests.jaxfed import problems


def setting(name="fedspeed", ids=(0, 2), num_steps=2, **hyperparameters):
    """Algorithm, server, rows of all clients and a cohort of two clients of a small float32 problem."""
    problem = problems.make_problem(11, np.float32)
    algorithm = jaxfed.algorithms.get(name)(problems.loss_fn, **hyperparameters)
    server = algorithm.init(problem.params, problems.CLIENTS)
    rows = jaxfed.DeviceStore().init(algorithm.init_client(problem.params), problems.CLIENTS)
    index = problems.indices(problem, 0, list(ids), num_steps, 4)
    return algorithm, server, rows, problems.cohort_of(problem, list(ids), index, rows)


def step(algorithm, server, cohort):
    return jax.jit(algorithm.step)(server, cohort, jax.random.key(0))


def test_randomness_hangs_on_round_client_and_step():
    """A noisy loss: the key a client gets does not depend on its slot, and no two keys are alike."""

    def noise(params, batch, key):
        drawn = jax.random.normal(key)
        return params["x"] * drawn, drawn

    algorithm = jaxfed.fedavg(noise, client_learning_rate=1.0)
    server = algorithm.init({"x": jnp.float32(0)}, 9)
    masks = {"mask": jnp.ones((2, 3, 1), bool)}

    def drawn(ids, round_number):
        rows = jaxfed.DeviceStore().gather(algorithm.init_client(server.params), jnp.asarray(ids))
        cohort = jaxfed.Cohort(jnp.array(ids, jnp.int32), rows, masks)
        after, _, _ = step(algorithm, server._replace(round=jnp.int32(round_number)), cohort)
        return float(after.params["x"])

    assert drawn([3, 5], 0) == drawn([5, 3], 0)
    assert len({drawn([3, 5], 0), drawn([3, 4], 0), drawn([3, 5], 1)}) == 3


def test_server_optimiser_is_optax():
    """One round of Adam on the pseudo-gradient moves every parameter by its learning rate."""
    algorithm, server, _, cohort = setting("fedavg", server_optimiser=optax.adam(0.01))
    after, _, _ = step(algorithm, server, cohort)
    moved = jax.tree.map(lambda a, b: jnp.abs(a - b), after.params, server.params)
    np.testing.assert_allclose(problems.flat(moved), 0.01, rtol=1e-3)
    with pytest.raises(ValueError, match="leave server_learning_rate at 1.0"):
        jaxfed.fedavg(problems.loss_fn, server_optimiser=optax.adam(0.01), server_learning_rate=0.5)


def test_client_optimiser_is_optax():
    """scale_by_adam makes the first step of every coordinate as long as the learning rate."""
    algorithm, server, _, cohort = setting("fedavg", num_steps=1, ids=(1,), client_optimiser=optax.scale_by_adam())
    after, _, _ = step(algorithm, server, cohort)
    moved = jax.tree.map(lambda a, b: jnp.abs(a - b), after.params, server.params)
    np.testing.assert_allclose(problems.flat(moved), 0.1, rtol=1e-3)


def test_any_model_flax_or_plain_functions():
    """A Flax NNX network, split once, trains exactly as the same network written by hand."""
    params, apply = jaxfed.models.functional(jaxfed.models.MLP([4, 6, 3], rngs=nnx.Rngs(0)))

    def by_hand(params, x):
        (first, second) = (params["layers"][index] for index in (0, 1))
        hidden = jnp.tanh(x @ first["kernel"] + first["bias"][None])
        return hidden @ second["kernel"] + second["bias"][None]

    _, _, _, cohort = setting("fedavg")
    after = []
    for function in (apply, by_hand):
        algorithm = jaxfed.fedavg(jaxfed.models.cross_entropy(function))
        server, _, info = step(algorithm, algorithm.init(params, problems.CLIENTS), cohort)
        after.append(server.params)
        assert 0 <= info.client.aux["accuracy"] <= 1
    chex.assert_trees_all_close(*after, atol=1e-6)


def test_a_model_with_more_than_parameters_is_refused():
    with pytest.raises(ValueError, match="module of parameters only"):
        jaxfed.models.functional(nnx.BatchNorm(3, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c._replace(batches={"x": c.batches["x"]}), 'needs "mask"'),
        (lambda c: c._replace(ids=c.ids[:1]), r"expected ids \[C\]"),
        (lambda c: c._replace(batches={**c.batches, "y": c.batches["y"][:, :1]}), r"'y' must begin with \[C, K, B\]"),
    ],
)
def test_mismatched_cohorts_are_refused(change, message):
    algorithm, server, _, cohort = setting("fedavg")
    with pytest.raises(ValueError, match=message):
        algorithm.step(server, change(cohort), jax.random.key(0))


def test_masked_mean():
    values, mask = jnp.array([[1.0, 2.0], [3.0, jnp.nan]]), jnp.array([[True, True], [True, False]])
    assert jaxfed.masked_mean(values, mask) == 2.0
    np.testing.assert_array_equal(jaxfed.masked_mean(values, jnp.array([True, False])), [1.0, 2.0])
    assert jaxfed.masked_mean(values, jnp.zeros((2, 2), bool)) == 0.0
