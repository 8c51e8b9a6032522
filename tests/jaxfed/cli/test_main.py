"""The command `jaxfed run` at toy size."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxfed
from jaxfed.__main__ import COMMANDS, main
from jaxfed.cli._options import Hyperparameters, build, store
from jaxfed.cli._run import panels

ROOT = Path(__file__).parents[3]
TOY = ["--clients", "3", "--cohort-size", "2", "--local-steps", "2", "--batch-size", "16"]
TOY += ["--client-learning-rate", "0.1"]


def run(out: Path, *options: str) -> None:
    main(["run", *TOY, "--out", str(out), *options])


def last_json(capsys: pytest.CaptureFixture[str]) -> dict:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def parameters(out: Path, step: int) -> list[np.ndarray]:
    tree = jaxfed.checkpoint.load(out / "checkpoints", part="server.params", step=step)
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


@pytest.mark.slow
def test_run_learns_and_a_second_call_continues(tmp_path, capsys):
    run(tmp_path / "parts", "--rounds", "2", "--json")
    first = last_json(capsys)
    assert {"accuracy", "before", "loss", "rounds", "seconds", "versions", "algorithm", "seed"} <= first.keys()
    assert (first["rounds"], first["algorithm"]) == (2, "fedspeed")
    assert {"jax", "flax", "optax", "orbax-checkpoint", "numpy", "python"} == first["versions"].keys()
    assert (tmp_path / "parts" / "run.png").read_bytes().startswith(b"\x89PNG")

    run(tmp_path / "parts", "--rounds", "4", "--json")
    second = last_json(capsys)
    run(tmp_path / "whole", "--rounds", "4", "--json")
    whole = last_json(capsys)
    for name in ("loss", "accuracy", "rounds", "before"):
        assert second[name] == whole[name]
    for ours, theirs in zip(parameters(tmp_path / "parts", 4), parameters(tmp_path / "whole", 4), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    history = json.loads((tmp_path / "parts" / "history.json").read_text())
    assert history["rounds"]["round"] == [1, 2, 3, 4]
    assert len((tmp_path / "parts" / "history.csv").read_text().splitlines()) == 5
    assert second["accuracy/worst_10%"] <= second["accuracy"]
    assert history["evaluations"]["unseen_loss"][-1] == pytest.approx(second["loss"])
    assert second["loss"] < first["loss"] < first["before"]["loss"]
    assert second["accuracy"] > first["before"]["accuracy"]

    with pytest.raises(SystemExit, match=r"jaxfed: the checkpoint directory holds another run \(seed: 0 there, 1 here"):
        run(tmp_path / "whole", "--rounds", "4", "--seed", "1")


@pytest.mark.slow
def test_what_clients_send_by_options(tmp_path, capsys):
    run(tmp_path / "whole", "--rounds", "1", "--json")
    options = ["--clip", "0.5", "--noise-multiplier", "2", "--bits", "8"]
    whole = last_json(capsys)
    run(tmp_path / "private", "--rounds", "1", "--json", *options)
    private = last_json(capsys)
    assert private["sent_bytes"] < 0.26 * whole["sent_bytes"]
    assert private["privacy"]["epsilon"] > 0
    assert "Poisson" in private["privacy"]["sampling"]
    assert whole["privacy"] is None
    assert private["loss"] != whole["loss"]
    with pytest.raises(SystemExit, match="expected --clip and --aggregate mean with --noise-multiplier"):
        run(tmp_path / "other", "--noise-multiplier", "2")
    with pytest.raises(SystemExit, match="Did you mean 'krum'"):
        run(tmp_path / "other", "--aggregate", "crum")


@pytest.mark.slow
def test_ctrl_c_saves_and_names_the_way_to_resume(tmp_path):
    command = [sys.executable, "-m", "jaxfed", "run", *TOY, "--rounds", "1000000", "--out", str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        printed, wanted = b"", re.compile(rb" [1-9][0-9]*/1000000")
        deadline = time.monotonic() + 600
        while not wanted.search(printed) and time.monotonic() < deadline:
            printed += os.read(process.stderr.fileno(), 4096) or b" 1/1000000 ended"
        process.send_signal(signal.SIGINT)
        printed += process.stderr.read()
    assert process.returncode == 130, printed.decode()
    stopped = re.search(rb"stopped after round (\d+), saved in .*resumes from there", printed)
    assert stopped, printed.decode()
    assert jaxfed.checkpoint.latest(tmp_path / "checkpoints") == int(stopped[1])


def test_an_unknown_algorithm_suggests_the_nearest(tmp_path):
    with pytest.raises(SystemExit, match="got 'fedsped'. Did you mean 'fedspeed'"):
        run(tmp_path, "--algorithm", "fedsped")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--plan", "vmpa"), "plan must be one of .* got 'vmpa'. Did you mean 'vmap'"),
        (("--store", "dsk"), "store must be one of .* got 'dsk'. Did you mean 'disk'"),
    ],
)
def test_an_unknown_plan_or_store_suggests_the_nearest(tmp_path, option, message):
    with pytest.raises(SystemExit, match=message):
        run(tmp_path, *option)
    assert not list(tmp_path.iterdir())


def test_stores_by_name(tmp_path):
    kinds = {"device": jaxfed.DeviceStore, "host": jaxfed.HostStore, "disk": jaxfed.DiskStore}
    assert {name: type(store(name, tmp_path)) for name in kinds} == kinds


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as done:
        main([command, "--help"])
    assert done.value.code == 0
    assert "--json" in capsys.readouterr().out


def test_too_many_clients_are_refused(tmp_path):
    with pytest.raises(SystemExit, match=r"jaxfed: expected 1 to \d+ clients, .* got 1347"):
        run(tmp_path, "--clients", "1347")


def test_hyperparameters_reach_the_algorithm_that_has_them():
    named = build(Hyperparameters("fedspeed", 0.2, prox_weight=0.3, ascent_radius=0.4), lambda *_: None).hyperparameters
    assert (named["client_learning_rate"], named["prox_weight"], named["ascent_radius"]) == (0.2, 0.3, 0.4)
    assert build(Hyperparameters("fedprox"), lambda *_: None).hyperparameters["prox_weight"] == 0.1
    with pytest.raises(ValueError, match="expected hyperparameters of fedavg, got ascent_radius, prox_weight; leave"):
        build(Hyperparameters("fedavg", prox_weight=0.3, ascent_radius=0.1), lambda *_: None)


def test_the_picture_begins_before_the_first_round():
    history = jaxfed.History(
        {"round": [1, 2], "loss": [3.0, 2.0], "aux/accuracy": [0.1, 0.2]},
        {"round": [2], "unseen_loss": [2.5], "unseen_accuracy": [0.3]},
    )
    drawn = panels(history, {"loss": 4.0, "accuracy": 0.0})
    assert drawn["loss (nats per character)"]["unseen text"] == ([0, 2], [4.0, 2.5])
    assert drawn["accuracy of the next character"]["clients' own batches"] == ([1, 2], [0.1, 0.2])
    assert len(drawn["accuracy of the next character"]) == 2
    history.evaluations["unseen_accuracy/worst_10%"] = [0.2]
    drawn = panels(history, {"loss": 4.0, "accuracy": 0.0, "accuracy/worst_10%": 0.0})
    assert drawn["accuracy of the next character"]["unseen text, worst tenth of the clients"] == ([0, 2], [0.0, 0.2])
