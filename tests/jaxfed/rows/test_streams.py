"""Samples on the host: the same runs as with samples on the device, reading only what a round's batches hold."""

import chex
import jax
import numpy as np
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
    """An array that records which samples are read; it is no NumPy array, as those of zarr are not."""

    def __init__(self, array):
        self.array, self.shape, self.dtype, self.reads = array, array.shape, array.dtype, []

    def __getitem__(self, index):
        self.reads.append(np.arange(self.shape[0])[index])
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
        assert all(len(read) <= 3 * 2 * 4 and (np.diff(read) > 0).all() for read in of_rounds)
    owners = {sample: client for client, part in enumerate(parts) for sample in part.tolist()}
    for number, read in enumerate([read for read in counting["x"].reads if len(read) > 4][:4]):
        cohort = set(jaxfed.FixedSize(3).draw(0, number, CLIENTS).tolist())
        assert {owners[sample] for sample in read.tolist()} == cohort


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
    with pytest.raises(ValueError, match="DeviceStore"):
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
