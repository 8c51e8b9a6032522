"""A step: randomness, optax on both sides, any model, refusals. What all algorithms promise: `test_conformance.py`."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxfed
from tests.support.jaxfed import problems


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


def test_randomness_depends_on_round_client_and_step():
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
    """Adam makes the first step of every coordinate as long as its learning rate, downhill."""
    algorithm, server, _, cohort = setting("fedavg", num_steps=1, ids=(1,), client_optimiser=optax.adam(0.1))
    plain, _, _, _ = setting("fedavg", num_steps=1, ids=(1,))
    after, _, _ = step(algorithm, server, cohort)
    downhill, _, _ = step(plain, server, cohort)
    moved = jax.tree.map(lambda a, b, c: (a - b) * jnp.sign(c - b), after.params, server.params, downhill.params)
    np.testing.assert_allclose(problems.flat(moved), 0.1, rtol=1e-3)


@pytest.mark.parametrize("name", ["fedavg", "scaffold", "fedcm"])
def test_sgd_as_a_client_optimiser_is_plain_sgd(name):
    """Of the optimiser's own learning rate: what SCAFFOLD and FedCM remember is in units of gradients all the same."""
    expected, server, _, cohort = setting(name, client_learning_rate=0.3)
    actual, _, _, _ = setting(name, client_optimiser=optax.sgd(0.3))
    assert actual.hyperparameters["client_learning_rate"] == 1.0
    (after, rows, _), (again, kept, _) = (step(each, server, cohort) for each in (expected, actual))
    chex.assert_trees_all_close((again, kept), (after, rows), atol=1e-6)
    assert float(optax.tree.norm(after.extra)) > 0.05 or name == "fedavg"


ASCENDING = [optax.scale_by_adam(), optax.identity(), optax.trace(0.9)]
GROUPS = {"bias": "one", "weight": "other"}


@pytest.mark.parametrize("side", ["client_optimiser", "server_optimiser"])
def test_an_optimiser_that_ascends_is_refused(side):
    """Also if only one group of the parameters ascends; a warm-up, noise and weight decay do not count."""
    params = problems.make_problem(11, np.float32).params
    one_group = optax.multi_transform({"one": optax.sgd(1.0), "other": optax.scale_by_adam()}, GROUPS)
    for ascending in (*ASCENDING, one_group):
        with pytest.raises(ValueError, match=rf"{side}: expected .* descend.*optax.scale_by_learning_rate"):
            jaxfed.fedavg(problems.loss_fn, **{side: ascending}).init(params, 3)
    warm_up = optax.linear_schedule(0.0, 0.1, 100)
    noisy = optax.chain(optax.add_noise(1e4, 0.0, key=0), optax.sgd(0.1))
    frozen = optax.multi_transform({"one": optax.sgd(1.0), "other": optax.set_to_zero()}, GROUPS)
    for fine in (optax.adamw(warm_up, weight_decay=100.0), noisy, frozen):
        algorithm = jaxfed.fedavg(problems.loss_fn, **{side: fine})
        jax.eval_shape(lambda params, algorithm=algorithm: algorithm.init(params, 3), params)


@pytest.mark.parametrize("side", ["client_optimiser", "server_optimiser"])
def test_what_is_no_optimiser_is_refused(side):
    with pytest.raises(TypeError, match=rf"{side}: expected an optax optimiser such as optax.adam\(1e-3\), got <func"):
        jaxfed.fedavg(problems.loss_fn, **{side: optax.adam})


def raw_noise() -> optax.GradientTransformation:
    """Noise of a raw key, uint32 [2], as transformations from before typed keys have it."""

    def update(updates, key, params=None):
        key, own = jax.random.split(key)
        return jax.tree.map(lambda leaf: leaf + jax.random.normal(own, leaf.shape), updates), key

    return optax.GradientTransformation(lambda params: jax.random.PRNGKey(0), update)


@pytest.mark.parametrize("noise", [optax.add_noise(1.0, 0.0, key=0), raw_noise()], ids=["typed", "raw"])
def test_noise_of_a_client_optimiser_differs_between_clients_rounds_and_steps(noise):
    """It is begun afresh every round, from one seed."""

    def flat(params, batch, key):
        return 0.0 * params["x"], ()

    algorithm = jaxfed.fedavg(flat, client_optimiser=optax.chain(noise, optax.sgd(1.0)))
    server = algorithm.init({"x": jnp.float32(0)}, 9)

    @jax.jit
    def moved(client, number, count):
        member = jaxfed.Cohort(client, algorithm.init_client(server.params), {"mask": jnp.arange(2)[:, None] < count})
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), number), client)
        return algorithm.client_update(server, member, key).message.delta["x"]

    drawn = [float(moved(*each)) for each in [(1, 0, 1), (2, 0, 1), (1, 1, 1), (1, 0, 2)]]
    assert len({round(each, 5) for each in (*drawn, drawn[3] - drawn[0])}) == 5
    assert drawn[0] == float(moved(1, 0, 1))


def test_schedules_are_checked_when_the_algorithm_is_built():
    with pytest.raises(ValueError, match=r"expected a schedule of finite numbers ≥ 0, got -0.1 in round 0"):
        jaxfed.fedavg(problems.loss_fn, client_learning_rate=lambda number: number.astype(float) - 0.1)
    with pytest.raises(TypeError, match=r"branches on it in Python; write jnp.where"):
        jaxfed.fedavg(problems.loss_fn, client_learning_rate=lambda number: 0.1 if number < 10 else 0.01)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"w": jnp.ones(2), "steps": jnp.zeros((), jnp.int32)}, "got int32 at 'steps'; .*jaxfed.trainable.split"),
        ({"layers": [jnp.ones(2), jnp.ones(2, bool)]}, "got bool at 'layers/1'; .*jaxfed.trainable.only"),
        ({"w": jnp.ones(2, jnp.complex64)}, "got complex64 at 'w'; make the real and the imaginary part two leaves"),
        ({"w": jnp.ones(2), "key": jax.random.key(0)}, "got key<fry> at 'key'; .*jaxfed.trainable.split"),
        ({}, "expected parameters with at least one floating-point array, got none"),
    ],
)
def test_parameters_that_are_no_floating_point_arrays_are_refused(params, message):
    algorithm = jaxfed.fedspeed(problems.loss_fn)
    for init in (lambda: algorithm.init(params, 3), lambda: algorithm.init_client(params)):
        with pytest.raises(TypeError, match=message):
            init()


@pytest.mark.parametrize(
    ("loss_fn", "message"),
    [
        (lambda params, batch, key: jnp.sum(params["bias"]), r"-> \(loss, aux\), got float32\[\]; return loss, \{\}"),
        (
            lambda params, batch, key: (params["bias"], {}),
            r"one floating-point number, got float32\[3\]; .*masked_mean",
        ),
        (lambda params, batch, key: (jnp.int32(1), {}), r"one floating-point number, got int32\[\]"),
        (lambda params, batch, key: (jnp.sum(params["bias"]), {"a": "b"}), r"pytree of numbers, .* got str at 'a'"),
        (lambda params, batch, key: (jnp.sum(params["bias"]), 1, 2), "got tuple of 3; return loss"),
        (lambda params, batch, key: None, "got None; return loss"),
        (
            jaxfed.Stateful(lambda params, state, batch, key: (jnp.sum(params["bias"]), {}), "frozen"),
            r"-> \(loss, \(model_state, aux\)\), got dict; return loss, \(model_state, \{\}\)",
        ),
    ],
)
def test_a_loss_of_another_form_is_refused(loss_fn, message):
    """When it is first traced, by shapes."""
    _, _, _, cohort = setting("fedavg")
    algorithm, state = jaxfed.fedavg(loss_fn), isinstance(loss_fn, jaxfed.Stateful)
    server = algorithm.init(problems.make_problem(11, np.float32).params, 5, *[{"s": jnp.zeros(1)}] * state)
    with pytest.raises(TypeError, match=message):
        jax.eval_shape(algorithm.step, server, cohort, jax.random.key(0))


@pytest.mark.parametrize(
    ("loss_fn", "message"),
    [
        (lambda params, batch: (0.0, {}), r"got <lambda>\(params, batch\); take all of them, also those not used"),
        (lambda params, state, batch, key: (0.0, {}), "wrap it in jaxfed.Stateful"),
        (jaxfed.Stateful(lambda params, batch, key: (0.0, {})), r"expected loss_fn\(params, model_state, batch, key\)"),
        ("cross_entropy", r"expected loss_fn\(params, batch, key\) -> \(loss, aux\), got 'cross_entropy'"),
    ],
)
def test_a_loss_of_other_arguments_is_refused_when_the_algorithm_is_built(loss_fn, message):
    with pytest.raises(TypeError, match=message):
        jaxfed.fedspeed(loss_fn)


@pytest.mark.parametrize(
    ("name", "argument", "message"),
    [
        ("fedspeed", "lr", "Did you mean 'client_learning_rate'"),
        ("fedprox", "mu", "Did you mean 'prox_weight'"),
        ("fedsam", "rho", "Did you mean 'ascent_radius'"),
        ("fedavg", "server_lr", "Did you mean 'server_learning_rate'"),
        ("scaffold", "server_optimiser", r"Algorithms that have it: fedavg, feddyn, fedprox\b.*\.$"),
        ("fedavg", "ascent_radius", "Algorithms that have it: fedgamma, fedlesam, fedsam, "),
        ("fedavg", "quux", r"got 'quux'\.$"),
    ],
)
def test_an_unknown_argument_suggests_the_nearest_name_or_none(name, argument, message):
    with pytest.raises(TypeError, match=message):
        jaxfed.algorithms.get(name)(problems.loss_fn, **{argument: 0.1})


def test_a_choice_like_no_other_gets_no_suggestion():
    with pytest.raises(ValueError, match=r"got 'zzz'\.$"):
        jaxfed.algorithms.get("zzz")


def test_a_client_without_a_step_keeps_its_control_variate():
    """With no data in any step there is no direction, and −U/(K·η) = 0 would be one."""
    algorithm, server, _, cohort = setting("scaffold", nominal_steps=2.0)
    control = jax.tree.map(lambda leaf: jnp.full_like(leaf, 0.5), server.params)
    empty = cohort._replace(batches={**cohort.batches, "mask": jnp.zeros_like(cohort.batches["mask"])})
    after, rows, _ = step(algorithm, server._replace(extra=control), empty)
    chex.assert_trees_all_close(after.extra, control)
    chex.assert_trees_all_close(rows.memory, cohort.rows.memory, atol=1e-6)


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
