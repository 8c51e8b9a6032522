"""What an evaluation gets, when it is called, the end of a run by a rule, and the metrics of every client."""

import json

import chex
import jax.numpy as jnp
import numpy as np
import pytest

import jaxfed
from jaxfed.run.evaluation import form_of
from tests.support.jaxfed import problems
from tests.support.jaxfed.runs import arguments

PROBLEM = problems.make_problem(21, np.float32)


def simulate(algorithm=None, **options):
    algorithm = algorithm or jaxfed.fedspeed(problems.loss_fn)
    server = algorithm.init(PROBLEM.params, problems.CLIENTS)
    data = jaxfed.data.client_data(PROBLEM.clients)
    chosen = {"rounds": 4, "sampler": jaxfed.FixedSize(2), "batching": jaxfed.Epochs(1, 4), **options}
    return jaxfed.simulate(algorithm, server, data, **arguments(**chosen))


def test_an_evaluation_gets_what_its_arguments_name():
    seen = {}

    def keep(name, *values):
        seen[name] = values
        return {}

    stateful = jaxfed.fedavg(
        jaxfed.Stateful(lambda params, state, batch, key: (problems.loss_fn(params, batch, key)[0], (state, {})))
    )
    server = stateful.init(PROBLEM.params, problems.CLIENTS, {"seen": jnp.ones(())})
    for evaluate in (
        lambda params: keep("params", params),
        lambda x: keep("one", x),
        lambda params, model_state: keep("both", params, model_state),
        lambda p, state: keep("two", p, state),
        lambda server: keep("server", server),
        lambda server, rows: keep("rows", server, rows),
        lambda params, scale=2.0: keep("default", params),
    ):
        evaluate(*form_of(evaluate)(server, lambda ids: ids))
    for name in ("params", "one", "default"):
        chex.assert_trees_all_equal(seen[name], (server.params,))
    for name in ("both", "two"):
        chex.assert_trees_all_equal(seen[name], (server.params, server.model_state))
    assert seen["server"] == (server,)
    assert seen["rows"][0] is server


def test_rows_are_those_of_the_clients():
    def evaluate(server, rows):
        every = rows(np.arange(problems.CLIENTS))
        chex.assert_shape(every.memory["bias"], (problems.CLIENTS, problems.CLASSES))
        mean = jnp.mean(every.memory["bias"], axis=0)
        return {"difference": jnp.max(jnp.abs(mean - server.extra["bias"])), "size": jnp.max(jnp.abs(mean))}

    for store in (jaxfed.DeviceStore(), jaxfed.HostStore()):
        _, history = simulate(evaluate=evaluate, store=store)
        assert max(history.evaluations["difference"]) < 1e-6
        assert min(history.evaluations["size"]) > 1e-3


@pytest.mark.parametrize("evaluate", [lambda: {}, lambda a, b, c: {}, lambda server, params: {}, 3])
def test_other_arguments_are_refused_before_the_run(evaluate):
    with pytest.raises(TypeError, match="evaluate: expected"):
        jaxfed.Report(evaluate)


def test_before_the_first_round():
    _, history = simulate(evaluate=lambda params: {"bias": jnp.sum(params["bias"])}, every=3, at_start=True)
    assert history.evaluations["round"] == [0, 3, 4]
    assert history.evaluations["bias"][0] == pytest.approx(float(jnp.sum(PROBLEM.params["bias"])))
    with pytest.raises(ValueError, match="at_start=True evaluates before the first round, got no evaluate"):
        jaxfed.Report(at_start=True)


def falling(history):
    """Stop once the third evaluation is there."""
    return len(history.evaluations.get("round", [])) >= 3


def test_a_rule_ends_a_run_after_an_evaluation(tmp_path):
    """With the numbers, the state and the checkpoint of a run of so many rounds; the same call does no more."""
    options = {"evaluate": lambda params: {"bias": params["bias"][0]}, "every": 2, "rounds": 20}
    server, history = simulate(stop=falling, checkpoint=tmp_path, keep_state=True, **options)
    assert (int(server.round), history.rounds["round"][-1], history.evaluations["round"]) == (6, 6, [2, 4, 6])
    expected, _ = simulate(**{**options, "rounds": 6})
    chex.assert_trees_all_equal(server, expected)
    assert int(history.state.server.round) == 6
    again, resumed = simulate(stop=falling, checkpoint=tmp_path, **options)
    chex.assert_trees_all_equal(again, server)
    assert resumed.to_dict()["rounds"] == history.to_dict()["rounds"]


def test_a_rule_without_an_evaluation():
    server, _ = simulate(stop=lambda history: history.rounds["round"][-1] >= 2, rounds=9)
    assert int(server.round) == 2
    server, _ = simulate(stop=lambda history: history.rounds["round"][-1] >= 2, rounds=9, every=4)
    assert int(server.round) == 4


def test_metrics_of_every_client(tmp_path):
    _, history = simulate(clients=True, checkpoint=tmp_path, rounds=3)
    draw = [jaxfed.FixedSize(2).draw(0, number, problems.CLIENTS).tolist() for number in range(3)]
    assert history.clients["round"] == [1, 1, 2, 2, 3, 3]
    assert history.clients["client"] == sum(draw, [])
    assert history.clients["used"] == [1] * 6
    for number in range(3):
        losses = history.clients["loss"][2 * number : 2 * number + 2]
        assert np.mean(losses) == pytest.approx(history.rounds["loss"][number], rel=1e-6)
    assert {"aux/count", "delta_norm", "samples"} <= history.clients.keys()
    _, longer = simulate(clients=True, checkpoint=tmp_path, rounds=4)
    assert longer.clients["loss"][:6] == history.clients["loss"]
    assert len(longer.clients["loss"]) == 8
    assert jaxfed.History.from_dict(json.loads(json.dumps(longer.to_dict()))) == longer
    assert "clients" not in simulate(rounds=1)[1].to_dict()


def test_a_client_that_is_not_finite_is_marked():
    clients = [dict(each) for each in PROBLEM.clients]
    clients[2]["x"] = np.full_like(clients[2]["x"], np.nan)
    algorithm = jaxfed.fedavg(problems.loss_fn)
    server, data = algorithm.init(PROBLEM.params, problems.CLIENTS), jaxfed.data.client_data(clients)
    options = arguments(rounds=1, sampler=jaxfed.FixedSize(5), batching=jaxfed.Epochs(1, 4), clients=True)
    _, history = jaxfed.simulate(algorithm, server, data, **options)
    assert history.clients["used"] == [1, 1, 0, 1, 1]


def test_pandas():
    pd = pytest.importorskip("pandas")
    _, history = simulate(evaluate=lambda params: {"bias": params["bias"][0]}, every=2, clients=True)
    table = history.to_pandas()
    assert isinstance(table, pd.DataFrame)
    assert table.index.name == "round"
    assert table.index.tolist() == [1, 2, 3, 4]
    assert table["loss"].tolist() == history.rounds["loss"]
    assert table["evaluation/bias"].dropna().tolist() == history.evaluations["bias"]
    clients = history.to_pandas("clients")
    assert clients.index.names == ["round", "client"]
    assert len(clients) == 8
    assert clients.groupby("round")["loss"].mean().tolist() == pytest.approx(history.rounds["loss"], rel=1e-6)
    with pytest.raises(ValueError, match="Did you mean 'clients'"):
        history.to_pandas("client")
    with pytest.raises(ValueError, match="pass Report\\(clients=True\\)"):
        simulate(rounds=1)[1].to_pandas("clients")


def test_a_client_without_samples_cannot_train():
    clients = [*PROBLEM.clients[:4], {name: each[:0] for name, each in PROBLEM.clients[4].items()}]
    data = jaxfed.data.client_data(clients, allow_empty=True)
    algorithm = jaxfed.fedavg(problems.loss_fn)
    with pytest.raises(ValueError, match="client 4: expected at least one sample to train on, got none"):
        jaxfed.simulate(
            algorithm,
            algorithm.init(PROBLEM.params, 5),
            data,
            **arguments(rounds=1, sampler=jaxfed.FixedSize(2), batching=jaxfed.Epochs(1, 4)),
        )
