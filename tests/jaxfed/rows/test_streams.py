"""Samples on the host: the same runs as with samples on the device, reading only what a round's batches hold."""

import dataclasses
import threading

import chex
import jax
import numpy as np
import pandas as pd
import pytest

import jaxfed
from jaxfed.data import HostSamples, partitioned, streamed
from jaxfed.run.metrics import per_client
from tests.support.jaxfed import problems
from tests.support.jaxfed.runs import arguments

CLIENTS = problems.CLIENTS


def arrays_and_parts():
    """All clients' samples in one dataset, shuffled, of shares from 3 to 40."""
    draw = np.random.default_rng(0)
    made = problems.make_problem(21, np.float32).clients
    arrays = {name: np.concatenate([client[name] for client in made] * 3) for name in made[0]}
    order = draw.permutation(len(next(iter(arrays.values()))))
    return arrays, np.split(order, np.cumsum([3, 40, 7, 20])[: CLIENTS - 1])


def simulate(data, name="fedspeed", rounds=5, **options):
    algorithm = jaxfed.algorithms.get(name)(problems.loss_fn)
    server = algorithm.init(problems.make_problem(21, np.float32).params, CLIENTS)
    chosen = {"sampler": jaxfed.FixedSize(3), "batching": jaxfed.Epochs(2, 4), "rounds": rounds, **options}
    return jaxfed.simulate(algorithm, server, data, **arguments(**chosen))


class Counting:
    """An array that records which samples are read; only increasing indices, as of h5py. It may fail."""

    def __init__(self, array, fails_after=None):
        self.array, self.shape, self.dtype, self.reads, self.fails_after = (
            array,
            array.shape,
            array.dtype,
            [],
            fails_after,
        )

    def __getitem__(self, index):
        read = np.arange(self.shape[0])[index]
        assert (np.diff(read) > 0).all()
        self.reads.append(read)
        if self.fails_after is not None and len(self.reads) > self.fails_after:
            raise OSError("the disk is gone")
        return self.array[index]


@pytest.mark.parametrize("name", ["fedspeed", "scaffold", "fedavg"])
@pytest.mark.parametrize("batching", [jaxfed.Epochs(2, 4), jaxfed.Steps(3, 5)])
def test_streamed_samples_give_the_same_run(name, batching):
    arrays, parts = arrays_and_parts()
    expected, history = simulate(partitioned(arrays, parts), name, batching=batching)
    found, other = simulate(streamed(arrays, parts), name, batching=batching)
    chex.assert_trees_all_close(found, expected, atol=1e-7)
    chex.assert_trees_all_close(other.rounds["loss"], history.rounds["loss"], atol=1e-6)


def test_samples_are_read_from_files_rows_kept_on_disk_and_spread_over_a_mesh(tmp_path):
    arrays, parts = arrays_and_parts()
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    mapped = {name: np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in arrays}
    options = {"sampler": jaxfed.FixedSize(4), "mesh": jax.make_mesh((4,), ("clients",))}
    expected, _ = simulate(partitioned(arrays, parts), **options)
    found, _ = simulate(streamed(mapped, parts), store=jaxfed.DiskStore(tmp_path / "rows"), **options)
    chex.assert_trees_all_close(found, expected, atol=1e-6)


def test_only_the_samples_of_a_rounds_batches_are_read_each_once():
    arrays, parts = arrays_and_parts()
    counting = {name: Counting(array) for name, array in arrays.items()}
    simulate(streamed(counting, parts), batching=jaxfed.Steps(2, 4), rounds=4)
    for each in counting.values():
        of_rounds = [read for read in each.reads if len(read) > 4]
        assert len(of_rounds) == 5  # of four rounds, and ahead of a fifth
        assert all(len(read) <= 3 * 2 * 4 for read in of_rounds)
    owners = {sample: client for client, part in enumerate(parts) for sample in part.tolist()}
    for number, read in enumerate([read for read in counting["x"].reads if len(read) > 4][:4]):
        cohort = set(jaxfed.FixedSize(3).draw(0, number, CLIENTS).tolist())
        assert {owners[sample] for sample in read.tolist()} == cohort


def test_empty_slots_and_steps_read_nothing_of_their_own():
    """Cohorts of one to five slots, clients with few steps; the same run as with samples on the device."""
    arrays, parts = arrays_and_parts()
    counting = {name: Counting(array) for name, array in arrays.items()}
    batching = jaxfed.OwnSteps(jaxfed.Steps(6, 2), [1, 6, 2, 1, 3])
    options = {"sampler": jaxfed.CoinFlips(0.5, capacity=5), "batching": batching, "rounds": 6}
    expected, _ = simulate(partitioned(arrays, parts), **options)
    found, history = simulate(streamed(counting, parts), clients=True, **options)
    chex.assert_trees_all_close(found, expected, atol=1e-7)
    owners = {sample: client for client, part in enumerate(parts) for sample in part.tolist()}
    drawn = [set(np.asarray(options["sampler"].draw(0, number, CLIENTS)).tolist()) - {-1} for number in range(7)]
    reads = counting["x"].reads[-7:]
    for cohort, read in zip(drawn, reads, strict=True):
        assert {owners[sample] for sample in read.tolist()} == cohort
        assert len(read) <= sum(2 * batching.most[client] for client in cohort)


def test_an_error_of_the_reader_ends_the_run_with_its_state():
    arrays, parts = arrays_and_parts()
    before = {thread.name for thread in threading.enumerate()}
    reads = Counting(arrays["x"])
    simulate(streamed({**arrays, "x": reads}, parts), rounds=4)
    failing = Counting(arrays["x"], fails_after=len(reads.reads) - 2)
    with pytest.raises(OSError, match="the disk is gone") as caught:
        simulate(streamed({**arrays, "x": failing}, parts), rounds=4)
    assert caught.value.state is None or int(caught.value.state.server.round) < 4
    assert {thread.name for thread in threading.enumerate()} <= before


def test_float64_samples_and_rows_stay_so_where_a_context_asks_for_it():
    """The thread that reads has the precision of the run; `enable_x64` as a context holds for one thread alone."""
    with jax.enable_x64(True):
        problem = problems.make_problem(21)
        arrays = {name: np.concatenate([client[name] for client in problem.clients]) for name in ("x", "y")}
        parts = np.array_split(np.arange(len(arrays["y"])), CLIENTS)
        algorithm = jaxfed.fedspeed(problems.loss_fn)
        server = algorithm.init(problem.params, CLIENTS)
        options = arguments(rounds=4, sampler=jaxfed.FixedSize(3), batching=jaxfed.Steps(2, 4))
        expected, _ = jaxfed.simulate(algorithm, server, partitioned(arrays, parts), **options)
        found, _ = jaxfed.simulate(algorithm, server, streamed(arrays, parts), **options)
        assert found.params["weight"].dtype == np.float64
        chex.assert_trees_all_close(found, expected, rtol=1e-13)


def test_a_sampler_may_end_with_the_run():
    """The round behind the last is drawn ahead; that it cannot be drawn is no error."""
    arrays, parts = arrays_and_parts()

    @dataclasses.dataclass(frozen=True)
    class Recorded:
        cohorts: tuple = ((0, 1), (2, 3), (4, 0))

        def num_slots(self, num_clients):
            return 2

        def draw(self, seed, number, num_clients):
            return np.asarray(self.cohorts[number], np.int32)

    expected, _ = simulate(partitioned(arrays, parts), rounds=3, sampler=Recorded())
    for data in (partitioned(arrays, parts), streamed(arrays, parts)):
        found, _ = simulate(data, rounds=3, sampler=Recorded(), store=jaxfed.HostStore())
        chex.assert_trees_all_close(found, expected, atol=1e-7)
    with pytest.raises(IndexError):
        simulate(streamed(arrays, parts), rounds=4, sampler=Recorded())


def test_tables_by_label_masked_entries_and_other_libraries_arrays():
    values = np.arange(6, dtype=np.float32)
    series = pd.Series(values, index=[5, 4, 3, 2, 1, 0])
    assert HostSamples(series, "y")[np.array([0, 5])].tolist() == [0.0, 5.0]
    masked = np.ma.masked_array(values, mask=[0, 0, 1, 0, 0, 0])
    with pytest.raises(ValueError, match="array 'x': expected no missing value"):
        HostSamples(masked, "x")[np.array([1, 2])]
    with pytest.raises(ValueError, match="array 'x'"):
        HostSamples(jax.random.split(jax.random.key(0), 3), "x")
    assert HostSamples(values, "x")[np.array([[4, 1], [1, 1]])].tolist() == [[4.0, 1.0], [1.0, 1.0]]
    with pytest.raises(ValueError, match=r"under jax\.jit"):
        jax.jit(lambda at: HostSamples(values, "x")[at])(np.array([0]))


def test_a_checkpoint_of_another_kind_of_store_is_refused(tmp_path):
    arrays, parts = arrays_and_parts()
    simulate(partitioned(arrays, parts), rounds=2, checkpoint=tmp_path)
    with pytest.raises(ValueError, match="same kind of store"):
        simulate(streamed(arrays, parts), rounds=4, checkpoint=tmp_path)


def test_a_run_goes_on_from_a_checkpoint_whose_samples_were_on_the_device(tmp_path):
    arrays, parts = arrays_and_parts()
    store = jaxfed.HostStore()
    expected, _ = simulate(streamed(arrays, parts), rounds=6)
    simulate(partitioned(arrays, parts), rounds=3, store=store, checkpoint=tmp_path)
    found, _ = simulate(streamed(arrays, parts), rounds=6, store=store, checkpoint=tmp_path)
    chex.assert_trees_all_close(found, expected, atol=1e-7)
    arrays["x"] = arrays["x"] + 1
    with pytest.raises(ValueError, match="data 'x'"):
        simulate(streamed(arrays, parts), rounds=9, checkpoint=tmp_path)


def test_numbers_that_would_change_are_refused_when_they_are_read():
    arrays, parts = arrays_and_parts()
    arrays["x"] = arrays["x"].astype(np.float64) * 1e300
    with pytest.raises(ValueError, match="array 'x': expected numbers that float32 holds"):
        simulate(streamed(arrays, parts))
    with pytest.raises(ValueError, match="array 'x': expected numbers, got <U1"):
        streamed({"x": np.array(["a", "b"])}, [[0], [1]])
    assert HostSamples([1, 2, 3], "y")[np.array([0, 2])].tolist() == [1, 3]


def test_what_needs_samples_on_the_device_says_so():
    arrays, parts = arrays_and_parts()
    data = streamed(arrays, parts)
    with pytest.raises(ValueError, match="DeviceStore's: expected samples on the device"):
        simulate(data, store=jaxfed.DeviceStore())
    with pytest.raises(ValueError, match="auto"):
        simulate(data, plan="auto")
    algorithm = jaxfed.fedavg(problems.loss_fn)
    server = algorithm.init(problems.make_problem(21, np.float32).params, CLIENTS)
    shared = {"batching": jaxfed.Steps(1, 2), "rounds": 1}
    with pytest.raises(ValueError, match="sweep: expected samples on the device"):
        jaxfed.sweep(
            lambda: algorithm, lambda each, key: server, data, over={}, sampler=jaxfed.FixedSize(2), **shared
        )  # fmt: skip
    with pytest.raises(ValueError, match="simulate_buffered: expected samples on the device"):
        jaxfed.simulate_buffered(algorithm, server, data, **shared)
    with pytest.raises(ValueError, match="per_client: expected samples on the device"):
        per_client(lambda params, batch: {}, data)
    with pytest.raises(ValueError, match="flip_labels: expected samples on the device"):
        jaxfed.data.flip_labels(data, [0], 10)


def test_shares_are_checked_as_those_of_resident_data():
    with pytest.raises(ValueError, match="client 1: expected samples 0 to 3, got 4"):
        streamed({"x": np.zeros((4, 2))}, [[0, 1], [3, 4]])
    with pytest.raises(ValueError, match="one length"):
        streamed({"x": np.zeros((4, 2)), "y": np.zeros(3)}, [[0, 1]])
    train, test = jaxfed.data.train_test(streamed({"x": np.zeros((10, 2))}, [range(5), range(5, 10)]), 0.4)
    assert train.lengths.tolist() == [3, 3]
    assert test.lengths.tolist() == [2, 2]
