"""The command `jaxfed compare`: what is compared, what comes out, the picture; at toy size."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib import image

import jaxfed
from jaxfed import plot
from jaxfed.__main__ import main
from jaxfed.cli import _compare as module
from jaxfed.cli._compare import Contest, Run, hyperparameters_of, line_of
from jaxfed.cli._options import Hyperparameters
from jaxfed.cli._partition import PartitionRule
from jaxfed.cli._problems import Source, tasks
from jaxfed.cli._problems import images as image_task

CLASSES, SIDE = 3, 4
TOY = ["--clients", "3", "--cohort-size", "2", "--local-steps", "2", "--batch-size", "8"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """An npz file of 90 images to train on and 45 unseen ones; every class is bright in a row of its own."""
    generator, arrays = np.random.default_rng(0), {}
    for part, count in (("train", 90), ("test", 45)):
        labels = np.arange(count) % CLASSES
        pixels = generator.integers(0, 120, size=(count, SIDE, SIDE))
        pixels[np.arange(count), labels] += 100
        arrays |= {f"x_{part}": pixels.astype(np.uint8), f"y_{part}": labels}
    path = tmp_path_factory.mktemp("images") / "toy.npz"
    np.savez(path, **arrays)
    return path


def compare(images, out, *options):
    main(["compare", *TOY, "--data", str(images), "--out", str(out), "--json", *options])


def last_json(capsys):
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.slow
def test_two_algorithms_are_compared_and_a_second_call_continues(images, tmp_path, capsys):
    options = ["--algorithms", "fedspeed,fedavg", "--seeds", "2"]
    compare(images, tmp_path / "parts", *options, "--rounds", "2")
    first = last_json(capsys)
    assert (tmp_path / "parts" / "compare.png").read_bytes().startswith(b"\x89PNG")
    compare(images, tmp_path / "parts", *options, "--rounds", "4")
    second = last_json(capsys)
    compare(images, tmp_path / "whole", *options, "--rounds", "4", "--plot", str(tmp_path / "there.pdf"))
    whole = last_json(capsys)
    assert (tmp_path / "there.pdf").read_bytes().startswith(b"%PDF")
    assert first["results"].keys() == {"fedspeed", "fedavg"}
    sent = {name: numbers["bytes_per_client_per_round"] for name, numbers in first["results"].items()}
    assert sent["fedspeed"] == 2 * sent["fedavg"] > 0
    for name, numbers in whole["results"].items():
        assert numbers["diverged"] == []
        assert numbers["best"] >= numbers["last"] >= numbers["worst_10%"]
        assert numbers["best"] >= whole["target"]
        assert numbers["last"] == second["results"][name]["last"]
        history = json.loads((tmp_path / "whole" / name / "seed-1" / "history.json").read_text())
        assert history["rounds"]["round"] == [1, 2, 3, 4]
    with pytest.raises(SystemExit, match="holds another run .*batching"):
        compare(images, tmp_path / "parts", *options, "--rounds", "4", "--local-steps", "3")


@pytest.mark.slow
def test_an_algorithm_that_diverges_is_named_and_not_drawn(images, tmp_path, capsys):
    compare(images, tmp_path, "--algorithms", "fedprox", "--client-learning-rate", "1e30", "--rounds", "3")
    results = last_json(capsys)
    assert results["results"]["fedprox"]["diverged"] == ["round 0"]
    assert results["results"]["fedprox"]["best"] is None
    assert not (tmp_path / "compare.png").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--algorithms", "fedavg,fedsped"], "got 'fedsped'. Did you mean 'fedspeed'"),
        (["--algorithms", ","], "expected names of algorithms"),
        (["--algorithms", "fedavg", "--prox-weight", "0.1"], "some algorithm has, got prox_weight; leave it out"),
        (["--partition", "dirichle"], "got 'dirichle'. Did you mean 'dirichlet'"),
        (["--partition", "iid", "--concentration", "0.3"], "options of the rule iid, got concentration"),
        (["--seeds", "0"], "seeds must be .* got 0"),
        (["--plan", "maps"], "Did you mean 'map'"),
    ],
)
def test_refusals_come_before_any_work(images, tmp_path, options, message):
    with pytest.raises(SystemExit, match=message):
        compare(images, tmp_path, *options)
    assert not list(tmp_path.iterdir())


def test_data_that_is_not_there(tmp_path):
    with pytest.raises(SystemExit, match="jaxfed: .*/nothing: no such folder or file"):
        compare(tmp_path / "nothing", tmp_path / "out")
    with pytest.raises(ValueError, match="the roles are the clients by nature, got concentration; name images with"):
        tasks(Source(concentration=0.3), 3)


def test_every_algorithm_gets_the_hyperparameters_it_has():
    methods = hyperparameters_of(Contest("all", prox_weight=0.3, ascent_radius=0.2), "text")
    assert methods.keys() == jaxfed.algorithms.registry.keys()
    assert methods["fedspeed"] == Hyperparameters("fedspeed", 0.5, prox_weight=0.3, ascent_radius=0.2)
    assert methods["fedsam"] == Hyperparameters("fedsam", 0.5, ascent_radius=0.2)
    assert methods["fedavg"] == Hyperparameters("fedavg", 0.5)
    assert list(hyperparameters_of(Contest("fedavg, fedsam,fedavg"), "images")) == ["fedavg", "fedsam"]


def test_unseen_accuracy_of_a_client_is_that_of_its_classes(images):
    task = tasks(Source(images, "pathological", classes_per_client=1), 3)(0)
    results = task.evaluate(task.params)
    arrays = np.load(images)
    logits = task.loss_fn
    data = jaxfed.data.client_data([{"x": arrays["x_test"][..., None], "y": arrays["y_test"].astype(np.int32)}])
    batch = {**data.arrays, "mask": jnp.ones(45, bool)}
    loss, aux = logits(task.params, batch, jax.random.key(0))
    assert results["unseen_accuracy"] == pytest.approx(float(aux["accuracy"]), abs=1e-6)
    assert results["unseen_loss"] == pytest.approx(float(loss), rel=1e-5)
    of_class = []
    for label in range(CLASSES):
        mask = jnp.asarray(arrays["y_test"] == label)
        of_class.append(float(logits(task.params, {**batch, "mask": mask}, jax.random.key(0))[1]["accuracy"]))
    assert results["unseen_accuracy/worst_10%"] == pytest.approx(min(of_class), abs=1e-6)
    assert results["unseen_accuracy/median"] == pytest.approx(np.median(of_class), abs=1e-6)


def run_of(accuracies, every=1, seconds=0.5):
    """A run evaluated after every `every` rounds of 10 samples."""
    count = every * len(accuracies)
    rounds = {"round": list(range(1, count + 1)), "samples": [10] * count, "sent_bytes": [4.0] * count}
    evaluated = {"round": list(range(every, count + 1, every)), module.ACCURACY: accuracies, module.WORST: accuracies}
    return Run(jaxfed.History(rounds, evaluated, seconds=[seconds] * count), 0.1)


def test_lines_are_drawn_where_all_seeds_were_measured():
    line = line_of([run_of([0.2, 0.3, 0.4, 0.5], seconds=1.0), run_of([0.4, 0.6], every=2), Run(None, 0.1, "round 1")])
    assert line.along == {"rounds": [0, 2, 4], "samples": [0, 20, 40], "seconds of training": [0, 1.5, 3.0]}
    np.testing.assert_array_equal(line.values, [[0.1, 0.3, 0.5], [0.1, 0.4, 0.6]])
    assert line_of([Run(jaxfed.History(), 0.1, "round 1")]) is None
    assert "seconds of training" not in line_of([run_of([0.2], seconds=None)]).along


def test_the_target_is_what_all_reach():
    runs = {"one": [run_of([0.3, 0.5, 0.4])], "two": [run_of([0.2, 0.3, 0.6])]}
    results = module._results(runs, None)
    assert results["target"] == 0.5
    assert [results["results"][name]["rounds_to_target"] for name in runs] == [2, 3]
    assert (results["results"]["one"]["best"], results["results"]["one"]["last"]) == (0.5, 0.4)
    assert results["results"]["two"]["seconds"] == pytest.approx(1.5)
    assert module._results(runs, 0.55)["results"]["one"]["rounds_to_target"] is None


def test_the_picture_has_a_colour_or_dash_for_every_algorithm(tmp_path):
    assert plot.STYLES.keys() == jaxfed.algorithms.registry.keys()
    assert len(set(plot.STYLES.values())) == len(plot.STYLES)
    along = {"rounds": [0, 1, 2], "samples": [0, 2000, 4000]}
    lines = {
        name: plot.Line(along, np.array([[0.1, 0.3, 0.5 + 0.01 * number], [0.1, 0.4, 0.5]]))
        for number, name in enumerate(["fedspeed", "fedavg", "of my own"])
    }
    plot.comparison(lines, "accuracy", tmp_path / "all.png", target=0.4)
    pixels = image.imread(tmp_path / "all.png")[..., :3].reshape(-1, 3)
    for name in ("fedspeed", "fedavg"):
        colour = np.array([int(plot.STYLES[name][0][at : at + 2], 16) for at in (1, 3, 5)]) / 255
        assert (np.abs(pixels - colour).max(axis=1) < 0.01).sum() > 100, name


SIZES = {"train": 12, "test": 6}


def test_images_of_floats_are_those_of_bytes():
    """The same problem, whichever of both an npz file holds; floats are not divided by 255 again."""
    draw = np.random.default_rng(0)
    parts = {name: (draw.integers(0, 256, (n, 4, 4, 1), np.uint8), np.arange(n) % 3) for name, n in SIZES.items()}
    of_bytes = {name: {"x": x, "y": y.astype(np.int32)} for name, (x, y) in parts.items()}
    of_floats = {name: {**split, "x": (split["x"] / 255).astype(np.float32)} for name, split in of_bytes.items()}
    both = [image_task(splits, PartitionRule(rule="iid", clients=2)) for splits in (of_bytes, of_floats)]
    measured = [task.evaluate(task.params) for task in both]
    assert measured[0] == pytest.approx(measured[1], rel=1e-4)
