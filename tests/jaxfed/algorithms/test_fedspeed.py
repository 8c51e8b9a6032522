"""FedSpeed against NumPy oracles, and its reductions to FedDyn, FedProx and FedAvg."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxfed
from tests.support import fedspeed_reference as reference
from tests.support.jaxfed import problems, reference_forms

COHORTS = [[0, 3], [1, 2], [-1, 4], [3, 0], [2, 4]]
STEPS, BATCH = 3, 4
GRADIENT = reference.softmax_regression_gradient(problems.CLASSES)


def run(algorithm, problem, cohorts=COHORTS):
    """Parameters after every round, and the rows of all clients at the end."""
    store, step = jaxfed.DeviceStore(), jax.jit(algorithm.step)
    server = algorithm.init(problem.params, problems.CLIENTS)
    rows = store.init(algorithm.init_client(problem.params), problems.CLIENTS)
    seen = []
    for number, ids in enumerate(cohorts):
        index = problems.indices(problem, number, ids, STEPS, BATCH)
        server, new_rows, _ = step(server, problems.cohort_of(problem, ids, index, rows), jax.random.key(0))
        rows = store.scatter(rows, jnp.asarray(ids, jnp.int32), new_rows)
        seen.append(problems.flat(server.params))
    return np.stack(seen), rows


def one_cohort(algorithm, problem, ids, num_steps=STEPS):
    """The clients `ids` before they were ever drawn."""
    rows = jaxfed.DeviceStore().init(algorithm.init_client(problem.params), problems.CLIENTS)
    return problems.cohort_of(problem, ids, problems.indices(problem, 0, ids, num_steps, BATCH), rows)


def run_oracle(one_round, problem, cohorts=COHORTS):
    """`one_round(x, cohort) -> x` over the same cohorts and batches."""
    x, seen = problems.flat(problem.params), []
    for number, ids in enumerate(cohorts):
        index = problems.indices(problem, number, ids, STEPS, BATCH)
        x = one_round(x, problems.oracle_cohort(problem, ids, index))
        seen.append(x)
    return np.stack(seen)


def zeros(problem):
    return [np.zeros_like(problems.flat(problem.params)) for _ in range(problems.CLIENTS)]


@pytest.mark.parametrize("method", ["fedavg", "fedspeed"])
def test_reference_learns(method):
    """From log 3 = 1.10 of a uniform guess."""
    assert reference.train(method)[-1] < 0.6


@pytest.mark.parametrize("dual_mean", ["cohort", "population"])
@pytest.mark.parametrize("perturbation", ["raw", "normalised"])
@pytest.mark.parametrize("merge_weight", [0.3, 1.0])
def test_paper_form(dual_mean, perturbation, merge_weight):
    with jax.enable_x64(True):
        problem = problems.make_problem()
        algorithm = jaxfed.fedspeed(
            problems.loss_fn,
            client_learning_rate=0.2,
            prox_weight=0.5,
            ascent_radius=0.3,
            merge_weight=merge_weight,
            dual_mean=dual_mean,
            perturbation=perturbation,
        )
        actual, rows = run(algorithm, problem)
        duals = zeros(problem)

        def one_round(x, cohort):
            return reference.fedspeed_round(
                GRADIENT,
                x,
                duals,
                cohort,
                eta=0.2,
                lam=2.0,
                rho=0.3,
                alpha=merge_weight,
                normalise=perturbation == "normalised",
                over_population=dual_mean == "population",
            )

        np.testing.assert_allclose(actual, run_oracle(one_round, problem), rtol=0, atol=1e-12)
        for client in range(problems.CLIENTS):
            dual = problems.flat(jax.tree.map(lambda leaf, client=client: leaf[client], rows.memory))
            np.testing.assert_allclose(dual, -2.0 * duals[client], rtol=0, atol=1e-12)


def test_merge_weight_zero_is_feddyn_with_cohort_duals():
    with jax.enable_x64(True):
        problem = problems.make_problem(1)
        algorithm = jaxfed.fedspeed(problems.loss_fn, prox_weight=0.4, merge_weight=0.0, dual_mean="cohort")
        actual, _ = run(algorithm, problem)
        lagrange = zeros(problem)
        expected = run_oracle(
            lambda x, cohort: reference_forms.feddyn_cohort_round(GRADIENT, x, lagrange, cohort, eta=0.1, alpha=0.4),
            problem,
        )
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("prox_weight", [0.0, 0.4])
def test_fedprox_and_fedavg(prox_weight):
    with jax.enable_x64(True):
        problem = problems.make_problem(2)
        expected = run_oracle(
            lambda x, cohort: reference.fedavg_round(GRADIENT, x, cohort, eta=0.1, mu=prox_weight), problem
        )
        actual, _ = run(jaxfed.fedprox(problems.loss_fn, prox_weight=prox_weight), problem)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)


def test_without_dual_and_merge_is_fedprox_bit_for_bit():
    problem = problems.make_problem(3, np.float32)
    options = {"prox_weight": 0.4, "clip_norm": 0.7, "weight_decay": 0.01, "learning_rate_decay": 0.9}
    without = jaxfed.fedspeed(problems.loss_fn, dual_mean=None, merge_weight=0.0, **options)
    fedprox = jaxfed.fedprox(problems.loss_fn, **options)
    np.testing.assert_array_equal(run(without, problem)[0], run(fedprox, problem)[0])


def test_also_without_prox_is_fedavg_bit_for_bit():
    problem = problems.make_problem(3, np.float32)
    without = jaxfed.fedspeed(problems.loss_fn, prox_weight=0.0, dual_mean=None, merge_weight=0.0)
    fedavg, fedprox = jaxfed.fedavg(problems.loss_fn), jaxfed.fedprox(problems.loss_fn, prox_weight=0.0)
    np.testing.assert_array_equal(run(without, problem)[0], run(fedavg, problem)[0])
    np.testing.assert_array_equal(run(fedprox, problem)[0], run(fedavg, problem)[0])


def test_without_dual_is_fedprox_with_the_merged_gradient():
    """The merge is that of the paper's round whose duals are held at zero."""
    with jax.enable_x64(True):
        problem = problems.make_problem(4)
        algorithm = jaxfed.fedspeed(
            problems.loss_fn, prox_weight=0.5, merge_weight=0.3, dual_mean=None, perturbation="raw", ascent_radius=0.2
        )

        def merged_prox(x, cohort):
            def one(client, batches):
                kept = zeros(problem)
                sent = reference.fedspeed_round(
                    GRADIENT, x, kept, [(client, batches)], eta=0.1, lam=2.0, rho=0.2, alpha=0.3
                )
                return sent + 2.0 * kept[client]

            return np.mean([one(client, batches) for client, batches in cohort], axis=0)

        actual, _ = run(algorithm, problem)
        np.testing.assert_allclose(actual, run_oracle(merged_prox, problem), rtol=0, atol=1e-12)


def test_paper_clips_the_loss_gradient_only():
    """At x = x⁰ with no dual the proximal force vanishes: one clipped step is exactly η·max_norm long."""
    problem = problems.make_problem(7, np.float32)
    algorithm = jaxfed.fedspeed(problems.loss_fn, prox_weight=5.0, clip_norm=0.01)
    server, cohort = algorithm.init(problem.params, problems.CLIENTS), one_cohort(algorithm, problem, [1], num_steps=1)
    _, _, info = jax.jit(algorithm.step)(server, cohort, jax.random.key(0))
    np.testing.assert_allclose(info.client.delta_norm, 0.1 * 0.01, rtol=1e-3)


@pytest.mark.parametrize(
    ("hyperparameters", "message"),
    [
        ({"prox_weight": 0.0}, "prox_weight must be > 0 with a dual"),
        ({"prox_weight": -1.0}, "prox_weight must be a finite number ≥ 0, got -1"),
        ({"merge_weight": 1.5}, "merge_weight must be a finite number ≥ 0 and ≤ 1, got 1.5"),
        ({"ascent_radius": float("nan")}, "ascent_radius must be a finite number ≥ 0, got nan"),
        ({"client_learning_rate": 0.0}, "client_learning_rate must be a finite number > 0, got 0.0"),
        ({"learning_rate_decay": 1.1}, "learning_rate_decay must be .* ≤ 1, got 1.1"),
        ({"weight_decay": -0.1}, "weight_decay must be"),
        ({"clip_norm": 0.0}, "clip_norm must be"),
        ({"relaxation": -0.1}, "relaxation must be"),
        ({"dual_mean": "chort"}, "dual_mean must be one of .* Did you mean 'cohort'"),
        ({"perturbation": "normalized"}, "Did you mean 'normalised'"),
        ({"variant": "paperr"}, "Did you mean 'paper'"),
        ({"variant": "reference", "dual_mean": "cohort"}, "leave these three at their defaults"),
    ],
)
def test_refuses(hyperparameters, message):
    with pytest.raises(ValueError, match=message):
        jaxfed.fedspeed(problems.loss_fn, **hyperparameters)


def test_hyperparameters_must_be_numbers():
    with pytest.raises(TypeError, match="prox_weight must be a Python or NumPy number"):
        jaxfed.fedspeed(problems.loss_fn, prox_weight="0.1")


@pytest.mark.parametrize("name", sorted(jaxfed.algorithms.registry))
def test_unknown_hyperparameter_names_the_nearest(name):
    with pytest.raises(TypeError, match=rf"an argument of {name} must be one of .*Did you mean 'clip_norm'"):
        jaxfed.algorithms.get(name)(problems.loss_fn, clip_nrom=1.0)


def test_unknown_algorithm_names_the_nearest():
    with pytest.raises(ValueError, match="Did you mean 'fedspeed'"):
        jaxfed.algorithms.get("fedsped")
