"""Continuing a run: from its whole state, from a server alone, a run that is done, one that broke off."""

import functools
import os
import signal

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxfed
from tests.support.jaxfed import problems
from tests.support.jaxfed.runs import arguments

PROBLEM = problems.make_problem(21, np.float32)
DATA = jaxfed.data.client_data(PROBLEM.clients)


def fed_back(loss_fn):
    return jaxfed.uplink(jaxfed.fedavg(loss_fn), jaxfed.compression.top_k(0.3))


KEEPING = {
    name: functools.partial(jaxfed.algorithms.get(name))
    for name in ("fedspeed", "scaffold", "feddyn", "fedsmoo", "fedgamma")
} | {
    "error feedback": fed_back,
    "relaxation": lambda loss_fn: jaxfed.fedavg(loss_fn, relaxation=0.2),
}


@functools.cache
def algorithm_of(name):
    """The same one each time, so that its rounds are compiled once."""
    build = KEEPING.get(name) or jaxfed.algorithms.get(name)
    return build(problems.loss_fn)


def simulate(algorithm, start=None, rounds=6, **options):
    algorithm = algorithm_of(algorithm) if isinstance(algorithm, str) else algorithm
    start = algorithm.init(PROBLEM.params, problems.CLIENTS) if start is None else start
    chosen = {"sampler": jaxfed.FixedSize(3), "batching": jaxfed.Steps(2, 4), "rounds": rounds, **options}
    return jaxfed.simulate(algorithm, start, DATA, **arguments(**chosen))


@pytest.mark.parametrize("name", KEEPING)
def test_a_state_continues_bit_for_bit_and_a_server_alone_is_refused(name):
    whole, history = simulate(name)
    half, first = simulate(name, rounds=3, keep_state=True)
    with pytest.raises(ValueError, match="expected the clients' rows .* has done 3 rounds.*history.state"):
        simulate(name, half)
    for _ in range(2):  # a state stays as it is
        resumed, second = simulate(name, first.state)
        chex.assert_trees_all_equal(resumed, whole)
    assert second.rounds == history.rounds
    assert len(first.state.history.rounds["round"]) == 3
    assert second.state is None


def test_a_server_alone_continues_where_clients_keep_nothing():
    whole, _ = simulate("fedadam")
    half, _ = simulate("fedadam", rounds=3)
    chex.assert_trees_all_equal(simulate("fedadam", half)[0], whole)


def test_local_model_state_is_kept_as_well():
    def loss_fn(params, state, batch, key):
        loss, aux = problems.loss_fn({**params, "bias": params["bias"] + state}, batch, key)
        return loss, (0.5 * state + params["bias"], aux)

    algorithm = jaxfed.fedavg(jaxfed.Stateful(loss_fn, "local"))
    start = algorithm.init(PROBLEM.params, problems.CLIENTS, jnp.zeros(problems.CLASSES))
    whole, _ = simulate(algorithm, start)
    half, history = simulate(algorithm, start, rounds=3, keep_state=True)
    chex.assert_trees_all_equal(simulate(algorithm, history.state)[0], whole)
    with pytest.raises(ValueError, match="rows with a server .*model_state"):
        simulate(algorithm, half)


def stores(tmp_path):
    return [jaxfed.HostStore(jnp.bfloat16), jaxfed.DiskStore(tmp_path / "rows"), jaxfed.DeviceStore(jnp.bfloat16)]


@pytest.mark.parametrize("store", [jaxfed.HostStore(), jaxfed.DeviceStore()], ids=["host", "device"])
@pytest.mark.parametrize("name", ["ditto", "fedinit", "fedlesam"])
def test_a_client_drawn_late_begins_with_the_first_parameters(name, store):
    """Also where the run was continued before it was drawn: not with those of the state's server."""
    one = {"sampler": jaxfed.FixedSize(1), "store": store}
    drawn = [int(jaxfed.FixedSize(1).draw(0, number, problems.CLIENTS)[0]) for number in range(12)]
    assert set(drawn[4:]) - set(drawn[:4])
    whole, _ = simulate(name, rounds=12, **one)
    _, first = simulate(name, rounds=4, keep_state=True, **one)
    chex.assert_trees_all_equal(simulate(name, first.state, rounds=12, **one)[0], whole)


@pytest.mark.parametrize("at", range(3), ids=["host", "disk", "device"])
def test_every_store_gives_its_rows_back(tmp_path, at):
    store = stores(tmp_path)[at]
    whole, _ = simulate("scaffold", store=stores(tmp_path / "whole")[at])
    _, first = simulate("scaffold", rounds=3, store=store, keep_state=True)
    for _ in range(2):
        chex.assert_trees_all_equal(simulate("scaffold", first.state)[0], whole)
    chex.assert_trees_all_equal(simulate("scaffold", first.state, checkpoint=tmp_path / "run")[0], whole)
    with pytest.raises(ValueError, match="expected the store of the state"):
        simulate("scaffold", first.state, store=jaxfed.HostStore())


def test_rows_of_a_state_that_another_run_overwrote_are_named(tmp_path):
    store = jaxfed.DiskStore(tmp_path)
    _, first = simulate("scaffold", rounds=3, store=store, keep_state=True)
    simulate("scaffold", rounds=4, store=store, seed=1)
    with pytest.raises(OSError, match="row as it was written, got other bytes"):
        simulate("scaffold", first.state)


def test_a_state_continues_on_a_mesh():
    whole, _ = simulate("fedspeed", sampler=jaxfed.FixedSize(4))
    _, first = simulate("fedspeed", sampler=jaxfed.FixedSize(4), rounds=3, keep_state=True)
    spread, _ = simulate("fedspeed", first.state, sampler=jaxfed.FixedSize(4), mesh=jax.make_mesh((2,), ("clients",)))
    chex.assert_trees_all_close(spread, whole, atol=1e-6)


def test_a_state_takes_another_server_and_only_the_algorithm_that_made_it():
    _, first = simulate("scaffold", rounds=3, keep_state=True)
    server = first.state.server
    zeros = server._replace(params=jax.tree.map(jnp.zeros_like, server.params))
    moved, _ = simulate("scaffold", first.state._replace(server=zeros), rounds=4)
    plain, _ = simulate("scaffold", first.state, rounds=4)
    assert (moved.params["weight"] != plain.params["weight"]).any()
    with pytest.raises(ValueError, match="client rows like those of this algorithm .*last_params"):
        simulate("relaxation", first.state)


def test_a_run_that_is_done_warns():
    server, history = simulate("fedadam", rounds=3, keep_state=True)
    for start in (server, history.state):
        with pytest.warns(jaxfed.NothingTrainedWarning, match=r"done 3 rounds already, and rounds=2 .* pass rounds=4"):
            same, _ = simulate("fedadam", start, rounds=2)
        chex.assert_trees_all_equal(same, server)
    simulate("fedadam", rounds=0)


def test_a_checkpoint_behind_the_state_is_refused(tmp_path):
    _, history = simulate("scaffold", rounds=3, keep_state=True)
    simulate("scaffold", rounds=2, checkpoint=tmp_path)
    with pytest.raises(ValueError, match="expected checkpoints of round 3 or later .* got round 2"):
        simulate("scaffold", history.state, checkpoint=tmp_path)


class Broken(Exception):
    pass


def breaking(server, info):
    if server.round == 3:
        raise Broken


def pressing(server, info):
    if server.round == 3:
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("at", range(3), ids=["host", "disk", "device"])
@pytest.mark.parametrize(("callback", "kind"), [(breaking, Broken), (pressing, jaxfed.Interrupted)])
def test_what_ends_a_run_carries_its_state(tmp_path, at, callback, kind):
    whole, history = simulate("scaffold", store=stores(tmp_path / "whole")[at])
    with pytest.raises(kind) as ended:
        simulate("scaffold", store=stores(tmp_path)[at], callbacks=[callback])
    assert "error.state is the run after round 3" in ended.value.__notes__[-1]
    resumed, second = simulate("scaffold", ended.value.state)
    chex.assert_trees_all_equal(resumed, whole)
    assert second.rounds == history.rounds


def test_bad_rounds_and_a_bad_evaluation_leave_the_state():
    def evaluate(params):
        raise Broken

    with pytest.raises(Broken) as ended:
        simulate("scaffold", evaluate=evaluate, every=4)
    assert ended.value.state.server.round == 4
    state, whole = ended.value.state, simulate("scaffold")[0]
    chex.assert_trees_all_equal(simulate("scaffold", state)[0], whole)
    server = state.server
    bad = server._replace(params=jax.tree.map(lambda leaf: leaf * jnp.nan, server.params))
    with pytest.raises(FloatingPointError, match="round 4: every client") as ended:
        simulate("scaffold", state._replace(server=bad))
    mended = ended.value.state._replace(server=server)
    chex.assert_trees_all_equal(simulate("scaffold", mended)[0], whole)


def test_an_error_inside_a_round_leaves_none():
    """The rows were donated to the program that failed."""
    failing = []

    def look(value):
        if failing:
            raise Broken
        return value

    def loss_fn(params, batch, key):
        loss, aux = problems.loss_fn(params, batch, key)
        seen = jax.pure_callback(
            look, jax.ShapeDtypeStruct((), jnp.float32), jnp.float32(0.0), vmap_method="sequential"
        )
        return loss + seen, aux

    algorithm = jaxfed.scaffold(loss_fn)
    with pytest.raises(Exception, match="Broken") as ended:
        simulate(algorithm, callbacks=[lambda server, info: failing.append(server.round)])
    assert ended.value.state is None
    assert "inside a round" in ended.value.__notes__[-1]
