"""Sweeps: the runs of `simulate`, in one compilation, whatever is varied and however many are computed at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxfed
from jaxfed import plot
from tests.support.jaxfed import problems
from tests.support.jaxfed.runs import arguments

PROBLEM = problems.make_problem(9, np.float32)
DATA = jaxfed.data.client_data(PROBLEM.clients)
BATCHING, SAMPLER = jaxfed.Epochs(1, 4), jaxfed.FixedSize(2)


def start(algorithm, key):
    noise = 0.1 * jax.random.normal(key, PROBLEM.params["weight"].shape)
    return algorithm.init({**PROBLEM.params, "weight": PROBLEM.params["weight"] + noise}, problems.CLIENTS)


def evaluate(params):
    return {"size": float(jnp.sum(jnp.abs(params["weight"])))}


def sweep(make, over, **options):
    report = jaxfed.Report(**{"evaluate": evaluate, "every": 3, "progress": False, **options.pop("report", {})})
    chosen = {"rounds": 5, "batching": BATCHING, "sampler": SAMPLER, "report": report, **options}
    return jaxfed.sweep(make, start, DATA, over=over, **chosen)


def alone(algorithm, seed):
    server = start(algorithm, jax.random.key(seed))
    options = arguments(rounds=5, batching=BATCHING, sampler=SAMPLER, seed=seed, evaluate=evaluate, every=3)
    return jaxfed.simulate(algorithm, server, DATA, **options)


BUILD = {
    "fedspeed": lambda rate, weight: jaxfed.fedspeed(
        problems.loss_fn, client_learning_rate=rate, prox_weight=weight, ascent_radius=weight, merge_weight=weight,
        server_learning_rate=rate, learning_rate_decay=0.9, weight_decay=weight, clip_norm=rate, relaxation=weight,
    ),
    "reference": lambda rate, weight: jaxfed.fedspeed(
        problems.loss_fn, client_learning_rate=rate, prox_weight=weight, variant="reference", clip_norm=1.0
    ),
    "feddyn": lambda rate, weight: jaxfed.feddyn(problems.loss_fn, client_learning_rate=rate, prox_weight=weight),
    "fedprox": lambda rate, weight: jaxfed.fedprox(problems.loss_fn, client_learning_rate=rate, prox_weight=weight),
    "fedsmoo": lambda rate, weight: jaxfed.fedsmoo(
        problems.loss_fn, client_learning_rate=rate, prox_weight=weight, ascent_radius=weight
    ),
    "fedadam": lambda rate, weight: jaxfed.fedadam(
        problems.loss_fn, client_learning_rate=rate, server_learning_rate=rate, b1=weight, b2=weight, eps=rate
    ),
    "fedcm": lambda rate, weight: jaxfed.fedcm(
        problems.loss_fn, client_learning_rate=rate, momentum_weight=weight, nominal_steps=weight
    ),
    "scaffold": lambda rate, weight: jaxfed.scaffold(
        problems.loss_fn, client_learning_rate=rate, server_learning_rate=weight
    ),
    "qfedavg": lambda rate, weight: jaxfed.qfedavg(problems.loss_fn, client_learning_rate=rate, fairness=weight),
    "ditto": lambda rate, weight: jaxfed.ditto(
        problems.loss_fn, client_learning_rate=rate, personal_weight=weight, personal_learning_rate=rate
    ),
}  # fmt: skip


@pytest.mark.parametrize("at_once", [1, 4])
@pytest.mark.parametrize("name", BUILD)
def test_every_run_is_that_of_simulate(name, at_once):
    """Two rates and weights and three seeds; in groups of four the last group is not full."""
    result = sweep(BUILD[name], {"rate": [0.05, 0.2], "weight": [0.3], "seed": [0, 3, 5]}, at_once=at_once)
    assert [(run.point["rate"], run.seed) for run in result.runs] == [(r, s) for r in (0.05, 0.2) for s in (0, 3, 5)]
    for run in result.runs[:: 2 if at_once == 1 else 5]:
        server, history = alone(BUILD[name](**run.point), run.seed)
        np.testing.assert_allclose(problems.flat(run.server.params), problems.flat(server.params), rtol=2e-5, atol=2e-6)
        assert run.history.rounds["round"] == [1, 2, 3, 4, 5]
        np.testing.assert_allclose(run.history.rounds["loss"], history.rounds["loss"], rtol=1e-4)
        assert run.history.evaluations["round"] == [3, 5]
        np.testing.assert_allclose(run.history.evaluations["size"], history.evaluations["size"], rtol=1e-4)


@pytest.mark.parametrize("at_once", [1, 3])
def test_one_trace_for_all_runs(at_once):
    traces = []

    def counted(params, batch, key):
        traces.append(isinstance(params["bias"], jax.core.Tracer))
        return problems.loss_fn(params, batch, key)

    def make(rate):
        return jaxfed.fedavg(counted, client_learning_rate=rate)

    few = sweep(make, {"rate": [0.1], "seed": [0, 1, 2]}, at_once=at_once)
    once = len(traces)
    traces.clear()
    sweep(make, {"rate": [0.1, 0.2, 0.3], "seed": [0, 1, 2, 3]}, at_once=at_once)
    # Checks look at the loss once a point; the rounds are traced once, whatever the number of runs.
    assert len(traces) < 2 * once
    assert few.at_once == at_once


def test_seeds_alone_and_all_defaults():
    result = sweep(lambda: jaxfed.fedavg(problems.loss_fn), {"seed": range(3)}, report={"evaluate": None})
    assert result.points == [{}]
    assert len({run.history.rounds["loss"][-1] for run in result.runs}) == 3
    assert len(sweep(lambda: jaxfed.fedavg(problems.loss_fn), {}).runs) == 1


def test_statistics_and_picture(tmp_path):
    def make(rate):
        return jaxfed.fedavg(problems.loss_fn, client_learning_rate=rate)

    result = sweep(make, {"rate": [0.01, 0.3], "seed": [1, 2, 3]})
    points = dict(result.points[0]), dict(result.points[1])
    assert points == ({"rate": 0.01}, {"rate": 0.3})
    for (point, found), expected in zip(result.last("loss"), points, strict=True):
        last = [run.history.rounds["loss"][-1] for run in result.of(point)]
        assert (dict(point), found.seeds) == (expected, 3)
        assert found.mean == pytest.approx(np.mean(last))
        assert found.deviation == pytest.approx(np.std(last, ddof=1))
    assert result.best("loss", lower_is_better=True) == {"rate": 0.3}
    curves = result.curves("size")
    assert list(curves) == ["rate 0.01", "rate 0.3"]
    assert curves["rate 0.3"][0] == [3, 5]
    assert curves["rate 0.3"][1].shape == (3, 2)
    plot.bands(curves, "size", tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").stat().st_size > 5000
    table = result.to_pandas()
    assert table.index.names == ["rate", "seed", "round"]
    assert len(table) == 2 * 3 * 5
    with pytest.raises(ValueError, match="expected a column of the runs"):
        result.last("accuracy")


def test_a_run_that_diverges_does_not_stop_the_others():
    def make(rate):
        return jaxfed.fedavg(problems.loss_fn, client_learning_rate=rate)

    result = sweep(make, {"rate": [0.1, 3e38]}, rounds=4, report={"evaluate": None})
    assert [run.diverged for run in result.runs] == [False, True]
    assert result.best("loss", lower_is_better=True) == {"rate": 0.1}


def test_rows_and_the_start_are_evaluated():
    def look(server, rows):
        mean = jnp.mean(rows(np.arange(problems.CLIENTS)).memory["bias"], axis=0)
        return {"difference": jnp.max(jnp.abs(mean - server.extra["bias"]))}

    def make(weight):
        return jaxfed.feddyn(problems.loss_fn, prox_weight=weight)

    for at_once in (1, 2):
        result = sweep(make, {"weight": [0.1, 0.5]}, report={"evaluate": look, "at_start": True}, at_once=at_once)
        for run in result.runs:
            assert run.history.evaluations["round"] == [0, 3, 5]
            assert max(run.history.evaluations["difference"]) < 1e-6


def test_refusals_come_before_any_work():
    def make(rate):
        return jaxfed.fedavg(problems.loss_fn, client_learning_rate=rate)

    with pytest.raises(ValueError, match="client_learning_rate must be a finite number > 0"):
        sweep(make, {"rate": [0.1, 0.0]})
    with pytest.raises(ValueError, match=r"over\['rate'\]: expected at least one value"):
        sweep(make, {"rate": []})
    with pytest.raises(TypeError, match=r"over\['rate'\] must be a Python or NumPy number"):
        sweep(make, {"rate": ["0.1"]})
    with pytest.raises(TypeError, match=r"over\['seed'\] must be an integer"):
        sweep(make, {"rate": [0.1], "seed": [0.5]})
    with pytest.raises(ValueError, match="expected a report without stop, callbacks and keep_state"):
        sweep(make, {"rate": [0.1]}, report={"stop": lambda history: False})
    with pytest.raises(ValueError, match="expected a layout with a plan alone"):
        sweep(make, {"rate": [0.1]}, layout=jaxfed.Layout(plan="auto"))
    with pytest.raises(TypeError, match="not a traced array"):
        jax.jit(lambda rate: make(rate).init(PROBLEM.params, 3))(0.1)
