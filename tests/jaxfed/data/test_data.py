"""Flat client data and its batches."""

import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxfed
from jaxfed.data import Epochs, Steps, client_data, draw_batches, draw_indices, from_dataset, partitioned
from jaxfed.data.flat import flattened
from tests.support.jaxfed.runs import arguments

LENGTHS = [5, 8, 1, 12]


def numbered() -> jaxfed.data.ClientData:
    """Sample j of client i is the number 100·i + j."""
    return client_data([{"x": 100 * i + np.arange(n, dtype=np.int32)} for i, n in enumerate(LENGTHS)])


def drawn(batching, ids, seed=0):
    batches = draw_batches(numbered(), jnp.asarray(ids, jnp.int32), jax.random.key(seed), batching, max(LENGTHS))
    return np.asarray(batches["x"]), np.asarray(batches["mask"])


def test_an_epoch_sees_every_sample_of_the_client_once_and_no_others():
    x, mask = drawn(Epochs(2, 4), [3, 0, -1, 2])
    assert x.shape == mask.shape == (4, 6, 4)
    for slot, client in [(0, 3), (1, 0), (3, 2)]:
        steps = -(-LENGTHS[client] // 4)
        passes = [x[slot, part][mask[slot, part]] for part in (slice(0, steps), slice(steps, 2 * steps))]
        assert not mask[slot, 2 * steps :].any()
        for each in passes:
            assert sorted(each) == [100 * client + j for j in range(LENGTHS[client])]
        if LENGTHS[client] > 4:
            assert passes[0].tolist() != passes[1].tolist()
    assert not mask[2].any()


def test_short_batches_come_last_in_an_epoch():
    _, mask = drawn(Epochs(2, 4), [0])
    assert mask[0].sum(axis=1).tolist() == [4, 1, 4, 1, 0, 0]


def test_steps_walk_through_one_shuffle():
    x, mask = drawn(Steps(6, 4), [1, 2])
    assert mask[0].all()
    assert sorted(x[0, :2].ravel()) == [100 + j for j in range(8)]
    np.testing.assert_array_equal(x[0, :2], x[0, 2:4])
    assert mask[1].sum(axis=1).tolist() == [1] * 6
    assert x[1][mask[1]].tolist() == [200] * 6


def test_steps_repeat_no_sample_within_a_batch():
    x, mask = drawn(Steps(9, 4), [0, 3])
    assert mask.all()
    assert all(len(set(batch)) == 4 for client in x for batch in client)


def test_batches_depend_on_key_and_client_only():
    x, _ = drawn(Epochs(1, 4), [3, 0])
    other, _ = drawn(Epochs(1, 4), [-1, 3])
    np.testing.assert_array_equal(x[0], other[1])
    assert (drawn(Epochs(1, 4), [3, 0], seed=1)[0][0] != x[0]).any()


PLAIN = Epochs(1, 4)


@pytest.mark.parametrize("implementation", ["threefry2x32", "rbg"])
@pytest.mark.parametrize("batching", [Epochs(2, 4), Steps(7, 4)], ids=["epochs", "steps"])
def test_padding_is_invisible(batching, implementation):
    """A client's samples, in their order, whether or not it is the longest client."""
    data, ids, key = numbered(), jnp.array([0, 3], jnp.int32), jax.random.key(3, impl=implementation)

    def walked(longest):
        batches = draw_batches(data, ids, key, batching, longest)
        return [np.asarray(batches["x"][slot])[np.asarray(batches["mask"][slot])] for slot in (0, 1)]

    for longest in (13, 50):
        for ours, padded in zip(walked(12), walked(longest), strict=True):
            np.testing.assert_array_equal(padded, ours)


@pytest.mark.parametrize("batching", [jaxfed.Epochs(2, 3), jaxfed.Steps(5, 3)], ids=["epochs", "steps"])
def test_a_longer_client_changes_no_other_ones_result(batching):
    """The same cohort, with and without a long client that is never drawn."""
    rng = np.random.default_rng(0)
    clients = [{"x": rng.normal(size=(n, 3)).astype(np.float32)} for n in (5, 8, 40)]

    def loss_fn(params, batch, key):
        # the key is used, so that noise must not depend on the padding either
        wanted = batch["x"].mean(axis=-1) + jax.random.normal(key, ())
        return jaxfed.masked_mean((batch["x"] @ params - wanted) ** 2, batch["mask"]), {}

    class First:
        def num_slots(self, num_clients):
            return 2

        def draw(self, seed, round_number, num_clients):
            return np.array([0, 1], np.int32)

    def trained(chosen):
        algorithm = jaxfed.fedavg(loss_fn)
        server = algorithm.init(jnp.zeros(3), len(chosen))
        options = {"rounds": 3, "batching": batching, "sampler": First()}
        return jaxfed.simulate(algorithm, server, client_data(chosen), **arguments(**options))[0].params

    np.testing.assert_allclose(trained(clients), trained(clients[:2]), rtol=1e-6)


def test_a_round_of_other_lengths_compiles_nothing_again():
    traces = []

    @jax.jit
    def draw(data, ids):
        traces.append(1)
        return draw_indices(data, ids, jax.random.key(0), PLAIN, 12)

    data = numbered()
    for ids in ([0, 1], [3, -1], [2, 2]):
        draw(data, jnp.array(ids, jnp.int32))
    assert len(traces) == 1


def test_indices_are_those_of_the_batches():
    data, ids, key = numbered(), jnp.array([3, -1, 1], jnp.int32), jax.random.key(0)
    index, mask = draw_indices(data, ids, key, PLAIN, 12)
    batches = draw_batches(data, ids, key, PLAIN, 12)
    assert (index.shape, index.dtype, mask.dtype) == ((3, 3, 4), jnp.int32, jnp.bool_)
    assert (index >= 0).all()
    assert (index < 26).all()
    np.testing.assert_array_equal(batches["x"], data.arrays["x"][index])
    np.testing.assert_array_equal(batches["mask"], mask)


PARTS = [np.array([4, 0]), [5], np.array([2, 2, 4], np.int16)]


def test_a_partitioned_dataset_draws_the_same_batches_as_separate_clients():
    arrays = {"x": 10.0 * np.arange(12, dtype=np.float32).reshape(6, 2), "y": np.arange(6, dtype=np.int32)}
    shared = partitioned(arrays, PARTS)
    apart = client_data([{name: array[np.asarray(part)] for name, array in arrays.items()} for part in PARTS])
    assert shared.arrays["x"].shape == (6, 2)
    assert shared.order.tolist() == [4, 0, 5, 2, 2, 4]
    assert shared.order.dtype == jnp.int32
    for batching in (PLAIN, Steps(3, 2)):
        drawn = [draw_batches(data, jnp.arange(3), jax.random.key(1), batching, 3) for data in (shared, apart)]
        for name in ("x", "y", "mask"):
            kept = drawn[0]["mask"]
            np.testing.assert_array_equal(drawn[0][name][kept], drawn[1][name][kept])


def test_a_run_is_not_continued_with_another_partition(tmp_path):
    def loss_fn(params, batch, key):
        return jaxfed.masked_mean((batch["x"] - params) ** 2, batch["mask"]), {}

    algorithm = jaxfed.fedavg(loss_fn)

    def run(parts):
        data = partitioned({"x": np.arange(4, dtype=np.float32)}, parts)
        options = {"rounds": 1, "batching": jaxfed.Steps(1, 2), "sampler": jaxfed.FixedSize(2)}
        jaxfed.simulate(algorithm, algorithm.init(jnp.zeros(()), 2), data, checkpoint=tmp_path, **arguments(**options))

    run([[0, 1], [2, 3]])
    with pytest.raises(ValueError, match="order"):
        run([[0, 2], [1, 3]])


def test_arrays_on_the_device_stay_where_they_are():
    resident = jnp.arange(6.0)
    assert partitioned({"x": resident}, PARTS).arrays["x"] is resident


@pytest.mark.slow
def test_a_million_clients_are_laid_out_in_seconds():
    began = time.perf_counter()
    data = partitioned({"x": np.zeros(2_000_000, np.float32)}, np.split(np.arange(2_000_000), 1_000_000))
    assert data.lengths.shape == (1_000_000,)
    assert time.perf_counter() - began < 30


@pytest.mark.parametrize(
    ("arrays", "parts", "message"),
    [
        ({"x": np.ones(6)}, [[0], []], "client 1: expected at least one sample, got none"),
        ({"x": np.ones(6)}, [[0, 1], [2], [3, 6]], "client 2: expected samples 0 to 5, got 6"),
        ({"x": np.ones(6)}, [[0, 1], [-1, 2]], "client 1: expected samples 0 to 5, got -1"),
        ({"x": np.ones(6)}, [[0, 1], [0.5]], r"client 1: expected integers \[nᵢ\], got float64\[1\]"),
        ({"x": np.ones(6)}, [np.ones(6, bool)], r"client 0: expected integers \[nᵢ\], got bool\[6\]"),
        ({"x": np.ones(6)}, [[0], np.ones(6, bool)], r"client 1: expected integers \[nᵢ\], got bool\[6\]"),
        ({"x": np.ones(6)}, [[0], np.zeros((2, 2), int)], r"client 1: expected integers \[nᵢ\], got int64\[2, 2\]"),
        ({"x": np.ones(6)}, [0, 1], r"client 0: expected integers"),
        ({"x": np.ones(6), "y": np.ones(5)}, PARTS, "of one length, got lengths {'x': 6, 'y': 5}"),
        ({"x": np.float32(1)}, PARTS, "of one length"),
        ({}, PARTS, "of one length"),
        ({"mask": np.ones(6)}, PARTS, "rename this array"),
        ({"x": np.ones(6)}, [], "at least one client"),
    ],
)
def test_bad_partitions_are_refused(arrays, parts, message):
    with pytest.raises(ValueError, match=message):
        partitioned(arrays, parts)


class Table:
    """A table like those of Hugging Face's datasets."""

    column_names = ("image", "label", "text")

    def __getitem__(self, name):
        return {"image": [[[1, 2]], [[3, 4]]], "label": (0, 1), "text": ["a", "b"]}[name]


def test_datasets_of_other_libraries_become_arrays():
    named = from_dataset(Table(), {"image": "x", "label": "y"})
    assert {name: array.shape for name, array in named.items()} == {"x": (2, 1, 2), "y": (2,)}
    rows = from_dataset([{"x": [1.0, 2.0], "y": 3}, {"x": [3.0, 4.0], "y": 5}])
    assert (rows["x"].tolist(), rows["y"].tolist()) == ([[1.0, 2.0], [3.0, 4.0]], [3, 5])
    assert list(from_dataset({"x": jnp.ones(3), "y": [1, 2, 3]}, ["y"])) == ["y"]
    data = client_data([[{"x": 1}, {"x": 2}], {"x": np.array([3])}])
    assert (data.arrays["x"].tolist(), data.lengths.tolist()) == ([1, 2, 3], [2, 1])


@pytest.mark.parametrize(
    ("dataset", "columns", "message"),
    [
        (Table(), None, "column 'text': expected numbers, got <U1; turn it into numbers first, or leave it out"),
        (Table(), ["lable"], "Did you mean 'label'"),
        ({"x": [[1], [1, 2]]}, None, "column 'x': expected samples of one shape"),
        ({"x": [1, None]}, None, "column 'x': expected numbers, got object"),
        ({"a": [1], "b": [2]}, {"a": "x", "b": "x"}, "expected different names for the columns"),
        ([{"x": 1}, {"y": 1}], None, r"row 1: expected a value of 'x' as row 0 has, got \['y'\]"),
        ([1, 2], None, "a sequence of rows with named values, got int"),
        ([], None, "got nothing"),
    ],
)
def test_bad_datasets_are_refused(dataset, columns, message):
    with pytest.raises(ValueError, match=message):
        from_dataset(dataset, columns)


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
        Epochs(1, 0)
    with pytest.raises(ValueError, match="local_steps"):
        Steps(0, 1)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([0, 2**31]), "array 'x': expected numbers that int32 holds, got 2147483648 of int64; number them"),
        (np.array([-(2**31) - 1, 0]), "got -2147483649 of int64"),
        (np.array([0, 2**32], np.uint64), "expected numbers that uint32 holds, got 4294967296 of uint64"),
        (np.array([1.0, 1e39]), r"expected numbers that float32 holds, got 1e\+39 of float64; scale them"),
        (np.array([1.0, 1e39j]), "expected numbers that complex64 holds"),
        (np.array(["a", "b"]), "expected numbers, got <U1"),
        (np.array([1, None]), "expected numbers, got object"),
        (np.array([1, 2], "M8[s]"), r"expected numbers, got datetime64\[s\]"),
        (np.array([(1, 2.0), (3, 4.0)], [("a", int), ("b", float)]), r"expected numbers, got \[\('a'"),
        (np.ma.array([1, 2], mask=[False, True]), "expected no missing value, got masked entries"),
    ],
    ids=["int64", "negative", "uint64", "float64", "complex", "text", "object", "dates", "records", "masked"],
)
def test_numbers_that_would_become_others_are_refused(array, message):
    """Wherever samples go onto the device; jax itself cuts integers off and makes large numbers infinite."""
    for make in (lambda: client_data([{"x": array}]), lambda: partitioned({"x": array}, [[0], [1]])):
        with pytest.raises(ValueError, match=message.replace("array 'x'", "(array|column) 'x'")):
            make()


def test_numbers_that_fit_are_kept():
    arrays = {
        "i": np.array([-(2**31), 2**31 - 1]),
        "u": np.array([0, 2**32 - 1], np.uint64),
        "f": np.array([1e38, np.inf]),
        "b": np.array([True, False]),
        "h": np.ones(2, jnp.bfloat16),
    }
    for data in (client_data([arrays]), partitioned(arrays, [[0], [1]])):
        kept = {name: array.dtype.name for name, array in data.arrays.items()}
        assert kept == {"i": "int32", "u": "uint32", "f": "float32", "b": "bool", "h": "bfloat16"}
        assert data.arrays["i"].tolist() == arrays["i"].tolist()
        assert data.arrays["u"].tolist() == arrays["u"].tolist()


class Column:
    """A column of a data frame: an array by `__array__`, no sequence."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.values, dtype)


class Frame:
    """A data frame like those of pandas and polars: no mapping, names as `columns`, no truth value."""

    def __init__(self, columns):
        self._columns, self.columns = columns, list(columns)

    def __getitem__(self, name):
        return Column(self._columns[name])

    def __len__(self):
        return len(next(iter(self._columns.values())))

    def __iter__(self):
        return iter(self.columns)

    def __bool__(self):
        raise ValueError("the truth value of a frame is ambiguous")


def check_frames(frame):
    """What every kind of data frame must do, made by `frame(columns)`."""
    columns = {"x": [1.0, 2.0, 3.0], "y": [0, 1, 0]}
    named = from_dataset(frame({**columns, "name": ["a", "b", "c"]}), ["x", "y"])
    assert {name: array.tolist() for name, array in named.items()} == columns
    data = client_data([frame(columns), frame({"x": [4.0], "y": [1]})])
    assert (data.arrays["x"].tolist(), data.lengths.tolist()) == ([1, 2, 3, 4], [3, 1])
    shared = partitioned(frame(columns), [[2], [0, 1]])
    assert (shared.arrays["y"].tolist(), shared.order.tolist()) == ([0, 1, 0], [2, 0, 1])
    with pytest.raises(ValueError, match="column 'y': expected numbers, got object"):
        client_data([frame({"x": [1.0], "y": [None]})])
    with pytest.raises(ValueError, match="one dataset for every client, got a single one; split it"):
        client_data(frame(columns))
    with pytest.raises(ValueError, match=r"a unique name for every column, got \[0\]; rename them"):
        from_dataset(frame({0: [1.0], "y": [1]}))


def test_data_frames_are_read_by_columns():
    check_frames(Frame)


def test_data_frames_of_pandas():
    pandas = pytest.importorskip("pandas", reason="pandas is not installed; the frame above replaces it")
    check_frames(pandas.DataFrame)


def test_one_mapping_is_not_a_list_of_clients():
    with pytest.raises(ValueError, match="one dataset for every client, got a single one"):
        client_data({"x": np.ones(3)})
    assert client_data(each for each in [{"x": [1]}, {"x": [2]}]).lengths.tolist() == [1, 1]


def test_flat_samples_are_drawn_as_the_arrays_are():
    images, labels = np.arange(10 * 4 * 3 * 2, dtype=np.uint8).reshape(10, 4, 3, 2), np.arange(10, dtype=np.int32)
    data = partitioned({"x": images, "y": labels}, [np.arange(4), np.arange(4, 10)])
    flat, ids = flattened(data), jnp.array([1, -1, 0])
    assert flat.arrays["x"].flat.shape == (10, 24)
    drawn = [draw_batches(each, ids, jax.random.key(0), Steps(2, 3), 6) for each in (data, flat)]
    chex.assert_trees_all_equal(*drawn)
