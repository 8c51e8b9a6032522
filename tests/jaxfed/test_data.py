"""Flat client data and its batches, and the samplers of cohorts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxfed
from jaxfed.data import Epochs, Steps, client_data
from jaxfed.data.batches import draw_batches
from tests.jaxfed.test_trajectories import DATA

LENGTHS = [5, 8, 1, 12]


def numbered() -> jaxfed.data.ClientData:
    """Sample j of client i is the number 100·i + j."""
    return client_data([{"x": 100 * i + np.arange(n, dtype=np.int32)} for i, n in enumerate(LENGTHS)])


def drawn(batching, ids, seed=0):
    batches = draw_batches(numbered(), jnp.asarray(ids, jnp.int32), jax.random.key(seed), batching, max(LENGTHS))
    return np.asarray(batches["x"]), np.asarray(batches["mask"])


def test_an_epoch_sees_every_sample_once_and_only_ones_own():
    x, mask = drawn(Epochs(local_epochs=2, batch_size=4), [3, 0, -1, 2])
    assert x.shape == mask.shape == (4, 6, 4)
    for slot, client in [(0, 3), (1, 0), (3, 2)]:
        passes = [x[slot, half][mask[slot, half]] for half in (slice(0, 3), slice(3, 6))]
        for each in passes:
            assert sorted(each) == [100 * client + j for j in range(LENGTHS[client])]
        if LENGTHS[client] > 4:
            assert passes[0].tolist() != passes[1].tolist()
    assert not mask[2].any()


def test_short_batches_come_last_in_an_epoch():
    _, mask = drawn(Epochs(local_epochs=1, batch_size=4), [0])
    assert mask[0].sum(axis=1).tolist() == [4, 1, 0]


def test_steps_walk_through_one_shuffle():
    x, mask = drawn(Steps(local_steps=6, batch_size=4), [1, 2])
    assert mask[0].all()
    assert sorted(x[0, :2].ravel()) == [100 + j for j in range(8)]
    np.testing.assert_array_equal(x[0, :2], x[0, 2:4])
    assert mask[1].sum(axis=1).tolist() == [1] * 6
    assert x[1][mask[1]].tolist() == [200] * 6


def test_steps_repeat_no_sample_within_a_batch():
    x, mask = drawn(Steps(local_steps=9, batch_size=4), [0, 3])
    assert mask.all()
    assert all(len(set(batch)) == 4 for client in x for batch in client)


def test_batches_hang_on_key_and_client_only():
    x, _ = drawn(Epochs(1, 4), [3, 0])
    other, _ = drawn(Epochs(1, 4), [-1, 3])
    np.testing.assert_array_equal(x[0], other[1])
    assert (drawn(Epochs(1, 4), [3, 0], seed=1)[0][0] != x[0]).any()


GOOD = {"x": np.ones((3, 2), np.float32), "y": np.zeros(3, np.int32)}


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"x": np.ones((0, 2), np.float32), "y": np.zeros(0, np.int32)}, "client 1: expected at least one sample"),
        ({"x": np.ones((3, 2), np.float32), "y": np.zeros(2, np.int32)}, "client 1: .* of one length, got .*'y': 2"),
        ({"x": np.ones((3, 4), np.float32), "y": np.zeros(3, np.int32)}, r"client 1: .*'x' must be float32\[2\]"),
        ({"x": np.ones((3, 2), np.float32), "y": np.zeros(3)}, r"client 1: .*'y' must be int32\[\].* got float64"),
        ({"x": np.ones((3, 2), np.float32)}, r"client 1: expected the arrays \['x', 'y'\], got \['x'\]"),
        ({"x": np.float32(1), "y": np.int32(0)}, "client 1: .* of one length"),
    ],
)
def test_bad_clients_are_named(second, message):
    with pytest.raises(ValueError, match=message):
        client_data([GOOD, second])


def test_no_clients_and_reserved_names_are_refused():
    with pytest.raises(ValueError, match="at least one client"):
        client_data([])
    with pytest.raises(ValueError, match="rename this array"):
        client_data([{"mask": np.ones(3)}])
    with pytest.raises(ValueError, match="batch_size"):
        Epochs(local_epochs=1, batch_size=0)
    with pytest.raises(ValueError, match="local_steps"):
        Steps(local_steps=0, batch_size=1)


def test_fixed_size_draws_different_clients_and_all_of_them_in_time():
    sampler = jaxfed.FixedSize(4)
    cohorts = [sampler.draw(0, number, 10) for number in range(40)]
    assert all(len(set(ids)) == 4 and ids.dtype == np.int32 for ids in cohorts)
    assert set(np.concatenate(cohorts)) == set(range(10))
    np.testing.assert_array_equal(cohorts[7], sampler.draw(0, 7, 10))
    assert any((sampler.draw(1, number, 10) != cohorts[number]).any() for number in range(3))


def test_a_cohort_larger_than_the_population_is_refused():
    with pytest.raises(ValueError, match="cohort_size 11 is larger than the population of 10 clients"):
        jaxfed.FixedSize(11).num_slots(10)
    with pytest.raises(ValueError, match="cohort_size must be"):
        jaxfed.FixedSize(0)


@pytest.mark.parametrize("name", ["n100_r0.1_s20", "n200_r0.05_s20", "n6_r0.1_s20"])
def test_coin_flips_are_those_recorded(name):
    recorded = np.load(DATA / "activation.npz")[name]
    num_clients, participation, seed = (float(part[1:]) for part in name.split("_"))
    sampler = jaxfed.CoinFlips(participation)
    for number, active in enumerate(recorded):
        ids = sampler.draw(int(seed), number, int(num_clients))
        assert len(ids) == sampler.num_slots(int(num_clients))
        assert ids[ids >= 0].tolist() == np.flatnonzero(active).tolist()


def test_coin_flips_beyond_the_capacity_say_so():
    with pytest.raises(ValueError, match=r"round 0: \d+ active clients exceed 1 slots; pass CoinFlips\(0.9, capacity="):
        jaxfed.CoinFlips(0.9, capacity=1).draw(0, 0, 10)
