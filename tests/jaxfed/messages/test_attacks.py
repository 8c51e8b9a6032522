"""Attackers, against aggregates that withstand them and one that does not; clipping to an adaptive norm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxfed
from jaxfed import attacks, robust
from jaxfed.messages import adaptive_clip
from tests.support.jaxfed import problems
from tests.support.jaxfed.runs import arguments

PROBLEM = problems.make_problem(12, np.float32)


def cohort(algorithm, ids=(0, 1, 2, 3, 4)):
    rows = jaxfed.DeviceStore().init(algorithm.init_client(PROBLEM.params), problems.CLIENTS)
    return problems.cohort_of(PROBLEM, list(ids), problems.indices(PROBLEM, 0, list(ids), 2, 4), rows)


def step(algorithm, ids=(0, 1, 2, 3, 4), plan=None):
    server = algorithm.init(PROBLEM.params, problems.CLIENTS)
    options = {} if plan is None else {"plan": plan}
    return algorithm.step(server, cohort(algorithm, ids), jax.random.key(0), **options)


def messages(algorithm):
    """Every client's own message, by hand."""
    members, server = cohort(algorithm), algorithm.init(PROBLEM.params, problems.CLIENTS)
    key = jax.random.fold_in(jax.random.key(0), 0)
    sent = []
    for slot in range(5):
        member = jax.tree.map(lambda leaf, slot=slot: leaf[slot], members)
        sent.append(problems.flat(algorithm.client_update(server, member, jax.random.fold_in(key, slot)).message.delta))
    return np.stack(sent)


PLAIN = jaxfed.fedavg(problems.loss_fn)


def moved(algorithm, **options):
    return problems.flat(step(algorithm, **options)[0].params) - problems.flat(PROBLEM.params)


@pytest.mark.parametrize("plan", [None, jaxfed.map(), jaxfed.chunked(2)])
def test_sign_flip(plan):
    sent = messages(PLAIN)
    sent[[1, 3]] *= -2.0
    actual = moved(attacks.attacked(PLAIN, attacks.sign_flip(2.0), [3, 1]), plan=plan)
    np.testing.assert_allclose(actual, sent.mean(0), rtol=1e-4, atol=1e-6)


def test_little_is_enough():
    sent = messages(PLAIN)
    honest = sent[[0, 2, 4]]
    sent[[1, 3]] = honest.mean(0) - 1.5 * honest.std(0)
    actual = moved(attacks.attacked(PLAIN, attacks.little_is_enough(1.5), [1, 3]))
    np.testing.assert_allclose(actual, sent.mean(0), rtol=1e-4, atol=1e-6)


def test_gaussian_is_noise_and_other_noise_every_round():
    algorithm = attacks.attacked(PLAIN, attacks.gaussian(100.0), [2])
    first = 5 * moved(algorithm)
    assert 30.0 < first.std() < 300.0
    server = algorithm.init(PROBLEM.params, problems.CLIENTS)._replace(round=jnp.int32(1))
    after, _, _ = algorithm.step(server, cohort(algorithm), jax.random.key(0))
    assert np.abs(5 * (problems.flat(after.params) - problems.flat(PROBLEM.params)) - first).max() > 1.0


def test_attackers_that_are_absent_change_nothing():
    algorithm = attacks.attacked(PLAIN, attacks.sign_flip(9.0), [1, 3])
    np.testing.assert_allclose(moved(algorithm, ids=(0, 2)), moved(PLAIN, ids=(0, 2)), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("attack", [attacks.sign_flip(50.0), attacks.gaussian(50.0)], ids=lambda each: each.name)
@pytest.mark.parametrize("name", ["fedavg", "fedspeed"])
def test_an_aggregate_of_ranks_withstands_what_the_mean_does_not(attack, name):
    algorithm = jaxfed.algorithms.get(name)(problems.loss_fn)
    honest = moved(algorithm)
    broken = moved(attacks.attacked(algorithm, attack, [2]))
    guarded = jaxfed.uplink(algorithm, aggregate=robust.median())
    held = moved(attacks.attacked(guarded, attack, [2]))
    assert np.abs(broken - honest).max() > 10 * np.abs(held - honest).max()
    info = step(attacks.attacked(guarded, attack, [2]))[2]
    assert int(info.num_used) == 5


def test_in_a_run_with_wrong_labels():
    """One client's labels are turned about; the samples of the others, which it shares, are not."""
    data = jaxfed.data.partitioned(PROBLEM.clients[0], [np.arange(5), np.arange(7)])
    flipped = jaxfed.data.flip_labels(data, [1], problems.CLASSES)
    whole = np.asarray(PROBLEM.clients[0]["y"])
    of = [
        np.asarray(flipped.arrays["y"])[np.asarray(flipped.order)[start : start + size]]
        for start, size in ((0, 5), (5, 7))
    ]
    np.testing.assert_array_equal(of[0], whole[:5])
    np.testing.assert_array_equal(of[1], 2 - whole[:7])
    x = np.asarray(flipped.arrays["x"])[np.asarray(flipped.order)[5:12]]
    np.testing.assert_array_equal(x, PROBLEM.clients[0]["x"][:7])
    with pytest.raises(ValueError, match="expected ids from 0 to 1"):
        jaxfed.data.flip_labels(data, [2], 3)
    with pytest.raises(ValueError, match="expected labels from 0 to 1, got 2"):
        jaxfed.data.flip_labels(data, [0, 1], 2)
    with pytest.raises(ValueError, match="expected an array of labels called 'label'"):
        jaxfed.data.flip_labels(data, [0], 3, name="label")


def test_refusals_and_records():
    with pytest.raises(ValueError, match="clients: expected ids ≥ 0"):
        attacks.attacked(PLAIN, attacks.sign_flip(), [])
    with pytest.raises(ValueError, match="factor must be a finite number > 0"):
        attacks.sign_flip(0.0)
    with pytest.raises(ValueError, match="expected an algorithm with `parts`"):
        attacks.attacked(PLAIN._replace(parts=None), attacks.sign_flip(), [1])
    named = attacks.attacked(PLAIN, attacks.sign_flip(2.0), [3, 1]).hyperparameters
    assert named["attack"] == "sign_flip(2.0) by [1, 3]"


def test_the_norm_of_a_clip_follows_a_quantile():
    """From far below and far above it comes to where half of the messages are longer."""
    data = jaxfed.data.client_data(PROBLEM.clients)
    for first in (1e-3, 10.0):
        algorithm = adaptive_clip(PLAIN, quantile=0.5, first_norm=first, rate=0.3)
        server = algorithm.init(PROBLEM.params, problems.CLIENTS)
        options = arguments(rounds=60, sampler=jaxfed.FixedSize(5), batching=jaxfed.Steps(2, 64), clients=True)
        server, history = jaxfed.simulate(algorithm, server, data, **options)
        last = np.array(history.clients["delta_norm"][-25:]).reshape(5, 5)
        norm = float(server.extra.norm)
        assert np.sort(last.mean(0))[1] < norm < np.sort(last.mean(0))[3] * 1.2, (norm, last.mean(0))


@pytest.mark.parametrize("name", ["fedavg", "fedspeed", "scaffold", "fedsmoo", "fedcm"])
def test_one_adaptive_round_by_hand(name):
    """Messages are shortened to C as by `privacy.clip`, sums stay sums of rows, C moves by the share below it."""
    algorithm = jaxfed.algorithms.get(name)(problems.loss_fn)
    clipped = jaxfed.uplink(algorithm, jaxfed.privacy.clip(0.3))
    server, rows, info = step(adaptive_clip(algorithm, quantile=0.25, first_norm=0.3, rate=0.5))
    expected, expected_rows, _ = step(clipped)
    np.testing.assert_allclose(problems.flat(server.params), problems.flat(expected.params), rtol=1e-4, atol=1e-6)
    for ours, theirs in zip(jax.tree.leaves(rows.memory), jax.tree.leaves(expected_rows.memory), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
    share = -np.log(float(server.extra.norm) / 0.3) / 0.5 + 0.25
    assert share * 5 == pytest.approx(round(share * 5), abs=1e-3)
    assert round(share * 5) in range(6)
    assert int(info.num_used) == 5


def test_adaptive_refusals():
    with pytest.raises(ValueError, match="expected an algorithm without transforms of messages"):
        adaptive_clip(jaxfed.uplink(PLAIN, jaxfed.privacy.clip(1.0)))
    with pytest.raises(ValueError, match="expected messages that transforms may change, got those of adaptive_clip"):
        jaxfed.uplink(adaptive_clip(PLAIN), jaxfed.privacy.clip(1.0))
    with pytest.raises(ValueError, match="quantile must be a finite number"):
        adaptive_clip(PLAIN, quantile=1.5)
