"""Algorithms without a recorded trajectory, and server steps of dual algorithms, against NumPy oracles."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxfed
from tests.jaxfed.algorithms.test_fedspeed import GRADIENT, run, run_oracle
from tests.support import fedspeed_reference as reference
from tests.support.jaxfed import problems

ETA = 0.2


def loss_of(x, batch):
    inputs, labels = batch
    return -np.log(reference.probabilities(x, inputs, problems.CLASSES)[np.arange(len(labels)), labels]).mean()


def descended(x, batches, eta=ETA, gradient=GRADIENT):
    for batch in batches:
        x = x - eta * gradient(x, batch)
    return x


def fednova(problem):
    def one_round(x, cohort):
        steps = [len(batches) for _, batches in cohort]
        directions = [(descended(x, batches) - x) / len(batches) for _, batches in cohort]
        return x + np.mean(steps) * np.mean(directions, axis=0)

    return one_round


def fedinit(problem):
    last = [problems.flat(problem.params) for _ in range(problems.CLIENTS)]

    def one_round(x, cohort):
        moved = []
        for client, batches in cohort:
            start = x + 0.3 * (x - last[client])
            last[client] = descended(start, batches)
            moved.append(last[client] - start)
        return x + np.mean(moved, axis=0)

    return one_round


def fedlesam(problem):
    received = [problems.flat(problem.params) for _ in range(problems.CLIENTS)]

    def one_round(x, cohort):
        ends = []
        for client, batches in cohort:
            away = received[client] - x
            ascent = 0.3 * away / (np.linalg.norm(away) + 1e-7)
            received[client] = x
            ends.append(descended(x, batches, gradient=lambda at, batch, ascent=ascent: GRADIENT(at + ascent, batch)))
        return np.mean(ends, axis=0)

    return one_round


def qfedavg(problem):
    def one_round(x, cohort):
        moved, scales = [], []
        for _, batches in cohort:
            weights = descended(x, batches) - x
            loss = np.mean([loss_of(x, batch) for batch in batches]) + 1e-10
            moved.append(loss**2.0 * weights)
            scales.append(2.0 * loss * np.sum(weights**2) / ETA + loss**2.0)
        return x + np.sum(moved, axis=0) / np.sum(scales)

    return one_round


def ditto(problem):
    own = [problems.flat(problem.params) for _ in range(problems.CLIENTS)]

    def one_round(x, cohort):
        for client, batches in cohort:
            for batch in batches:
                own[client] = own[client] - 0.1 * (GRADIENT(own[client], batch) + 0.4 * (own[client] - x))
        return reference.fedavg_round(GRADIENT, x, cohort, eta=ETA)

    one_round.own = own
    return one_round


HEAD = slice(problems.CLASSES)  # the bias


def part_gradient(head):
    def gradient(x, batch):
        whole = GRADIENT(x, batch)
        kept = np.zeros_like(whole)
        part = HEAD if head else slice(problems.CLASSES, None)
        kept[part] = whole[part]
        return kept

    return gradient


def fedrep(problem, personal_steps=1):
    first = problems.flat(problem.params)
    heads = [first[HEAD].copy() for _ in range(problems.CLIENTS)]

    def one_round(x, cohort):
        ends = []
        for client, batches in cohort:
            at = np.concatenate([heads[client], x[problems.CLASSES :]])
            if personal_steps is None:
                at = descended(at, batches)
            else:
                at = descended(at, batches[:personal_steps], gradient=part_gradient(True))
                at = descended(at, batches[personal_steps:], gradient=part_gradient(False))
            heads[client] = at[HEAD]
            ends.append(at)
        return np.concatenate([first[HEAD], np.mean(ends, axis=0)[problems.CLASSES :]])

    one_round.own = heads
    return one_round


def is_bias(path: str) -> bool:
    return path == "bias"


CASES = {
    "fednova": (fednova, {}),
    "fedinit": (fedinit, {"relaxation": 0.3}),
    "fedlesam": (fedlesam, {"ascent_radius": 0.3}),
    "qfedavg": (qfedavg, {"fairness": 2.0}),
    "ditto": (ditto, {"personal_weight": 0.4, "personal_learning_rate": 0.1}),
    "fedrep": (fedrep, {"personal": is_bias, "personal_steps": 1}),
    "fedbn": (lambda problem: fedrep(problem, None), {"personal": is_bias}),
}


@pytest.mark.parametrize("name", CASES)
def test_equations(name):
    make, options = CASES[name]
    with jax.enable_x64(True):
        problem = problems.make_problem(4)
        algorithm = jaxfed.algorithms.get(name)(problems.loss_fn, client_learning_rate=ETA, **options)
        actual, rows = run(algorithm, problem)
        oracle = make(problem)
        np.testing.assert_allclose(
            actual, run_oracle(oracle, problem), rtol=0, atol=1e-7 if name == "qfedavg" else 1e-12
        )
        for client, own in enumerate(getattr(oracle, "own", [])):
            memory = jax.tree.map(lambda leaf, client=client: leaf[client], rows.memory)
            kept = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(memory)])
            np.testing.assert_allclose(kept, own, rtol=0, atol=1e-12)


def test_unequal_steps_change_fedavg_but_not_the_direction_of_fednova():
    """A client with one step and one with three: FedNova weighs their mean steps alike."""
    problem = problems.make_problem(4, np.float32)
    algorithm = jaxfed.fednova(problems.loss_fn)
    server = algorithm.init(problem.params, problems.CLIENTS)
    index = problems.indices(problem, 0, [0, 3], 3, 4)
    index[0, 1:] = -1
    rows = jaxfed.DeviceStore().init(algorithm.init_client(problem.params), problems.CLIENTS)
    after, _, info = algorithm.step(server, problems.cohort_of(problem, [0, 3], index, rows), jax.random.key(0))
    x, cohort = problems.flat(problem.params), problems.oracle_cohort(problem, [0, 3], index)
    assert [len(batches) for _, batches in cohort] == [1, 3]
    mean = np.mean([(descended(x, batches, 0.1) - x) / len(batches) for _, batches in cohort], axis=0)
    np.testing.assert_allclose(problems.flat(after.params) - x, 2.0 * mean, rtol=1e-4, atol=1e-6)
    assert info.clients.num_steps.tolist() == [1, 3]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("qfedavg", {"fairness": 0.0}),
        ("fednova", {}),
        ("fedinit", {"relaxation": 0.0}),
        ("fedlesam", {"ascent_radius": 0.0}),
        ("ditto", {}),
    ],
)
def test_without_what_is_new_these_are_fedavg(name, options):
    problem, whole = problems.make_problem(5, np.float32), [[0, 3], [1, 2], [3, 0]]
    expected, _ = run(jaxfed.fedavg(problems.loss_fn), problem, whole)
    actual, _ = run(jaxfed.algorithms.get(name)(problems.loss_fn, **options), problem, whole)
    np.testing.assert_allclose(actual, expected, atol=1e-6)


DUALS = {
    "fedspeed": lambda **options: jaxfed.fedspeed(problems.loss_fn, prox_weight=0.5, **options),
    "fedspeed of the cohort": lambda **options: jaxfed.fedspeed(
        problems.loss_fn, prox_weight=0.5, dual_mean="cohort", **options
    ),
    "fedspeed without duals": lambda **options: jaxfed.fedspeed(problems.loss_fn, dual_mean=None, **options),
    "feddyn": lambda **options: jaxfed.feddyn(problems.loss_fn, prox_weight=0.5, **options),
    "fedsmoo": lambda **options: jaxfed.fedsmoo(problems.loss_fn, prox_weight=0.5, **options),
}


@pytest.mark.parametrize("name", DUALS)
def test_a_server_step_goes_a_part_of_the_way(name):
    """From the same state, with rate η_g the server moves η_g times as far; momentum adds up the moves."""
    with jax.enable_x64(True):
        problem, build = problems.make_problem(6), DUALS[name]
        whole, part = run(build(), problem)[0], run(build(server_learning_rate=0.25), problem)[0]
        x = problems.flat(problem.params)
        np.testing.assert_allclose(part[0] - x, 0.25 * (whole[0] - x), rtol=0, atol=1e-12)
        assert np.abs(part[1] - whole[1]).max() > 1e-3
        sgd, _ = run(build(server_optimiser=optax.sgd(0.25)), problem)
        np.testing.assert_allclose(sgd, part, rtol=0, atol=1e-12)
        pushed, _ = run(build(server_optimiser=optax.sgd(1.0, momentum=0.9)), problem)
        np.testing.assert_allclose(pushed[0], whole[0], rtol=0, atol=1e-12)
        assert np.abs(pushed[1] - whole[1]).max() > 1e-3


@pytest.mark.parametrize("name", DUALS)
def test_server_steps_are_refused_as_fedavg_refuses_them(name):
    with pytest.raises(ValueError, match="server_optimiser has its own learning rate"):
        DUALS[name](server_learning_rate=0.5, server_optimiser=optax.adam(0.1))
    with pytest.raises(TypeError, match="server_optimiser: expected an optax optimiser"):
        DUALS[name](server_optimiser=0.1)
    with pytest.raises(ValueError, match="server_learning_rate must be a finite number > 0"):
        DUALS[name](server_learning_rate=0.0)
    with pytest.raises(ValueError, match="server_optimiser: expected a whole optimiser, whose updates descend"):
        DUALS[name](server_optimiser=optax.scale_by_adam()).init(problems.make_problem(0, np.float32).params, 3)


def test_a_default_server_step_is_not_recorded():
    """Checkpoints of release 0.1, which had none, are continued."""
    assert "server_learning_rate" not in jaxfed.fedspeed(problems.loss_fn).hyperparameters
    assert jaxfed.fedspeed(problems.loss_fn, server_learning_rate=0.5).hyperparameters["server_learning_rate"] == 0.5


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("BatchNorm_0/scale", True),
        ("layers/3/bn1/bias", True),
        ("block/norm/kernel", True),
        ("bn/scale", True),
        ("dense/kernel", False),
        ("subnet/kernel", False),
    ],
)
def test_normalisation_layers_are_found_by_name(path, expected):
    assert jaxfed.algorithms._fedbn.is_normalisation(path) is expected


def test_personal_layers_that_are_none_are_refused():
    params = problems.make_problem(0, np.float32).params
    for algorithm in (
        jaxfed.fedbn(problems.loss_fn),
        jaxfed.fedrep(problems.loss_fn, personal=lambda path: True, personal_steps=1),
    ):
        with pytest.raises(ValueError, match="expected a mask that trains a part of the 2 leaves"):
            algorithm.init_client(params)


def test_a_personal_head_with_model_state():
    """Under the policy "local" FedBN keeps both: scales and running statistics."""

    def loss(params, state, batch, key):
        value, aux = problems.loss_fn(params, batch, key)
        return value, ({"seen": state["seen"] + 1.0}, aux)

    for algorithm in (
        jaxfed.fedbn(jaxfed.Stateful(loss, "local"), personal=is_bias),
        jaxfed.fedrep(jaxfed.Stateful(loss, "local"), personal=is_bias, personal_steps=1),
    ):
        problem = problems.make_problem(7, np.float32)
        state = {"seen": jnp.zeros(())}
        server = algorithm.init(problem.params, problems.CLIENTS, state)
        rows = jaxfed.DeviceStore().init(algorithm.init_client(problem.params, state), problems.CLIENTS)
        cohort = problems.cohort_of(problem, [0, 2], problems.indices(problem, 0, [0, 2], 3, 4), rows)
        server, rows, _ = jax.jit(algorithm.step)(server, cohort, jax.random.key(0))
        assert rows.model_state["seen"].tolist() == [3.0, 3.0]
        row = jax.tree.map(lambda leaf: leaf[0], rows)
        params, own_state = algorithm.parts.personal(server, row)
        np.testing.assert_array_equal(params["bias"], row.memory["bias"])
        np.testing.assert_array_equal(params["weight"], server.params["weight"])
        assert float(own_state["seen"]) == 3.0
        np.testing.assert_array_equal(server.params["bias"], problem.params["bias"])
