"""Evaluation of the clients' own models: the server's, what they keep, and after local steps."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxfed
from jaxfed import metrics, personal
from tests.support import fedspeed_reference as reference
from tests.support.jaxfed import problems
from tests.support.jaxfed.runs import arguments

PROBLEM = problems.make_problem(8, np.float32)
DATA = jaxfed.data.client_data(PROBLEM.clients)
GRADIENT = reference.softmax_regression_gradient(problems.CLASSES)


def apply(params, x):
    logits = x @ params["weight"]
    return logits + jnp.broadcast_to(params["bias"], logits.shape)


MEASURE = metrics.classification(apply)


def is_bias(path):
    return path == "bias"


def trained(algorithm, store=None):
    """A run of six rounds, and what its last evaluation was called with."""
    seen = []

    def evaluate(server, rows):
        seen.append((server, rows(np.arange(problems.CLIENTS))))
        return {}

    server = algorithm.init(PROBLEM.params, problems.CLIENTS)
    options = arguments(rounds=6, every=6, sampler=jaxfed.FixedSize(3), batching=jaxfed.Epochs(1, 4), evaluate=evaluate)
    jaxfed.simulate(algorithm, server, DATA, **options)
    return seen[-1]


def rows_of(kept):
    return lambda ids: jax.tree.map(lambda leaf: leaf[jnp.maximum(ids, 0)], kept)


def by_hand(params, client):
    """Accuracy and loss of one model on one client's samples, by NumPy."""
    samples, flat = PROBLEM.clients[client], problems.flat(params)
    odds = reference.probabilities(flat, samples["x"], problems.CLASSES)
    chosen = odds[np.arange(len(samples["y"])), samples["y"]]
    return np.mean(odds.argmax(1) == samples["y"]), -np.log(chosen).mean()


@pytest.mark.parametrize("batch_size", [3, 64])
@pytest.mark.parametrize("clients_at_once", [2, 16])
def test_the_servers_model_gives_what_per_client_gives(batch_size, clients_at_once):
    algorithm = jaxfed.fedavg(problems.loss_fn)
    server, kept = trained(algorithm)
    evaluate = personal.per_client_model(
        personal.own_model(algorithm), MEASURE, DATA, batch_size=batch_size, clients_at_once=clients_at_once
    )
    actual, expected = evaluate(server, rows_of(kept)), metrics.per_client(MEASURE, DATA)(server.params)
    chex.assert_trees_all_close(actual, expected, rtol=1e-5)
    assert actual.ids.tolist() == list(range(problems.CLIENTS))


OWN = {
    "ditto": (jaxfed.ditto(problems.loss_fn), lambda server, memory: memory),
    "fedrep": (
        jaxfed.fedrep(problems.loss_fn, personal=is_bias, personal_steps=1),
        lambda server, memory: {**server.params, "bias": memory["bias"]},
    ),
    "fedbn": (
        jaxfed.fedbn(problems.loss_fn, personal=is_bias),
        lambda server, memory: {**server.params, "bias": memory["bias"]},
    ),
}


@pytest.mark.parametrize("name", OWN)
def test_every_client_is_measured_with_what_it_keeps(name):
    algorithm, model = OWN[name]
    server, kept = trained(algorithm)
    result = personal.per_client_model(personal.own_model(algorithm), MEASURE, DATA)(server, rows_of(kept))
    for client in range(problems.CLIENTS):
        memory = jax.tree.map(lambda leaf, client=client: leaf[client], kept.memory)
        accuracy, loss = by_hand(model(server, memory), client)
        assert float(result.means["accuracy"][client]) == pytest.approx(accuracy, abs=1e-6)
        assert float(result.means["loss"][client]) == pytest.approx(loss, rel=1e-4)


def test_fine_tuning_is_gradient_descent_from_the_servers_model():
    """Full batches, so that the order of the samples does not matter."""
    algorithm = jaxfed.fedavg(problems.loss_fn)
    server = algorithm.init(PROBLEM.params, problems.CLIENTS)
    kept = jaxfed.DeviceStore().init(algorithm.init_client(PROBLEM.params), problems.CLIENTS)
    tuned = personal.fine_tuned(algorithm, client_learning_rate=0.3)
    result = personal.per_client_model(tuned, MEASURE, DATA, DATA, jaxfed.Steps(4, 64))(server, rows_of(kept))
    for client in range(problems.CLIENTS):
        x, samples = problems.flat(PROBLEM.params).astype(np.float64), PROBLEM.clients[client]
        for _ in range(4):
            x = x - 0.3 * GRADIENT(x, (samples["x"], samples["y"]))
        params = {"bias": x[: problems.CLASSES], "weight": x[problems.CLASSES :]}
        assert float(result.means["loss"][client]) == pytest.approx(by_hand(params, client)[1], rel=1e-4)


def test_in_a_run_with_names_of_its_own_and_a_client_without_samples():
    """Local steps make the loss on a client's own samples smaller; the others' means are there."""
    train, test = jaxfed.data.train_test(DATA, 0.3)
    test = test._replace(lengths=test.lengths.at[1].set(0))
    algorithm = jaxfed.fedavg(problems.loss_fn)
    evaluate = personal.personal_evaluator(
        personal.fine_tuned(algorithm, client_learning_rate=0.5), MEASURE, train, train, jaxfed.Steps(20, 8)
    )
    held_out = personal.personal_evaluator(personal.own_model(algorithm), MEASURE, test, prefix="")

    def both(server, rows):
        return {**evaluate(server, rows), **held_out(server, rows)}

    server = algorithm.init(PROBLEM.params, problems.CLIENTS)
    options = arguments(
        rounds=2, sampler=jaxfed.FixedSize(3), batching=jaxfed.Steps(2, 4), evaluate=both, at_start=True
    )
    _, history = jaxfed.simulate(algorithm, server, train, **options)
    columns = dict(history.evaluations)
    assert columns["round"] == [0, 1, 2]
    assert {"personal_accuracy", "personal_accuracy/q10", "personal_loss/worst_10%", "accuracy"} <= columns.keys()
    assert all(np.isfinite(each).all() for each in columns.values())
    assert all(after < 0.9 * before for after, before in zip(columns["personal_loss"], columns["loss"], strict=True))
    every = personal.per_client_model(personal.own_model(algorithm), MEASURE, test)
    rows = rows_of(jaxfed.DeviceStore().init(algorithm.init_client(PROBLEM.params), problems.CLIENTS))
    means = every(server, rows).means["accuracy"]
    assert np.isnan(means).tolist() == [False, True, False, False, False]


def test_model_state_goes_with_the_parameters():
    """Batch statistics of every client's own, under the policy "local"."""

    def loss(params, state, batch, key):
        value, aux = problems.loss_fn(params, batch, key)
        return value, ({"mean": jnp.mean(batch["x"])}, aux)

    def measure(variables, batch):
        params, state = variables
        return {**MEASURE(params, batch), "mean": jnp.broadcast_to(state["mean"], batch["y"].shape)}

    algorithm = jaxfed.fedbn(jaxfed.Stateful(loss, "local"), personal=is_bias)
    state = {"mean": jnp.zeros(())}
    server = algorithm.init(PROBLEM.params, problems.CLIENTS, state)
    row = algorithm.init_client(PROBLEM.params, state)
    kept = jaxfed.DeviceStore().init(row, problems.CLIENTS)
    kept = kept._replace(model_state={"mean": jnp.arange(5.0)})
    result = personal.per_client_model(personal.own_model(algorithm), measure, DATA)(server, rows_of(kept))
    np.testing.assert_allclose(result.means["mean"], np.arange(5.0), rtol=1e-6)


def test_refusals():
    algorithm = jaxfed.fedavg(problems.loss_fn)
    own = personal.own_model(algorithm)
    with pytest.raises(ValueError, match="expected an algorithm with `parts.personal`"):
        personal.own_model(algorithm._replace(parts=None))
    with pytest.raises(ValueError, match="pass both"):
        personal.per_client_model(own, MEASURE, DATA, DATA)
    with pytest.raises(ValueError, match="expected training samples of the 5 clients"):
        personal.per_client_model(own, MEASURE, DATA, jaxfed.data.client_data(PROBLEM.clients[:2]), jaxfed.Steps(1, 2))
    with pytest.raises(ValueError, match="expected at least one sample to evaluate on"):
        personal.per_client_model(own, MEASURE, DATA._replace(lengths=jnp.zeros(5, jnp.int32)))
    report = jaxfed.Report(lambda server, rows: {})
    with pytest.raises(ValueError, match="whose clients keep their rows themselves"):
        report.after_round(jaxfed.History(), algorithm.init(PROBLEM.params, 5), None, True)
