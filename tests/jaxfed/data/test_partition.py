"""Partitioners, statistics of partitions, and the command that draws them."""

import json
import struct

import numpy as np
import pytest
import tyro

from jaxfed import plot
from jaxfed.cli._partition import PartitionRule, arguments, partition
from jaxfed.data import (
    dirichlet,
    iid,
    label_counts,
    load_parts,
    natural,
    pathological,
    quantity_skew,
    save_parts,
    skew_of,
)
from tests.jaxfed.algorithms.test_trajectories import DATA

LABELS = np.random.default_rng(0).integers(0, 10, 3000)
RULES = {
    "iid": lambda clients=20, seed=0: iid(LABELS, clients, seed),
    "dirichlet": lambda clients=20, seed=0: dirichlet(LABELS, clients, 0.3, seed),
    "pathological": lambda clients=20, seed=0: pathological(LABELS, clients, 3, seed),
    "quantity": lambda clients=20, seed=0: quantity_skew(LABELS, clients, 0.5, seed),
}
RECORDED = {
    "iid": lambda labels: iid(labels, 20, 20, recycle=True),
    "dirichlet0.6": lambda labels: dirichlet(labels, 20, 0.6, 20, recycle=True),
    "dirichlet0.1": lambda labels: dirichlet(labels, 20, 0.1, 20, recycle=True),
    "pathological3": lambda labels: pathological(labels, 20, 3, 20, recycle=True),
}


@pytest.mark.parametrize("name", RECORDED)
def test_recycling_equals_the_recorded_split(name):
    recorded = np.load(DATA / f"split_{name}.npz")
    np.testing.assert_array_equal(np.stack(RECORDED[name](recorded["labels"])), recorded["client_index"])


@pytest.mark.parametrize("clients", [4, 20, 700])
@pytest.mark.parametrize("name", RULES)
def test_every_sample_has_one_client_and_every_client_a_sample(name, clients):
    parts = RULES[name](clients)
    assert len(parts) == clients
    assert min(map(len, parts)) >= 1
    assert np.sort(np.concatenate(parts)).tolist() == list(range(3000))


@pytest.mark.parametrize("name", RULES)
def test_the_seed_decides(name):
    first, again, other = RULES[name](), RULES[name](), RULES[name](seed=1)
    assert all(map(np.array_equal, first, again))
    assert not all(map(np.array_equal, first, other))


def test_iid_sizes_differ_by_one_at_most():
    assert sorted(map(len, iid(17, 5))) == [3, 3, 3, 4, 4]
    assert [part.tolist() for part in iid(4, 1)] == [[0, 1, 2, 3]]


def test_concentration_orders_the_skew():
    result = [skew_of(LABELS, label_counts(LABELS, dirichlet(LABELS, 20, c))).total_variation for c in (100, 1, 0.05)]
    assert result[0] < 0.1 < 0.3 < result[1] < 0.7 < result[2] < 1
    sizes = [np.std([len(part) for part in quantity_skew(3000, 20, c)]) for c in (100, 1, 0.05)]
    assert sizes == sorted(sizes)


def test_classes_are_shared_out_independently():
    """One distribution per class: the share of client 0 in class 0 and in class 1 are independent; means are 1/N."""
    shares = np.stack([label_counts(LABELS, dirichlet(LABELS, 4, 0.5, seed)) for seed in range(300)])
    shares = shares / np.bincount(LABELS)
    np.testing.assert_allclose(shares.mean(axis=0), 0.25, atol=0.07)
    # variance of one share of Dirichlet(c·1_N): (1/N)(1 − 1/N)/(N·c + 1)
    np.testing.assert_allclose(shares.var(axis=0), 0.25 * 0.75 / 3, rtol=0.35)
    assert abs(np.corrcoef(shares[:, 0, 0], shares[:, 0, 1])[0, 1]) < 0.2


def test_clients_left_empty_are_filled_up_from_the_largest():
    parts = dirichlet(np.zeros(50, int), 20, 1e-6, min_samples=2)
    assert sorted(map(len, parts)) == [2] * 19 + [12]
    assert sorted(np.concatenate(parts)) == list(range(50))
    assert sorted(map(len, quantity_skew(40, 20, 1e-3, min_samples=2))) == [2] * 20


@pytest.mark.parametrize(("clients", "classes"), [(5, 2), (20, 3), (7, 10), (299, 1)])
def test_pathological_clients_hold_exactly_so_many_classes_in_equal_amounts(clients, classes):
    counts = label_counts(LABELS, pathological(LABELS, clients, classes))
    assert ((counts > 0).sum(axis=1) == classes).all()
    assert counts.sum(axis=1).max() <= 1.8 * counts.sum(axis=1).min()


def test_pathological_cuts_large_classes_more_often():
    labels = np.repeat([0, 1], [900, 100])
    counts = label_counts(labels, pathological(labels, 10, 1))
    assert sorted(counts.max(axis=1)) == [100] * 10


def test_recycling_ends_where_classes_run_out():
    parts = dirichlet(np.repeat(["a", "b"], [1, 99]), 10, 1.0, recycle=True)
    assert [len(part) for part in parts] == [10] * 10
    assert [len(part) for part in pathological([7] * 9 + [9], 5, 1, recycle=True)] == [2] * 5


def test_natural_clients_keep_their_samples():
    names, parts = natural(["b", "a", "b", "c"])
    assert names.tolist() == ["a", "b", "c"]
    assert [part.tolist() for part in parts] == [[1], [0, 2], [3]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: iid(3, 4), "4 clients need at least 4 samples, got 3; take fewer clients"),
        (lambda: iid(3, 0), "num_clients must be"),
        (lambda: dirichlet([0, 1], 3, 1.0), "3 clients need at least 3 samples"),
        (lambda: dirichlet(LABELS, 3, 0.0), "concentration must be a finite number > 0, got 0.0"),
        (lambda: dirichlet(LABELS, 3, 1.0, min_samples=2000), "3 clients need at least 6000 samples, got 3000"),
        (lambda: dirichlet(LABELS, 3, 1e-320, recycle=True), "concentration 1e-320 is too small to draw from"),
        (lambda: dirichlet(np.eye(3), 3, 1.0), r"one label for every sample, .* got an array \[3, 3\]"),
        (lambda: quantity_skew(3, 2, -1.0), "concentration must be"),
        (lambda: pathological(LABELS, 5, 11), "classes_per_client must be .* ≤ 10, got 11"),
        (lambda: pathological(LABELS, 5, 0), "classes_per_client must be .* ≥ 1"),
        (lambda: pathological(LABELS, 5, 1), "5 clients with 1 classes each take 5 shards .* expected 10 to 50"),
        (lambda: pathological([0] * 100 + [1], 5, 2), "take 10 shards of different classes, expected 2 to 6"),
        (lambda: natural([]), "n ≥ 1"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


BAD_LABELS = {
    "NaN": ([0.0, 1.0, float("nan"), 1.0], "expected whole numbers, got nan for sample 2; .* drop or fill in"),
    "infinite": (np.array([0.0, np.inf, 1.0, 1.0]), "got inf for sample 1"),
    "None": ([0, None, 1, 1], "expected a label for every sample, got None for sample 1; drop or fill in"),
    "None among text": (["a", None, "b", "b"], "got None for sample 1"),
    "NaN among text": (["a", "b", float("nan"), "b"], "got nan for sample 2"),
    "objects": (np.array(["a", None, "b", "b"], object), "got None for sample 1"),
    "fractions": ([0.5, 1.7, 0.5, 1.7], "expected whole numbers, got 0.5 for sample 0"),
    "mixed": ([1, "a", 1, "a"], "expected labels of one kind, got int, str"),
    "masked": (np.ma.array([0, 1, 1, 0], mask=[0, 0, 1, 0]), "got masked entries"),
    "dates": (np.arange(4).astype("M8[s]"), "expected integers or text, got datetime64"),
}
LABELLED = {
    "iid": lambda labels: iid(labels, 2),
    "dirichlet": lambda labels: dirichlet(labels, 2, 1.0),
    "dirichlet, recycled": lambda labels: dirichlet(labels, 2, 1.0, recycle=True),
    "pathological": lambda labels: pathological(labels, 2, 1),
    "pathological, recycled": lambda labels: pathological(labels, 2, 1, recycle=True),
    "quantity": lambda labels: quantity_skew(labels, 2, 1.0),
    "natural": lambda labels: natural(labels)[1],
    "label_counts": lambda labels: label_counts(labels, [np.array([0, 1]), np.array([2, 3])]),
    "skew_of": lambda labels: skew_of(labels, np.ones((2, 2), int)),
}


@pytest.mark.parametrize("case", BAD_LABELS)
@pytest.mark.parametrize("name", LABELLED)
def test_labels_that_are_no_classes_are_refused(name, case):
    """By every rule: none reads uninitialised memory, none makes a class of missing labels."""
    labels, message = BAD_LABELS[case]
    with pytest.raises(ValueError, match=message):
        LABELLED[name](labels)


GOOD_LABELS = [[0.0, 1.0, 1.0, 0.0], ["a", "b", "b", "a"], [False, True, True, False]]


@pytest.mark.parametrize("labels", [*GOOD_LABELS, *(np.array(labels, object) for labels in GOOD_LABELS)])
@pytest.mark.parametrize("name", LABELLED)
def test_whole_numbers_text_and_truth_values_are_classes(name, labels):
    result, expected = LABELLED[name](labels), LABELLED[name](np.array([0, 1, 1, 0]))
    assert all(map(np.array_equal, result, expected))


def test_parts_of_another_dataset_are_not_counted():
    with pytest.raises(ValueError, match="expected parts with samples 0 to 3"):
        label_counts([0, 1, 1, 0], [np.array([0, -1])])


def test_skew_of_a_small_partition():
    labels, parts = [0, 0, 1, 1], [np.array([0, 1]), np.array([2]), np.array([0, 3])]
    counts = label_counts(labels, parts)
    assert counts.tolist() == [[2, 0], [0, 1], [1, 1]]
    assert skew_of(labels, counts) == (3, 1, 2.0, 2, 1, pytest.approx(4 / 3), 2, pytest.approx(1 / 3))


def test_parts_come_back_from_a_file(tmp_path):
    parts = RULES["dirichlet"]()
    save_parts(tmp_path / "parts.npz", parts)
    assert all(map(np.array_equal, load_parts(tmp_path / "parts.npz"), parts))
    np.savez(tmp_path / "other.npz", samples=np.arange(3), lengths=[2])
    with pytest.raises(ValueError, match="other.npz: expected samples"):
        load_parts(tmp_path / "other.npz")


@pytest.fixture
def images(tmp_path):
    """A folder of four tiny idx files, 300 training images of ten classes."""
    for prefix, n in (("train", 300), ("t10k", 20)):
        labels = (np.arange(n) % 10).astype(np.uint8)
        (tmp_path / f"{prefix}-images-idx3-ubyte").write_bytes(struct.pack(">4I", 0x803, n, 2, 2) + bytes(4 * n))
        (tmp_path / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, n) + labels.tobytes())
    return tmp_path


def command(*args):
    tyro.cli(partition, args=list(map(str, args)))


def test_the_command_partitions_draws_and_saves(images, capsys):
    options = ["--data", images, "--rule", "pathological", "--clients", 15, "--classes-per-client", 2]
    command(*options, "--plot", images / "p.png", "--out", images / "parts.npz", "--json")
    printed = capsys.readouterr().out
    out = json.loads(printed.splitlines()[-1])
    assert (out["rule"], out["clients"], out["classes_min"], out["classes_max"]) == ("pathological", 15, 2, 2)
    assert "total variation" in printed
    assert (images / "p.png").read_bytes().startswith(b"\x89PNG")
    assert len(load_parts(images / "parts.npz")) == 15


def test_the_command_takes_roles_by_default(capsys):
    command("--clients", 30, "--json")
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["rule"], result["clients"], result["classes"]) == ("natural", 30, 77)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--rule", "dirichlt"], "Did you mean 'dirichlet'"),
        (["--rule", "natural"], "images have no clients by nature"),
        (["--rule", "iid", "--concentration", "1"], "options of the rule iid, got concentration; leave it out"),
        (["--concentration", "0"], "concentration must be"),
        (["--clients", "301"], "301 clients need at least 301 samples, got 300"),
    ],
)
def test_the_command_refuses(images, args, message):
    with pytest.raises(ValueError, match=message):
        command("--data", images, *args)


def test_the_command_names_a_missing_folder(tmp_path):
    with pytest.raises(ValueError, match="nowhere: no such folder or file"):
        command("--data", tmp_path / "nowhere")
    with pytest.raises(ValueError, match="expected the files of CIFAR-10"):
        command("--data", tmp_path)
    with pytest.raises(ValueError, match="no option of the rule natural but --clients, got recycle"):
        command("--recycle")


def test_options_replace_defaults_of_a_rule():
    keywords = arguments("dirichlet", PartitionRule(concentration=2.0, clients=7), LABELS)
    assert (keywords["concentration"], keywords["num_clients"]) == (2.0, 7)
    assert arguments("dirichlet", PartitionRule(), LABELS)["concentration"] == 0.3


@pytest.mark.parametrize(("clients", "classes"), [(1, 1), (3, 20), (500, 12), (40, 100)])
def test_pictures_of_any_size(tmp_path, clients, classes):
    counts = np.random.default_rng(0).integers(0, 5, (clients, classes)) + np.eye(clients, classes, dtype=int)
    counts[:, 0] += 1
    plot.label_distribution(counts, tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
