"""Natural and synthetic clients, their own test samples, and clients that stop early."""

import json

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxfed
from jaxfed.core import keys
from jaxfed.data import draw_indices
from tests.support.jaxfed import problems


def write(path, users):
    contents = {"users": list(users), "num_samples": [len(each["y"]) for each in users.values()], "user_data": users}
    path.write_text(json.dumps(contents), encoding="utf-8")


def test_leaf_files_of_a_folder(tmp_path):
    write(tmp_path / "all_data_1.json", {"b": {"x": [[0.5] * 784, [0.25] * 784], "y": [3, 61]}})
    write(tmp_path / "all_data_0.json", {"a": {"x": [[1.0] * 784], "y": [0]}})
    users = jaxfed.data.read_leaf(tmp_path, image_shape=(28, 28, 1))
    assert list(users) == ["a", "b"]
    assert users["b"]["x"].shape == (2, 28, 28, 1)
    assert users["b"]["x"].dtype == np.float32
    assert users["b"]["y"].tolist() == [3, 61]
    assert users["b"]["y"].dtype == np.int32
    assert jaxfed.data.client_data(list(users.values())).lengths.tolist() == [1, 2]
    flat = jaxfed.data.read_leaf(tmp_path / "all_data_0.json")
    assert flat["a"]["x"].shape == (1, 784)


def test_hdf5_files_by_writer(tmp_path):
    """The layout of federated EMNIST's two files, of Shakespeare's, and what is no such file."""
    with h5py.File(tmp_path / "train.h5", "w") as file:
        for number, name in enumerate(("f0001_41", "f0000_14")):
            file[f"examples/{name}/pixels"] = np.full((3 + number, 28, 28), number, np.float32)
            file[f"examples/{name}/label"] = np.arange(3 + number)
    users = jaxfed.data.read_hdf5(tmp_path / "train.h5")
    assert list(users) == ["f0000_14", "f0001_41"]
    assert users["f0000_14"]["x"].shape == (4, 28, 28)
    assert users["f0000_14"]["x"].dtype == np.float32
    assert users["f0000_14"]["y"].tolist() == [0, 1, 2, 3]
    assert users["f0000_14"]["y"].dtype == np.int32
    assert jaxfed.data.client_data(list(users.values())).lengths.tolist() == [4, 3]
    assert list(jaxfed.data.read_hdf5(tmp_path / "train.h5", users=1)) == ["f0000_14"]
    with pytest.raises(ValueError, match="users"):
        jaxfed.data.read_hdf5(tmp_path / "train.h5", users=3)

    with h5py.File(tmp_path / "text.h5", "w") as file:
        file["examples/ROMEO/snippets"] = [b"But soft", "what light… ".encode()]
    assert jaxfed.data.read_hdf5(tmp_path / "text.h5")["ROMEO"]["x"].tolist() == ["But soft", "what light… "]

    with h5py.File(tmp_path / "wide.h5", "w") as file:
        file["examples/a/label"] = np.array([1, 2**40])
    with pytest.raises(ValueError, match="user 'a', label: expected numbers that int32 holds"):
        jaxfed.data.read_hdf5(tmp_path / "wide.h5")

    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = np.zeros(3)
    (tmp_path / "none.h5").write_bytes(b"not hdf5")
    with pytest.raises(ValueError, match="expected groups \"examples/<user>\", got \\['x'\\]"):
        jaxfed.data.read_hdf5(tmp_path / "other.h5")
    with pytest.raises(ValueError, match="expected an HDF5 file"):
        jaxfed.data.read_hdf5(tmp_path / "none.h5")
    with pytest.raises(FileNotFoundError, match="unpack"):
        jaxfed.data.read_hdf5(tmp_path / "missing.h5")
    with h5py.File(tmp_path / "uneven.h5", "w") as file:
        file["examples/a/pixels"], file["examples/a/label"] = np.zeros((3, 2)), np.zeros(2, np.int64)
    with pytest.raises(ValueError, match="user 'a': expected arrays"):
        jaxfed.data.read_hdf5(tmp_path / "uneven.h5")


def test_leaf_text_stays_text(tmp_path):
    write(tmp_path / "s.json", {"ROMEO": {"x": ["to be or no", "o be or not"], "y": ["t", " "]}})
    users = jaxfed.data.read_leaf(tmp_path / "s.json")
    assert users["ROMEO"]["x"].tolist() == ["to be or no", "o be or not"]


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ("[1, 2]", "expected a LEAF file"),
        ("{", "expected JSON"),
        ('{"users": ["a"], "user_data": {}}', "user 'a' is in \"users\", but not in"),
        ('{"users": ["a"], "user_data": {"a": {"x": [[1]]}}}', 'user \'a\': expected "x" and "y"'),
        ('{"users": ["a"], "user_data": {"a": {"x": [[1], [2]], "y": [1]}}}', "expected as many x as y, got 2 and 1"),
        ('{"users": ["a"], "user_data": {"a": {"x": [[1], [2, 3]], "y": [1, 2]}}}', "expected samples of one shape"),
        ('{"users": ["a"], "user_data": {"a": {"x": [[1, 2, 3]], "y": [1]}}}', "expected samples of shape"),
    ],
)
def test_leaf_refusals_name_the_file(tmp_path, contents, message):
    (tmp_path / "bad.json").write_text(contents)
    with pytest.raises(ValueError, match=message) as refused:
        jaxfed.data.read_leaf(tmp_path, image_shape=(2, 2, 1))
    assert "bad.json" in str(refused.value)


def test_leaf_users_are_in_one_file(tmp_path):
    for number in range(2):
        write(tmp_path / f"{number}.json", {"a": {"x": [[1.0]], "y": [0]}})
    with pytest.raises(ValueError, match="user 'a' is in another file"):
        jaxfed.data.read_leaf(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="got none"):
        jaxfed.data.read_leaf(tmp_path / "empty")


def test_synthetic_clients_differ_as_the_two_numbers_say():
    same = jaxfed.data.synthetic(0.0, 0.0, num_clients=40, iid=True)
    far = jaxfed.data.synthetic(1.0, 5.0, num_clients=40)
    assert len(same) == 40
    assert min(len(each["y"]) for each in same) >= 50
    assert same[0]["x"].shape[1] == 60
    assert {each["y"].max() for each in same} <= set(range(10))
    spread = [np.std([each["x"].mean() for each in clients]) for clients in (same, far)]
    assert spread[0] < 0.1 < 2.0 < spread[1]
    variances = np.concatenate([each["x"] for each in same]).var(axis=0)
    np.testing.assert_allclose(variances, np.arange(1, 61) ** -1.2, rtol=0.1)
    again = jaxfed.data.synthetic(1.0, 5.0, num_clients=40)
    np.testing.assert_array_equal(again[7]["x"], far[7]["x"])
    with pytest.raises(ValueError, match="alpha must be a finite number ≥ 0"):
        jaxfed.data.synthetic(-1.0, 0.0)


def members(data, client):
    start, size = int(data.offsets[client]), int(data.lengths[client])
    places = np.arange(start, start + size)
    return (places if data.order is None else np.asarray(data.order)[places]).tolist()


@pytest.mark.parametrize("shared", [False, True])
def test_every_client_is_split_in_two(shared):
    problem = problems.make_problem(3, np.float32)
    data = jaxfed.data.client_data(problem.clients)
    if shared:
        data = jaxfed.data.partitioned(problem.clients[0], [[0, 1, 2, 3, 4], [4, 5, 6], [2]])
    train, test = jaxfed.data.train_test(data, 0.4, seed=1)
    for client in range(len(data.lengths)):
        parts = members(train, client), members(test, client)
        assert sorted(parts[0] + parts[1]) == sorted(members(data, client))
        assert len(parts[1]) == int(0.4 * len(members(data, client)))
    assert train.arrays["x"] is data.arrays["x"]
    assert min(train.lengths.tolist()) >= 1
    with pytest.raises(ValueError, match="fraction must be a finite number"):
        jaxfed.data.train_test(data, 1.5)


def test_clients_without_samples_keep_their_ids_where_allowed():
    arrays = {"x": np.arange(6.0, dtype=np.float32)[:, None]}
    data = jaxfed.data.partitioned(arrays, [[0, 1], np.array([], np.int64), [5]], allow_empty=True)
    assert data.lengths.tolist() == [2, 0, 1]
    assert members(data, 2) == [5]
    with pytest.raises(ValueError, match="client 1: expected at least one sample, got none"):
        jaxfed.data.partitioned(arrays, [[0, 1], np.array([], np.int64), [5]])


def steps_of(batching, number, length=40):
    key = keys.client_key(keys.batch_key(0), jnp.int32(number))
    index, mask = batching.slots(key, jnp.int32(length), length)
    return index, np.asarray(mask)


@pytest.mark.parametrize("inner", [jaxfed.Steps(8, 5), jaxfed.Epochs(2, 10)])
def test_stragglers_stop_early(inner):
    """Half of them, uniformly; what they do before is what the others do."""
    batching, counts = jaxfed.Stragglers(inner, share=0.5, least=2), []
    for number in range(300):
        (index, mask), (whole, full) = steps_of(batching, number), steps_of(inner, number)
        count = int(mask.any(1).sum())
        np.testing.assert_array_equal(index, whole)
        np.testing.assert_array_equal(mask[:count], full[:count])
        assert not mask[count:].any()
        counts.append(count)
    steps = int(full.any(1).sum())
    assert (min(counts), max(counts)) == (2, steps)
    early = [count for count in counts if count < steps]
    expected = 0.5 * (steps - 2) / (steps - 1)
    assert abs(len(early) / 300 - expected) < 0.1
    assert set(early) == set(range(2, steps))
    assert all(steps_of(jaxfed.Stragglers(inner, share=0.0), each)[1].any(1).sum() == steps for each in range(5))


def test_every_client_has_its_own_number_of_steps():
    """Of a cohort in any order, beside stragglers and short clients, in rounds and alone."""
    problem, most = problems.make_problem(3, np.float32), (1, 6, 2, 9, 3)
    data = jaxfed.data.client_data(problem.clients)
    ids = jnp.array([3, 0, -1, 4, 1])
    for inner in (jaxfed.Steps(6, 4), jaxfed.Epochs(3, 4), jaxfed.Stragglers(jaxfed.Steps(6, 4), 0.0)):
        whole, full = draw_indices(data, ids, jax.random.key(1), inner, 13)
        index, mask = draw_indices(data, ids, jax.random.key(1), jaxfed.OwnSteps(inner, most), 13)
        steps = mask.shape[1]
        assert steps == min(9, full.shape[1])
        np.testing.assert_array_equal(index, whole[:, :steps])
        cut = np.arange(steps) < np.array([9, 1, 0, 3, 6])[:, None]
        np.testing.assert_array_equal(mask, full[:, :steps] & cut[..., None])
    with pytest.raises(ValueError, match="OwnSteps around Stragglers"):
        jaxfed.Stragglers(jaxfed.OwnSteps(jaxfed.Steps(6, 4), most))

    algorithm = jaxfed.fednova(problems.loss_fn)
    server = algorithm.init(problem.params, problems.CLIENTS)
    options = {"rounds": 2, "sampler": jaxfed.FixedSize(5), "report": jaxfed.Report(progress=False, clients=True)}
    _, history = jaxfed.simulate(
        algorithm, server, data, batching=jaxfed.OwnSteps(jaxfed.Steps(6, 4), np.array(most)), **options
    )
    found = dict(zip(history.clients["client"], history.clients["num_steps"], strict=True))
    assert [found[client] for client in range(5)] == [1, 6, 2, 6, 3]
    with pytest.raises(ValueError, match="expected a number for each of 5 clients, got 2"):
        jaxfed.simulate(algorithm, server, data, batching=jaxfed.OwnSteps(jaxfed.Steps(6, 4), [1, 2]), **options)
    with pytest.raises(ValueError, match=r"most\[1\] must be"):
        jaxfed.OwnSteps(jaxfed.Steps(6, 4), jnp.array([1, 0]))
    for wrong in ([], [1.5, 2.0], 3):
        with pytest.raises(ValueError, match="most: expected a whole number of steps for every client"):
            jaxfed.OwnSteps(jaxfed.Steps(6, 4), wrong)


def test_stragglers_in_a_run():
    problem = problems.make_problem(3, np.float32)
    algorithm = jaxfed.fednova(problems.loss_fn)
    server, data = algorithm.init(problem.params, problems.CLIENTS), jaxfed.data.client_data(problem.clients)
    _, history = jaxfed.simulate(
        algorithm, server, data, rounds=5, batching=jaxfed.Stragglers(jaxfed.Steps(6, 4)), sampler=jaxfed.FixedSize(5),
        report=jaxfed.Report(progress=False, clients=True),
    )  # fmt: skip
    assert len(set(history.clients["num_steps"])) > 2
    assert max(history.clients["num_steps"]) == 6
    with pytest.raises(ValueError, match="share must be a finite number"):
        jaxfed.Stragglers(jaxfed.Steps(1, 1), share=2.0)
