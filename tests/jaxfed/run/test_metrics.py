"""Quantiles and the worst tenth against NumPy, and the evaluation of every client."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxfed
from jaxfed.run import metrics
from tests.support.jaxfed import problems


def numbers(seed, count):
    generator = np.random.default_rng(seed)
    return generator.beta(2.0, 5.0, count).astype(np.float32)


@pytest.mark.parametrize("level", [0.0, 0.1, 0.5, 0.97, 1.0])
def test_quantiles(level):
    values, mask = numbers(3, 300), np.random.default_rng(4).uniform(size=300) < 0.7
    expected = np.quantile(values[mask], level)
    exact = jax.jit(lambda values, mask: metrics.quantiles(values, [level], mask))(values, mask)
    np.testing.assert_allclose(exact, [expected], rtol=1e-6)


@pytest.mark.parametrize("lower_is_better", [False, True])
@pytest.mark.parametrize(("count", "size"), [(1, 1), (9, 1), (10, 1), (11, 2), (95, 10), (100, 10), (730, 73)])
def test_the_worst_tenth_is_rounded_up(count, size, lower_is_better):
    values = numbers(count, count)
    worst = np.sort(values)[::-1][:size] if lower_is_better else np.sort(values)[:size]
    padded, mask = np.pad(values, (0, 5), constant_values=np.nan), np.arange(count + 5) < count
    exact = metrics.worst_mean(jnp.asarray(padded), jnp.asarray(mask), lower_is_better=lower_is_better)
    assert float(exact) == pytest.approx(worst.mean(), rel=1e-6)


def classifier():
    """Clients of 7 to 13 samples, a linear classifier, and its outputs for all samples by NumPy."""
    problem = problems.make_problem(5, np.float32)

    def apply(params, x):
        logits = x @ params["weight"]
        return logits + jnp.broadcast_to(params["bias"], logits.shape)

    right = [
        np.argmax(client["x"] @ np.asarray(problem.params["weight"]) + np.asarray(problem.params["bias"]), 1)
        == client["y"]
        for client in problem.clients
    ]
    return problem, apply, right


@pytest.mark.parametrize("batch_size", [1, 4, 16, 1024])
def test_every_client_is_measured_on_its_own_samples(batch_size):
    """Whatever the batches, which cut through clients; the order of the clients in the arrays is free."""
    problem, apply, right = classifier()
    data = jaxfed.data.client_data(problem.clients)
    data = data._replace(offsets=data.offsets[::-1], lengths=data.lengths[::-1])
    result = metrics.per_client(metrics.classification(apply), data, batch_size)(problem.params)
    np.testing.assert_allclose(result.means["accuracy"], [each.mean() for each in right[::-1]], rtol=1e-6)
    summary = metrics.client_evaluator(metrics.classification(apply), data, batch_size)(problem.params)
    clients = np.array([each.mean() for each in right])
    expected = {
        "accuracy": np.concatenate(right).mean(),
        "accuracy/client_mean": clients.mean(),
        "accuracy/client_std": clients.std(),
        "accuracy/q10": np.quantile(clients, 0.1),
        "accuracy/median": np.median(clients),
        "accuracy/q90": np.quantile(clients, 0.9),
        "accuracy/worst_10%": clients.min(),
        "loss/worst_10%": float(np.max(result.means["loss"])),
    }
    assert {name: summary[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert summary["loss/worst_10%"] > summary["loss"]


def test_a_client_without_samples_counts_nowhere():
    problem, apply, right = classifier()
    data = jaxfed.data.client_data(problem.clients)
    data = data._replace(lengths=data.lengths.at[0].set(0))
    summary = metrics.client_evaluator(metrics.classification(apply), data)(problem.params)
    clients = np.array([each.mean() for each in right[1:]])
    assert summary["accuracy/client_mean"] == pytest.approx(clients.mean())
    assert summary["accuracy/worst_10%"] == pytest.approx(clients.min())


def test_clients_may_share_samples():
    problem, apply, right = classifier()
    together = {name: np.concatenate([client[name] for client in problem.clients]) for name in ("x", "y")}
    parts = [[3, 3, 0], [0, 20, 31, 5]]
    result = metrics.per_client(metrics.classification(apply), jaxfed.data.partitioned(together, parts))(problem.params)
    np.testing.assert_allclose(
        result.means["accuracy"], [np.concatenate(right)[part].mean() for part in parts], rtol=1e-6
    )


def test_all_batches_are_one_program():
    problem, apply, _ = classifier()
    chex.clear_trace_counter()
    measure = chex.assert_max_traces(metrics.classification(apply), n=1)
    metrics.per_client(measure, jaxfed.data.client_data(problem.clients), batch_size=3)(problem.params)


def test_without_samples_there_are_no_numbers():
    """NaN, where a mean of nothing would read 0."""
    problem, apply, _ = classifier()
    data = jaxfed.data.client_data(problem.clients)
    evaluate = metrics.per_client(metrics.classification(apply), data._replace(lengths=data.lengths.at[0].set(0)))
    assert np.isnan(evaluate(problem.params).means["accuracy"]).tolist() == [True, False, False, False, False]
    empty = metrics.PerClient({"accuracy": jnp.zeros(2)}, jnp.zeros(2, jnp.int32), jnp.arange(2))
    assert all(np.isnan(each) for each in metrics.summary(empty).values())


def test_an_empty_test_set_is_refused_before_anything_runs():
    problem, apply, _ = classifier()
    data = jaxfed.data.client_data(problem.clients)
    with pytest.raises(ValueError, match="at least one sample to evaluate on, got none"):
        metrics.client_evaluator(metrics.classification(apply), data._replace(lengths=0 * data.lengths))
    for samples in ({"x": np.ones((0, 4)), "y": np.ones(0, int)}, {"x": np.ones((2, 4)), "y": np.ones(3, int)}, {}):
        with pytest.raises(ValueError, match="expected arrays of one length n ≥ 1 to evaluate on, got lengths"):
            jaxfed.models.evaluator(apply, samples)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.worst_mean(jnp.ones(3), fraction=0.0), "fraction must be .* > 0 and ≤ 1, got 0.0"),
        (lambda: metrics.per_client(lambda *_: {}, None, batch_size=0), "batch_size must be .* ≥ 1, got 0"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
