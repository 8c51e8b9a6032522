"""Cohorts of a round: streams of seeds and rounds, empty rounds, and custom samplers."""

import csv
import dataclasses
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxfed
from jaxfed import plot
from jaxfed.core.samplers import cohorts, first_cohort, recorded
from jaxfed.messages import privacy
from tests.jaxfed.algorithms.test_trajectories import DATA
from tests.support.jaxfed import problems
from tests.support.jaxfed.runs import arguments


def test_fixed_size_draws_different_clients_and_every_client_eventually():
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
def test_the_reference_rule_gives_the_recorded_cohorts(name):
    recorded = np.load(DATA / "activation.npz")[name]
    num_clients, participation, seed = (float(part[1:]) for part in name.split("_"))
    sampler = jaxfed.CoinFlips(participation, rule="reference")
    for number, active in enumerate(recorded):
        ids = sampler.draw(int(seed), number, int(num_clients))
        assert len(ids) == sampler.num_slots(int(num_clients))
        assert ids[ids >= 0].tolist() == np.flatnonzero(active).tolist()


def test_coin_flips_beyond_the_capacity_are_refused():
    with pytest.raises(ValueError, match=r"round 0: \d+ active clients exceed 1 slots; pass CoinFlips\(0.9, capacity="):
        jaxfed.CoinFlips(0.9, capacity=1).draw(0, 0, 10)


@pytest.mark.parametrize("sampler", [jaxfed.CoinFlips(0.2), jaxfed.FixedSize(4)], ids=["coins", "fixed"])
def test_every_seed_and_round_has_a_stream_of_its_own(sampler):
    """No seed is another one some rounds later, and no round takes the next one's cohort."""
    drawn = {(seed, at): tuple(sampler.draw(seed, at, 40)) for seed in range(6) for at in range(6)}
    assert len(set(drawn.values())) == 36


@pytest.mark.parametrize("expected", [0.2, 1.0])
def test_coins_are_independent_and_rounds_may_be_empty(expected):
    """Numbers of clients are binomial, the empty rounds among them; a round repeats no more of the next than chance."""
    clients, rounds = 100, 2000
    sampler = jaxfed.CoinFlips(expected / clients)
    active = [frozenset(ids[ids >= 0].tolist()) for ids in (sampler.draw(0, at, clients) for at in range(rounds))]
    sizes, empty = [len(each) for each in active], (1 - expected / clients) ** clients
    assert np.mean(sizes) == pytest.approx(expected, abs=4 * np.sqrt(expected / rounds))
    assert np.mean([not each for each in active]) == pytest.approx(empty, abs=4 * np.sqrt(empty / rounds))
    assert np.mean([bool(one) and one == next_one for one, next_one in itertools.pairwise(active)]) < 0.02


def test_clients_that_rarely_participate_do_not_end_a_run():
    assert (jaxfed.CoinFlips(1e-6).draw(0, 0, 10) == -1).all()
    assert (jaxfed.CoinFlips(1e-4, rule="reference").draw(0, 0, 2) >= 0).any(), "seeds raised thousands of times"


def test_the_authors_rule_is_recorded_as_in_the_first_release():
    """A run of 0.1.0 continues with the same cohorts, and with no others."""
    assert recorded(jaxfed.CoinFlips(0.1, rule="reference")) == "CoinFlips(participation=0.1, capacity=None)"
    assert recorded(jaxfed.CoinFlips(0.1)) != "CoinFlips(participation=0.1, capacity=None)"
    assert recorded(jaxfed.FixedSize(2)) == "FixedSize(cohort_size=2)"


@dataclasses.dataclass(frozen=True)
class Listed:
    """Cohorts from a list, repeated from the first at its end."""

    drawn: tuple
    slots: int = 2

    def num_slots(self, num_clients):
        return self.slots

    def draw(self, seed, number, num_clients):
        return self.drawn[number % len(self.drawn)]


FEDSPEED = jaxfed.fedspeed(problems.loss_fn)


def simulate(algorithm=FEDSPEED, **options):
    """Four rounds over the small problem, without a bar."""
    problem = problems.make_problem(21, np.float32)
    data, server = jaxfed.data.client_data(problem.clients), algorithm.init(problem.params, problems.CLIENTS)
    chosen = {"rounds": 4, "batching": jaxfed.Steps(2, 4), **options}
    return jaxfed.simulate(algorithm, server, data, **arguments(**chosen))


NO_CLIENT = [-1, -1]
EMPTY = Listed((NO_CLIENT, [3, 0], NO_CLIENT, [-1, 1]))
COMBINATIONS = {
    "device": {},
    "chunked on a mesh": {"plan": jaxfed.chunked(2), "mesh": 2},
    "host, one by one": {"store": jaxfed.HostStore(), "plan": jaxfed.map()},
    "disk": {"store": jaxfed.DiskStore},
}


@pytest.mark.parametrize("name", COMBINATIONS)
def test_an_empty_round_happens_and_is_counted(name, tmp_path):
    """It changes only the number of the round, and reports no mean: neither 0 nor the last one's."""
    options, seen = dict(COMBINATIONS[name]), []
    if "mesh" in options:
        options["mesh"] = jax.make_mesh((2,), ("clients",))
    if options.get("store") is jaxfed.DiskStore:
        options["store"] = jaxfed.DiskStore(tmp_path / "rows")
    heard = lambda server, info: seen.append(jax.device_get((server, info)))  # noqa: E731
    server, history = simulate(sampler=EMPTY, callbacks=[heard], **options)
    assert (int(server.round), history.rounds["num_used"]) == (4, [0, 2, 0, 1])
    assert [each is None for each in history.rounds["loss"]] == [True, False, True, False]
    for column in ("gradient_norm", "delta_norm", "sent_bytes", "inconsistency", "aux/count", "loss_worst"):
        assert history.rounds[column][2] is None, column
    assert history.rounds["samples"][2] == history.rounds["num_excluded"][2] == 0
    assert np.isnan(seen[2][1].client.loss)
    chex.assert_trees_all_equal(seen[2][0]._replace(round=0), seen[1][0]._replace(round=0))
    start = problems.make_problem(21, np.float32).params
    chex.assert_trees_all_equal(seen[0][0].params, jax.device_get(start))
    chex.assert_tree_all_finite(server)


def test_empty_rounds_are_left_out_of_files_and_pictures(tmp_path):
    _, history = simulate(sampler=EMPTY, rounds=3)
    history.to_csv(tmp_path / "run.csv")
    with (tmp_path / "run.csv").open(newline="") as file:
        assert [bool(line["loss"]) for line in csv.DictReader(file)] == [False, True, False]
    restored = jaxfed.History.restored(history.describe(), history.snapshot())
    assert restored.rounds == history.rounds
    assert history.latest() == {}
    assert history.last_known("loss") == history.rounds["loss"][1]
    plot.curves({"loss": {"clients": (history.rounds["round"], history.rounds["loss"])}}, tmp_path / "run.png")
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")


def test_noise_hides_an_empty_round():
    """The server adds noise in an empty round as in any other; otherwise its parameters would reveal it."""
    rare = jaxfed.CoinFlips(0.01)
    noise = privacy.central_noise(privacy.Central(1.0, 1.0, rare, num_clients=5, delta=0.01))
    algorithm = jaxfed.uplink(jaxfed.fedavg(problems.loss_fn), privacy.clip(1.0), aggregate=noise)
    server, history = simulate(algorithm, sampler=rare, rounds=1)
    start = problems.make_problem(21, np.float32).params
    assert history.rounds["num_used"] == [0]
    assert float(jnp.linalg.norm(server.params["weight"] - start["weight"])) > 0.1
    chex.assert_tree_all_finite(server.params)


@pytest.mark.parametrize("aggregate", ["median", "geometric_median", "krum"])
def test_robust_means_of_an_empty_round_change_nothing(aggregate):
    made = {"krum": lambda: jaxfed.robust.krum(0)}.get(aggregate, getattr(jaxfed.robust, aggregate))()
    algorithm = jaxfed.uplink(jaxfed.fedavg(problems.loss_fn), aggregate=made)
    server, _ = simulate(algorithm, sampler=Listed(([-1] * 3,), 3), rounds=1)
    chex.assert_trees_all_equal(server.params, problems.make_problem(21, np.float32).params)


def test_a_plan_is_timed_on_a_cohort_that_is_not_empty():
    draw = cohorts(Listed((NO_CLIENT, NO_CLIENT, [4, -1])), 0, 5)
    assert first_cohort(draw).tolist() == [4, -1]
    assert first_cohort(cohorts(Listed((NO_CLIENT,)), 0, 5)).tolist() == NO_CLIENT


class Counting:
    """Records its calls; each draw depends on the state of one generator."""

    def __init__(self):
        self.calls, self.generator = [], np.random.default_rng(0)

    def num_slots(self, num_clients):
        return 2

    def draw(self, seed, number, num_clients):
        self.calls.append(number)
        return self.generator.choice(num_clients, 2, replace=False)


@pytest.mark.parametrize(("store", "ahead"), [(jaxfed.DeviceStore(), 0), (jaxfed.HostStore(), 1)])
def test_a_round_is_drawn_once(store, ahead):
    """Also with a callback; so rows are fetched, and written, for the same clients whatever a sampler returns next."""
    sampler, seen = Counting(), []
    simulate(sampler=sampler, store=store, callbacks=[lambda server, info: seen.append(info)])
    assert sampler.calls == list(range(4 + ahead))
    assert len(seen) == 4


WRONG = {
    "twice": ([1, 1], r"round 0: expected 2 integers from 0 to 4, .* got \[1\] more than once in \[1, 1\]; correct"),
    "too large": ([1, 5], r"got \[5\] among \[1, 5\]"),
    "too small": ([-2, 1], r"got \[-2\] among \[-2, 1\]"),
    "beyond int32": (np.array([0, 2**32]), r"got \[4294967296\] among"),
    "too many": ([0, 1, 2], r"got int64\[3\]"),
    "too few": ([0], r"got int64\[1\]"),
    "floats": (np.array([0.0, 1.0]), r"got float64\[2\]"),
    "booleans": (np.array([True, False]), r"got bool\[2\]"),
    "nothing": (None, r"got object\[\]"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_custom_sampler_is_checked(name):
    drawn, message = WRONG[name]
    with pytest.raises(ValueError, match=message) as refusal:
        simulate(sampler=Listed((drawn,)))
    assert "Listed(" in str(refusal.value)


def test_a_custom_sampler_may_return_lists_of_any_integers():
    lists, _ = simulate(sampler=Listed(([2, -1],)), rounds=1)
    arrays, _ = simulate(sampler=Listed((np.array([2, -1], np.int16),)), rounds=1)
    chex.assert_trees_all_equal(lists, arrays)


def test_bad_slots_seeds_and_rules_are_refused():
    with pytest.raises(ValueError, match=r"num_slots\(5\) of Listed.* must be a finite number ≥ 1, got 0"):
        simulate(sampler=Listed(([],), 0))
    with pytest.raises(ValueError, match="seed must be .* ≤ 4.29497e\\+09, got 4294967296"):
        simulate(sampler=jaxfed.FixedSize(2), seed=2**32)
    with pytest.raises(ValueError, match="Did you mean 'reference'"):
        jaxfed.CoinFlips(0.1, rule="referense")
    with pytest.raises(TypeError, match="cohort_size must be an integer, got 2.5"):
        jaxfed.FixedSize(2.5)


def test_numbers_of_numpy_are_numbers(tmp_path):
    """The same values, reprs and records as Python's, so that a run continues with either."""
    assert repr(jaxfed.FixedSize(np.int64(3))) == repr(jaxfed.FixedSize(3))
    assert repr(jaxfed.CoinFlips(np.float64(0.5), np.int32(4))) == repr(jaxfed.CoinFlips(0.5, 4))
    assert repr(jaxfed.data.Steps(np.int64(2), np.uint8(4))) == repr(jaxfed.data.Steps(2, 4))
    assert repr(jaxfed.chunked(np.int64(2))) == repr(jaxfed.chunked(2))
    for name, factory in jaxfed.algorithms.registry.items():
        made = factory(problems.loss_fn, client_learning_rate=np.float32(0.25), clip_norm=np.int64(2))
        assert made.hyperparameters == factory(problems.loss_fn, client_learning_rate=0.25, clip_norm=2).hyperparameters
        assert type(made.hyperparameters["client_learning_rate"]) is float, name
    kept = {"checkpoint": tmp_path}
    sampler, batching = jaxfed.FixedSize(np.int64(2)), jaxfed.Steps(np.int64(2), np.int64(4))
    fedavg = [jaxfed.fedavg(problems.loss_fn, client_learning_rate=rate) for rate in (np.float64(0.25), 0.25)]
    one, _ = simulate(fedavg[0], rounds=np.int64(1), sampler=sampler, batching=batching, seed=np.int64(3), **kept)
    with pytest.warns(jaxfed.NothingTrainedWarning):
        again, history = simulate(fedavg[1], rounds=1, sampler=jaxfed.FixedSize(2), seed=3, **kept)
    chex.assert_trees_all_equal(again, one)
    assert history.rounds["round"] == [1]


@pytest.mark.parametrize("value", [True, np.True_, "1", None, jnp.float32(0.1), np.ones(1), 1j])
def test_what_is_no_number_is_refused(value):
    with pytest.raises(TypeError, match="relaxation must be a Python or NumPy number"):
        jaxfed.fedavg(problems.loss_fn, relaxation=value)


def test_noise_refuses_what_cannot_be_drawn():
    with pytest.raises(ValueError, match="cohort_size 200 is larger than the population of 100 clients"):
        privacy.Central(1.0, 1.0, jaxfed.FixedSize(200), 100, 1e-3)
    with pytest.raises(ValueError, match="expected independent coin flips, got .*rule='reference'"):
        privacy.Central(1.0, 1.0, jaxfed.CoinFlips(0.1, rule="reference"), 100, 1e-3)
