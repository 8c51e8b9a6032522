"""The host loop: history, evaluation, resume, Ctrl-C, kill, bad clients, bad arguments, several devices."""

import json
import os
import signal
import subprocess
import sys
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxfed
from tests.support.jaxfed import problems
from tests.support.jaxfed.killed_run import run
from tests.support.jaxfed.runs import arguments


def simulate(algorithm, clients=None, **options):
    """Four rounds over the small problem, without a bar."""
    problem = problems.make_problem(21, np.float32)
    data = jaxfed.data.client_data(clients or problem.clients)
    server = algorithm.init(problem.params, problems.CLIENTS)
    chosen = {"rounds": 4, "sampler": jaxfed.FixedSize(2), "batching": jaxfed.Epochs(1, 4), **options}
    return jaxfed.simulate(algorithm, server, data, **arguments(**chosen))


@pytest.mark.parametrize("batching", [jaxfed.Epochs(2, 4), jaxfed.Steps(3, 4)])
def test_history(batching):
    """One entry per round, one per evaluation (the last round included), all of it JSON."""
    algorithm = jaxfed.fedspeed(problems.loss_fn, learning_rate_decay=0.5)
    server, history = simulate(
        algorithm, rounds=5, evaluate=lambda params: {"bias": jnp.sum(params["bias"])}, every=2, batching=batching
    )
    columns = json.loads(json.dumps(history.to_dict()))
    assert columns["rounds"]["round"] == [1, 2, 3, 4, 5]
    assert columns["rounds"]["learning_rate"] == pytest.approx([0.1 * 0.5**t for t in range(5)])
    assert columns["rounds"]["num_used"] == [2] * 5
    assert all(0 < count <= 4 for count in columns["rounds"]["aux/count"])
    assert columns["evaluations"]["round"] == [2, 4, 5]
    assert columns["evaluations"]["bias"][-1] == pytest.approx(float(jnp.sum(server.params["bias"])))
    assert server.round == 5


def test_a_run_compiles_one_round_and_learns():
    chex.clear_trace_counter()
    algorithm = jaxfed.fedspeed(problems.loss_fn)
    algorithm = algorithm._replace(step=chex.assert_max_traces(algorithm.step, n=1))
    _, history = simulate(algorithm, rounds=20)
    assert np.mean(history.rounds["loss"][-5:]) < 0.8 * np.mean(history.rounds["loss"][:5])


@pytest.mark.parametrize("store", [None, jaxfed.HostStore()])
def test_a_second_run_compiles_nothing(store):
    """The same algorithm gives the same run without being traced anew; another seed is another program."""
    traces = []

    def counted(params, batch, key):
        traces.append(None)
        return problems.loss_fn(params, batch, key)

    algorithm = jaxfed.fedspeed(counted)
    first, _ = simulate(algorithm, store=store)
    once = len(traces)
    again, _ = simulate(algorithm, store=store)
    assert len(traces) == once
    chex.assert_trees_all_equal(again, first)
    other, _ = simulate(algorithm, store=store, seed=1)
    assert len(traces) > once
    assert (other.params["weight"] != first.params["weight"]).any()


def test_rows_of_a_run_are_those_of_steps_by_hand():
    """What is gathered and scattered is right: a run of two rounds is two calls of `step` with the same cohorts."""
    algorithm = jaxfed.fedspeed(problems.loss_fn)
    seen = []
    simulate(algorithm, rounds=3, callbacks=[lambda server, info: seen.append(server.params)])
    problem = problems.make_problem(21, np.float32)
    data = jaxfed.data.client_data(problem.clients)
    store, sampler, batching = jaxfed.DeviceStore(), jaxfed.FixedSize(2), jaxfed.data.Epochs(1, 4)
    server = algorithm.init(problem.params, problems.CLIENTS)
    rows = store.init(algorithm.init_client(problem.params), problems.CLIENTS)
    train_key, batch_key = jax.random.split(jax.random.key(0))
    for number in range(3):
        ids = jnp.asarray(sampler.draw(0, number, problems.CLIENTS))
        key = jax.random.fold_in(batch_key, number)
        batches = jaxfed.data.batches.draw_batches(data, ids, key, batching, max(data.lengths.tolist()))
        cohort = jaxfed.Cohort(ids, store.gather(rows, ids), batches)
        server, new_rows, _ = jax.jit(algorithm.step)(server, cohort, train_key)
        rows = store.scatter(rows, ids, new_rows)
        chex.assert_trees_all_close(seen[number], server.params, atol=1e-6)


def test_coin_flips_and_seeds():
    algorithm = jaxfed.fedavg(problems.loss_fn)
    one, history = simulate(algorithm, sampler=jaxfed.CoinFlips(0.5))
    same, _ = simulate(algorithm, sampler=jaxfed.CoinFlips(0.5))
    other, _ = simulate(algorithm, sampler=jaxfed.CoinFlips(0.5), seed=1)
    chex.assert_trees_all_equal(one, same)
    assert (one.params["bias"] != other.params["bias"]).any()
    expected = [int(np.sum(jaxfed.CoinFlips(0.5).draw(0, t, problems.CLIENTS) >= 0)) for t in range(4)]
    assert history.rounds["num_used"] == expected


@pytest.mark.parametrize("shape", [(2,), (2, 2)])
def test_a_mesh_changes_nothing(shape):
    algorithm = jaxfed.fedspeed(problems.loss_fn)
    mesh = jax.make_mesh(shape, ("clients", "more")[: len(shape)])
    alone, _ = simulate(algorithm, sampler=jaxfed.FixedSize(4))
    spread, _ = simulate(algorithm, sampler=jaxfed.FixedSize(4), mesh=mesh)
    chex.assert_trees_all_close(spread, alone, atol=1e-6)
    assert len(spread.params["bias"].devices()) == mesh.size
    with pytest.raises(ValueError, match=f"mesh of {mesh.size} devices must divide the cohort's 3 slots"):
        simulate(algorithm, sampler=jaxfed.FixedSize(3), mesh=mesh)


def test_resume_is_bit_identical(tmp_path):
    whole, history = run(None, 5)
    run(tmp_path, 2)
    resumed, resumed_history = run(tmp_path, 5)
    chex.assert_trees_all_equal(resumed, whole)
    assert resumed_history.rounds == history.rounds
    with pytest.warns(jaxfed.NothingTrainedWarning, match=f"{tmp_path} has done 5 rounds already, and rounds=5"):
        again, _ = run(tmp_path, 5)
    chex.assert_trees_all_equal(again, whole)


def test_a_damaged_checkpoint_is_renamed_and_skipped(tmp_path):
    whole, _ = run(None, 4)
    run(tmp_path, 3)
    newest = max(path for path in tmp_path.iterdir())
    victim = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    with pytest.warns(UserWarning, match="renamed, continuing from the checkpoint before it"):
        resumed, _ = run(tmp_path, 4)
    chex.assert_trees_all_equal(resumed, whole)


def test_another_run_in_the_directory_is_refused(tmp_path):
    run(tmp_path, 1)
    with pytest.raises(ValueError, match="holds another run .*seed: 0 there, 7 here"):
        run(tmp_path, 2, seed=7)
    with pytest.raises(ValueError, match="batching: .*batch_size=4.* there, .*batch_size=3.* here"):
        run(tmp_path, 2, batching=jaxfed.Epochs(1, 3))


def press_after(round_number, times=1):
    """Callback that presses Ctrl-C in round `round_number`."""

    def callback(server, info):
        if server.round == round_number:
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)

    return callback


def test_ctrl_c_saves_and_names_the_way_to_resume(tmp_path, capsys):
    handler = signal.getsignal(signal.SIGINT)
    whole, _ = run(None, 4)
    with pytest.raises(KeyboardInterrupt, match=f"stopped after round 2, saved in {tmp_path}; the same call resumes"):
        run(tmp_path, 4, [press_after(2)])
    assert "stopping after this round" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is handler
    assert jaxfed.checkpoint.latest(tmp_path) == 2
    resumed, history = run(tmp_path, 4)
    chex.assert_trees_all_equal(resumed, whole)
    assert history.rounds["round"] == [1, 2, 3, 4]


def test_ctrl_c_twice_stops_at_once(tmp_path):
    with pytest.raises(KeyboardInterrupt, match="at once"):
        run(tmp_path, 4, [press_after(2, times=2)])
    assert jaxfed.checkpoint.latest(tmp_path) == 1


def test_ctrl_c_without_a_checkpoint_states_that_nothing_was_saved():
    with pytest.raises(KeyboardInterrupt, match="nothing saved"):
        run(None, 4, [press_after(1)])


def start(directory, *arguments):
    command = [sys.executable, "-m", "tests.support.jaxfed.killed_run", str(directory), *map(str, arguments)]
    nowhere = subprocess.DEVNULL
    return subprocess.Popen(command, stdout=nowhere, stderr=nowhere)


def kill_during_a_save(directory, rounds, tier):
    """Start the run and kill it as soon as a step's folder is there whose manifest is not; True if it came to that."""
    process = start(directory, rounds, *tier)
    complete = jaxfed.checkpoint.latest(directory)
    while process.poll() is None:
        half = [path for path in directory.glob("????????") if not (path / "manifest.json").exists()]
        if any(int(path.name) > complete for path in half):
            process.kill()
        time.sleep(0.001)
    return process.returncode == -signal.SIGKILL and any(not (path / "manifest.json").exists() for path in half)


@pytest.mark.slow
@pytest.mark.parametrize("tier", [(), ("disk",)], ids=["mesh", "disk"])
def test_sigkill_between_and_during_saves_then_resume_is_bit_identical(tmp_path, tier):
    rounds, directory = 12, tmp_path / "run"
    whole, _ = run(tmp_path / "whole", rounds, disk=bool(tier))
    assert start(directory, rounds, 3, *tier).wait() == -signal.SIGKILL
    assert jaxfed.checkpoint.latest(directory) in (1, 2)
    assert any(kill_during_a_save(directory, rounds, tier) for _ in range(4))
    assert jaxfed.checkpoint.latest(directory) < rounds
    resumed, history = run(directory, rounds, disk=bool(tier))
    chex.assert_trees_all_equal(resumed, whole)
    assert history.rounds["round"] == list(range(1, rounds + 1))


def spoilt(bad):
    clients = problems.make_problem(21, np.float32).clients
    return [
        {**client, "x": client["x"] * np.float32("nan")} if i in bad else client for i, client in enumerate(clients)
    ]


def test_bad_clients_are_counted_and_the_run_continues():
    algorithm = jaxfed.fedspeed(problems.loss_fn)
    server, history = simulate(algorithm, spoilt({1}), sampler=jaxfed.FixedSize(5))
    assert history.rounds["num_excluded"] == [1] * 4
    assert history.rounds["num_used"] == [4] * 4
    assert np.isfinite(problems.flat(server.params)).all()


def test_a_round_of_bad_clients_only_names_them():
    with pytest.raises(FloatingPointError, match=r"round 0: every client returned NaN or infinity: clients \[0, 1, 2"):
        simulate(jaxfed.fedavg(problems.loss_fn), spoilt(set(range(5))), sampler=jaxfed.FixedSize(5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": jaxfed.FixedSize(6)}, "cohort_size 6 is larger than the population of 5 clients"),
        ({"sampler": jaxfed.FixedSize(2, weights=[1.0, 2.0])}, "expected weights for 5 clients, got 2"),
        ({"rounds": -1}, "rounds must be"),
        ({"clients": problems.make_problem(21, np.float32).clients[:3]}, "made for 5 clients, the data has 3"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        simulate(jaxfed.fedavg(problems.loss_fn), **options)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: jaxfed.Steps(1, 0), "batch_size must be"),
        (lambda: jaxfed.Report(every=0), "every must be"),
        (lambda: jaxfed.Layout("fastest"), "plan must be one of 'auto'"),
        (lambda: jaxfed.FixedSize(2, weights="sample"), "Did you mean 'samples'"),
        (lambda: jaxfed.FixedSize(2, weights=[1.0, -1.0]), "weights must be 'uniform', 'samples' or N finite numbers"),
        (lambda: jaxfed.CoinFlips(0.5, weights=2.0), "weights must be 'uniform', 'samples' or N finite numbers"),
    ],
)
def test_values_refuse(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_weights_are_those_of_the_sampler_and_part_of_the_run(tmp_path):
    """Numbers of samples, by name or by number, are the same run but for the record; other weights are another run."""
    algorithm = jaxfed.fedavg(problems.loss_fn)
    sizes = [len(client["y"]) for client in problems.make_problem(21, np.float32).clients]
    named, _ = simulate(algorithm, sampler=jaxfed.FixedSize(2, weights="samples"))
    listed, _ = simulate(algorithm, sampler=jaxfed.FixedSize(2, weights=np.array(sizes)), checkpoint=tmp_path)
    alike, _ = simulate(algorithm)
    chex.assert_trees_all_equal(named, listed)
    assert (named.params["bias"] != alike.params["bias"]).any()
    with pytest.raises(ValueError, match="another run .client_weights: .* there, uniform here"):
        simulate(algorithm, rounds=5, checkpoint=tmp_path)
