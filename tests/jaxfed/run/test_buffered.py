"""Buffered asynchronous rounds: simulated time, staleness, and the equations of FedBuff."""

import jax
import numpy as np
import pytest

import jaxfed
from jaxfed.run.buffered import Clock
from tests.support import fedspeed_reference as reference
from tests.support.jaxfed import problems

PROBLEM = problems.make_problem(10, np.float32)
CLIENTS = [PROBLEM.clients[each % problems.CLIENTS] for each in range(12)]
DATA = jaxfed.data.client_data(CLIENTS)
GRADIENT = reference.softmax_regression_gradient(problems.CLASSES)


def run(algorithm, buffer, rounds=6, **report):
    server = algorithm.init(PROBLEM.params, 12)
    return jaxfed.simulate_buffered(
        algorithm, server, DATA, rounds=rounds, batching=jaxfed.Steps(2, 64), buffer=buffer,
        report=jaxfed.Report(progress=False, **report),
    )  # fmt: skip


def speeds(generator, client):
    """Client 0 is slow; a little noise, so that no two finish together."""
    return (7.0 if client == 0 else 1.0) + 0.01 * float(generator.uniform())


def test_everybody_at_once_from_the_same_step_is_fedavg():
    """As many train as the server waits for, all equally fast: in the first step no result is old."""
    buffer = jaxfed.Buffer(6, 6, duration=lambda generator, client: 1.0)
    server, history = run(jaxfed.fedavg(problems.loss_fn), buffer, clients=True)
    assert history.rounds["staleness_max"] == [0, 1, 1, 1, 1, 1]
    x = problems.flat(PROBLEM.params).astype(np.float64)
    first = [history.clients["client"][slot] for slot in range(6)]
    ends = []
    for client in first:
        samples, at = CLIENTS[client], x
        for _ in range(2):
            at = at - 0.1 * GRADIENT(at, (samples["x"], samples["y"]))
        ends.append(at)
    _, one = run(jaxfed.fedavg(problems.loss_fn), buffer, rounds=1)
    after, _ = run(jaxfed.fedavg(problems.loss_fn), buffer, rounds=1)
    np.testing.assert_allclose(problems.flat(after.params), np.mean(ends, axis=0), rtol=1e-4, atol=1e-5)
    assert one.rounds["num_used"] == [6]


def test_old_results_are_weighed_and_shorten_the_step():
    """By hand from the arrivals: each from the parameters that it began with, s(τ) = 1/√(1+τ), divided by K."""
    buffer, rounds = jaxfed.Buffer(2, 4, duration=speeds), 30
    server, history = run(jaxfed.fedavg(problems.loss_fn), buffer, rounds)
    clock, versions = Clock(buffer, 12, 0), [problems.flat(PROBLEM.params).astype(np.float64)]
    late = []
    for number in range(rounds):
        moved = []
        for arrival in clock.next(number):
            samples, begun = CLIENTS[arrival.client], versions[arrival.version]
            at = begun
            for _ in range(2):
                at = at - 0.1 * GRADIENT(at, (samples["x"], samples["y"]))
            moved.append((at - begun) / np.sqrt(1.0 + number - arrival.version))
            late.append(number - arrival.version)
        versions.append(versions[-1] + np.sum(moved, axis=0) / 2)
        assert history.rounds["time"][number] == pytest.approx(clock.time)
    assert max(late) >= 3
    assert max(history.rounds["staleness_max"]) == max(late)
    np.testing.assert_allclose(problems.flat(server.params), versions[-1], rtol=1e-4, atol=1e-5)


def test_the_clock():
    """Time never runs back, nobody trains twice at once, and so many train at any time."""
    buffer = jaxfed.Buffer(3, 5)
    clock, time, begun = Clock(buffer, 8, 1), 0.0, []
    for number in range(40):
        arrived = clock.next(number)
        assert len(arrived) == 3
        assert len({each.client for each in arrived}) == 3
        assert all(before.time <= after.time for before, after in zip(arrived, arrived[1:], strict=False))
        assert time <= arrived[0].time
        assert all(each.version <= number for each in arrived)
        running = [each.client for each in clock._running]
        assert len(running) == len(set(running)) == 5
        time = clock.time
        begun += [each.client for each in arrived]
    assert set(begun) == set(range(8))


@pytest.mark.parametrize("name", ["fedspeed", "scaffold", "fedadam", "ditto"])
def test_any_algorithm_learns_and_keeps_its_rows(name):
    algorithm = jaxfed.algorithms.get(name)(problems.loss_fn)

    def look(server, rows):
        memory = rows(np.arange(12)).memory
        kept = jax.tree.map(lambda leaf: leaf.mean(axis=0), memory)
        if name not in ("fedspeed", "scaffold"):
            return {"difference": 0.0}
        return {
            "difference": max(
                float(abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, (kept, server.extra)), strict=True)
            )
        }

    _, history = run(algorithm, jaxfed.Buffer(3, 5), 25, evaluate=look)
    assert np.mean(history.rounds["loss"][-5:]) < 0.95 * np.mean(history.rounds["loss"][:3])
    assert max(history.evaluations["difference"]) < 1e-5


def test_an_aggregate_of_all_messages_and_another_plan():
    algorithm = jaxfed.uplink(jaxfed.fedavg(problems.loss_fn), aggregate=jaxfed.robust.median())
    server, history = run(algorithm, jaxfed.Buffer(3, 4), 2)
    assert history.rounds["num_used"] == [3, 3]
    plain = jaxfed.fedavg(problems.loss_fn)
    one = run(plain, jaxfed.Buffer(3, 4), 3)[0]
    other = jaxfed.simulate_buffered(
        plain, plain.init(PROBLEM.params, 12), DATA, rounds=3, batching=jaxfed.Steps(2, 64),
        buffer=jaxfed.Buffer(3, 4), plan=jaxfed.map(), report=jaxfed.Report(progress=False),
    )[0]  # fmt: skip
    np.testing.assert_allclose(problems.flat(one.params), problems.flat(other.params), rtol=1e-5, atol=1e-6)


def test_a_rule_ends_it():
    server, history = run(
        jaxfed.fedavg(problems.loss_fn), jaxfed.Buffer(2, 3), 20, stop=lambda h: h.rounds["time"][-1] > 2
    )
    assert history.rounds["time"][-1] > 2
    assert int(server.round) == len(history.rounds["round"]) < 20


def test_refusals():
    algorithm = jaxfed.fedavg(problems.loss_fn)
    with pytest.raises(ValueError, match="concurrency must be a finite number ≥ 10"):
        jaxfed.Buffer(10, 5)
    with pytest.raises(ValueError, match="expected at least 13 clients, 8 that train and 5 whose results wait, got 12"):
        run(algorithm, jaxfed.Buffer(5, 8))
    with pytest.raises(ValueError, match="duration: expected a finite time > 0, got -1.0"):
        run(algorithm, jaxfed.Buffer(2, 3, duration=lambda generator, client: -1.0))
    with pytest.raises(ValueError, match="the server was made for 5 clients, the data has 12"):
        jaxfed.simulate_buffered(
            algorithm,
            algorithm.init(PROBLEM.params, 5),
            DATA,
            rounds=1,
            batching=jaxfed.Steps(1, 4),
            buffer=jaxfed.Buffer(2, 3),
        )
