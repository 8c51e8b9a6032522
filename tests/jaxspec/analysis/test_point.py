"""A pair in the picture of whatif: its figures are those of the replay, and its star is where they are."""

import json

import numpy as np
import pytest

from jaxspec.__main__ import main
from jaxspec.analysis import cost, measured_point, plots
from jaxspec.analysis.replay import hits, steps
from jaxspec.analysis.whatif import Assumptions, Point, best_at, compare
from jaxspec.generation import Stats
from jaxspec.methods import candidates
from tests.jaxspec.analysis.test_replay import recorded
from tests.support.jaxspec import models


def test_figures_of_a_pair():
    options = {"num_candidates": 2, "exit_layer": 2, "placement": models.meshes(), "new_tokens": 24}
    found = measured_point(models.target(), models.draft(), models.PROMPTS, **options)
    recording = recorded(models.target(), models.draft(), models.PROMPTS, 24, (2,), num_candidates=2)
    replayed = steps(recording, 7)
    assert found.at.rate == pytest.approx(replayed.acceptance_rate)
    assert found.at.foreseen == pytest.approx(hits(recording, replayed, candidates.mirror(), 2, 2).mean())
    assert (found.window, found.exit_share) == (7, 0.5)
    assert found.at.cost > 0 < found.pass_over_plain


def test_the_axes_reach_the_pair():
    """It is drawn in the panel of its Ω′, once."""
    at = Point(3.0, 0.2, 0.31)
    result = compare((0.8, 0.31), 8, at=at)
    assert result.costs[0] <= at.cost <= result.costs[-1]
    assert result.rates[0] <= at.rate <= result.rates[-1]
    panels = plots.whatif(result, pair=at).axes[:2]
    stars = [[line.get_xydata().tolist() for line in axes.lines if line.get_marker() == "*"] for axes in panels]
    assert stars == [[], [[[3.0, 0.2]]]]
    assert best_at(Assumptions(), at) == ("plain", 1.0)
    name, gain = best_at(Assumptions(), Point(0.05, 0.95, 0.95))
    assert name != "plain"
    assert gain > 3


def test_measurements_of_several_prompts_are_pooled():
    """A program that did not run in one of them does not count there; counts are added."""
    one = cost.StepTiming(cost.ProgramTimes(prefix=1.0, fallback=4.0), 2.0, Stats(steps=2, verified=3, needed=2))
    two = cost.StepTiming(cost.ProgramTimes(prefix=3.0), 4.0, Stats(steps=6, verified=5, needed=6, reused=4))
    both = cost.pooled([one, two])
    assert (both.times.prefix, both.times.fallback, both.step) == (2.0, 4.0, 3.0)
    assert (both.stats.accepted_length, both.stats.reuse_rate) == (1.0, 0.5)


@pytest.fixture
def questions(tmp_path):
    path = tmp_path / "questions.jsonl"
    asked = "Enter the king. What news, my lord?", "Now is the winter of our discontent"
    path.write_text("\n".join(json.dumps({"prompt": text}) for text in asked))
    return path


@pytest.mark.slow
def test_commands_on_a_file_of_prompts(small_pair, questions, tmp_path, capsys):
    where = ["--target", str(small_pair), "--prompts", str(questions)]
    picture = tmp_path / "pair.png"
    small = ["--count", "2", "--new-tokens", "12", "--points", "4", "--num-candidates", "2", "--plot", str(picture)]
    main(["whatif", *where, *small, "--json"])
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (
        printed["panels"][-1]["foreseen"] == printed["pair"]["foreseen"] == np.clip(printed["pair"]["foreseen"], 0, 1)
    )
    assert picture.stat().st_size > 0
    main(["doctor", *where, "--count", "2", "--max-new-tokens", "6", "--window", "2", "--json"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["step_ms"] > 0


def test_a_draft_or_prompts_alone_are_refused(questions):
    with pytest.raises(SystemExit, match="expected --target with --draft or --prompts, got none; name the pair"):
        main(["whatif", "--prompts", str(questions)])
