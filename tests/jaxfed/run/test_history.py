"""What a run reports: columns, running sums, files, and histories of older versions."""

import csv
import functools
import gc
import json
import struct
import sys
import tracemalloc

import jax
import numpy as np
import pytest

import jaxfed
from jaxfed.run._columns import Columns
from tests.support.jaxfed import problems


def run(rounds=4, algorithm=jaxfed.fedspeed, sampler=None, **options):
    """A short run; returns its history and the info of every round."""
    problem, infos = problems.make_problem(21, np.float32), []
    data = jaxfed.data.client_data(problem.clients)
    made = algorithm(problems.loss_fn)
    _, history = jaxfed.simulate(
        made,
        made.init(problem.params, problems.CLIENTS),
        data,
        rounds=rounds,
        sampler=sampler or jaxfed.FixedSize(3),
        batching=jaxfed.Epochs(1, 4),
        report=jaxfed.Report(callbacks=[lambda server, info: infos.append(jax.device_get(info))], progress=False),
    )
    return history, infos, data


def test_a_round_reports_drift_duals_padding_and_samples():
    history, infos, data = run()
    for name in ("loss", "gradient_norm", "delta_norm", "memory_norm", "padding", "inconsistency", "learning_rate"):
        assert all(number > 0 for number in history.rounds[name]), name
    for at, info in enumerate(infos):
        clients = jaxfed.FixedSize(3).draw(0, at, problems.CLIENTS)
        assert history.rounds["samples"][at] == sum(data.lengths[clients].tolist())
        assert history.rounds["loss_worst"][at] == pytest.approx(max(info.clients.loss))
        assert history.rounds["loss_median"][at] == pytest.approx(sorted(info.clients.loss)[1])
        assert history.rounds["delta_norm_max"][at] == pytest.approx(max(info.clients.delta_norm))
    assert history.cumulative("samples") == np.cumsum(history.rounds["samples"]).tolist()


def test_empty_slots_report_nothing():
    history, infos, data = run(sampler=jaxfed.CoinFlips(0.4))
    for at, info in enumerate(infos):
        assert history.rounds["loss_worst"][at] == pytest.approx(max(info.clients.loss[info.used]))
        drawn = jaxfed.CoinFlips(0.4).draw(0, at, problems.CLIENTS)
        active = drawn[drawn >= 0]
        assert history.rounds["samples"][at] == sum(data.lengths[active].tolist())


three_rounds = functools.cache(lambda: run(rounds=3)[1])


def by_hand():
    """Three rounds, the first without a time, and two evaluations."""
    infos = three_rounds()
    history = jaxfed.History()
    for number, (info, seconds) in enumerate(zip(infos, [None, 1.0, 3.0], strict=True), start=1):
        history.add_round(number, info, seconds=seconds)
    history.add_evaluation(2, {"accuracy": np.float32(0.5)})
    history.add_evaluation(3, {"accuracy": 0.75, "accuracy/q10": 0.25})
    return history


def test_seconds_of_an_unknown_round_are_the_median():
    history = by_hand()
    assert history.cumulative("seconds") == [2.0, 3.0, 6.0]
    assert history.cumulative("seconds", [0, 2]) == [0.0, 3.0]
    assert jaxfed.History().cumulative("seconds") == []


def test_the_bar_shows_the_main_numbers_only():
    assert by_hand().latest().keys() == {"loss", "accuracy"}


def test_through_json_and_back():
    history = by_hand()
    assert history.evaluations["accuracy/q10"] == [None, 0.25]
    assert jaxfed.History.from_dict(json.loads(json.dumps(history.to_dict()))) == history


def awkward():
    """Columns of every kind: late, with gaps, whole, large, of no number, and of floats that compare oddly."""
    made = Columns({"whole": [1, 2], "large": [2**61, None]})
    made.append({"whole": np.int32(3), "late": np.float32(0.1), "mixed": 4, "large": 2**80})
    made.append({"whole": -4, "late": float("nan"), "mixed": -0.0})
    made.append({"whole": 5, "late": float("inf"), "odd": None})
    return made


def test_columns_are_lists_of_plain_numbers():
    columns = {name: list(map(repr, column)) for name, column in awkward().items()}
    assert columns == {
        "whole": ["1", "2", "3", "-4", "5"],
        "large": [repr(2.0**61), "None", repr(2.0**80), "None", "None"],
        "late": ["None", "None", repr(float(np.float32(0.1))), "nan", "inf"],
        "mixed": ["None", "None", "4.0", "-0.0", "None"],
        "odd": ["None"] * 5,
    }
    assert repr(awkward().last()) == "{'whole': 5, 'large': None, 'late': inf, 'mixed': None, 'odd': None}"


def test_a_snapshot_of_columns_is_all_of_them():
    made = awkward()
    facts, taken = json.loads(json.dumps(made.describe())), made.snapshot()
    assert Columns.like(facts).shape == taken.shape == (5, 5)
    again = Columns.restored(facts, taken)
    assert repr(again) == repr(made)
    for columns in (again, made):  # what is appended does not reach into the snapshot
        columns.append({"whole": 6, "mixed": 7})
        assert (columns["whole"][-1], columns["mixed"][-1]) == (6, 7.0)
    assert repr(again) == repr(made)


@pytest.mark.parametrize("made", [jaxfed.History, by_hand], ids=["empty", "three rounds"])
def test_through_a_snapshot_and_back(made):
    history = made()
    facts, taken = json.loads(json.dumps(history.describe())), history.snapshot()
    assert jax.tree.map(np.shape, jaxfed.History.like(facts)) == jax.tree.map(np.shape, taken)
    assert jaxfed.History.restored(facts, taken) == history


def test_a_round_takes_eight_bytes_per_number():
    """In memory, and nothing in the text beside a checkpoint."""
    history, info = jaxfed.History(), three_rounds()[0]
    history.add_round(1, info, seconds=1.0)
    tracemalloc.start()
    try:
        for number in range(2, 1002):
            history.add_round(number, info, seconds=1.0)
        gc.collect()
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert taken / 1000 < 1.3 * 8 * (len(history.rounds) + 1)
    assert len(json.dumps(history.describe())) < 1000


def test_a_history_of_an_older_version_continues():
    """It had neither plan nor seconds nor all of the columns."""
    old = {"rounds": {"round": [1, 2], "loss": [3.0, 2.5]}, "evaluations": {"round": [2], "accuracy": [0.5]}}
    history = jaxfed.History.from_dict(old)
    history.add_round(3, three_rounds()[2], seconds=1.5)
    assert history.rounds["round"] == [1, 2, 3]
    assert history.rounds["samples"][:2] == [None, None]
    assert history.rounds["samples"][2] > 0
    assert history.seconds == [None, None, 1.5]
    assert history.cumulative("seconds") == [1.5, 3.0, 4.5]


def test_csv(tmp_path):
    history = by_hand()
    history.to_csv(tmp_path / "run.csv")
    with (tmp_path / "run.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["round"] for line in lines] == ["1", "2", "3"]
    assert [line["evaluation/accuracy"] for line in lines] == ["", "0.5", "0.75"]
    assert [line["seconds"] for line in lines] == ["", "1.0", "3.0"]
    assert [float(line["loss"]) for line in lines] == history.rounds["loss"]


def scalars(path):
    """(tag, step) → value of an event file, whose records are length, checksum, event, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    content, values, at = path.read_bytes(), {}, 0
    while at < len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        event = Event.FromString(content[at + 12 : at + 12 + length])
        values |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
        at += length + 16
    return values


def test_tensorboard(tmp_path):
    history = by_hand()
    history.to_tensorboard(tmp_path)
    (path,) = tmp_path.iterdir()
    written = scalars(path)
    assert written["evaluation/accuracy", 3] == 0.75
    assert written["round/loss", 1] == pytest.approx(history.rounds["loss"][0])
    assert ("evaluation/accuracy", 1) not in written


def test_without_tensorboard_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ImportError, match=r'pip install "jaxfed-jaxspec\[tensorboard\]"'):
        by_hand().to_tensorboard(tmp_path)
