"""Replays on independent clocks: schedules by hand, the cost model's time, and real steps."""

import pytest

from jaxspec.analysis import cost
from jaxspec.analysis.clocks import Clocks, replayed
from jaxspec.analysis.cost import ProgramTimes, StepTiming, step_time
from jaxspec.generation import Stats
from jaxspec.methods import candidates
from tests.support.jaxspec import models

MIRROR = {"prefix": 2.0, "suffix": 3.0, "rollout": 2.5, "select": 0.2}
NONE = {"whole": 5.0, "fallback": 3.0}
HYBRID = {"prefix": 2.0, "ahead": 2.4, "suffix": 3.0, "rollout": 2.5, "fallback": 3.2}


def times_of(steps, **clocks):
    """Steps of two tokens each, replayed."""
    return replayed(StepTiming(ProgramTimes(), 0.0, Stats(), 1, steps, 2 * len(steps)), Clocks(**clocks))


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        ({"step": 4.0}, 4.0),
        (NONE, 5.0 + 3.0),
        ({"whole": 5.0, "ahead": 2.0, "select": 0.2}, 5.0 + 0.2),
        ({"whole": 5.0, "ahead": 7.0, "select": 0.2}, 7.0 + 0.2),
        (MIRROR, 5.0 + 0.2),
        (MIRROR | {"rollout": 4.0}, 2.0 + 4.0 + 0.2),
        (HYBRID, 5.0 + 3.2),
        (HYBRID | {"ahead": 4.0}, 4.0 + 2.5 + 3.2),
    ],
)
def test_a_step_by_hand(step, expected):
    found = times_of([step] * 3)
    assert found.step == pytest.approx(expected)
    assert found.tokens_per_second == pytest.approx(2.0 / expected)


def test_every_step_has_its_own_times():
    """A fallback delays one step; the mean of steps is not that of its medians."""
    steps = [MIRROR, {**MIRROR, "rollout": 9.0}, NONE]
    assert times_of(steps).seconds == pytest.approx(5.2 + (2.0 + 9.0 + 0.2) + 8.0)


def test_messages_delay_what_waits_for_them():
    """The exit's delays the rollout alone, the verdict's and the window's the step."""
    assert times_of([NONE] * 4, message=0.1).step == pytest.approx(8.0 + 0.2 - 0.1 / 4)
    hidden = times_of([MIRROR] * 4, message=0.1).step
    assert hidden == pytest.approx(5.2 + 0.2 - 0.1 / 4)
    late = times_of([MIRROR | {"rollout": 4.0}] * 4, message=0.1).step
    assert late == pytest.approx(2.0 + 0.1 + 4.0 + 0.2 + 0.1 - 0.1 / 4)


def test_a_faster_draft_shortens_what_is_not_hidden():
    assert times_of([NONE], draft=2.0).step == pytest.approx(5.0 + 1.5)
    assert times_of([MIRROR], draft=2.0).step == pytest.approx(5.0 + 0.1)
    assert times_of([MIRROR], target=2.0).step == pytest.approx(1.0 + 2.5 + 0.2)


def test_a_slow_host_is_the_limit():
    """Four programs and three messages a step; a fast host is hidden."""
    many = [MIRROR] * 50
    assert times_of(many, call=1.0).step == pytest.approx(7.0, rel=0.02)
    assert times_of(many, call=0.01).step == pytest.approx(5.2, rel=0.01)


def test_programs_of_a_mesh_run_one_after_the_other():
    spans = times_of([HYBRID, MIRROR] * 3, message=0.3, call=0.2).spans
    for lane in ("target", "draft"):
        own = [span for span in spans if span.lane == lane]
        assert all(before.end <= after.start for before, after in zip(own, own[1:], strict=False))
        assert all(span.end - span.start > 0 for span in own)


@pytest.mark.parametrize(
    "times",
    [
        ProgramTimes(suffix=5.0, fallback=3.0),
        ProgramTimes(suffix=5.0, ahead=2.0, select=0.2, fallback=3.0),
        ProgramTimes(prefix=2.0, suffix=3.0, rollout=2.5, select=0.2, fallback=3.0),
        ProgramTimes(prefix=2.0, suffix=3.0, ahead=2.4, rollout=4.5, select=0.2, fallback=3.0),
    ],
)
def test_equal_steps_take_the_cost_model_s_time(times):
    """In seven of ten steps a branch is right."""
    step = {"prefix": times.prefix, "suffix": times.suffix, "ahead": times.ahead, "rollout": times.rollout}
    if not times.prefix:
        step = {"whole": times.suffix, "ahead": times.ahead}
    step = {name: seconds for name, seconds in step.items() if seconds}
    rolled = times.ahead or times.rollout
    right, wrong = {**step, "select": times.select}, {**step, "fallback": times.select + times.fallback}
    steps, rate = ([right] * 7 + [wrong] * 3, 0.3) if rolled else ([wrong] * 10, 1.0)
    assert times_of(steps).step == pytest.approx(step_time(times, rate))


@pytest.mark.parametrize("clocks", [{"target": 0.0}, {"draft": -1.0}, {"message": -0.1}, {"call": -1.0}])
def test_clocks_that_are_none(clocks):
    with pytest.raises(ValueError, match="expected speeds > 0 and seconds >= 0, got"):
        Clocks(**clocks)


def test_a_measurement_without_steps():
    with pytest.raises(ValueError, match="expected the timing of at least one step, got none"):
        times_of([])


@pytest.mark.parametrize(
    "policy", [candidates.none(), candidates.mirror(2), candidates.hybrid(1, 2)], ids=["none", "mirror", "hybrid"]
)
def test_real_steps_replay_to_the_cost_model(policy):
    """The same run: means of its programs in the cost model, its steps one by one on the clocks."""
    timing = cost.measure(models.mirror(policy=policy), models.meshes(), models.PROMPTS[:1], 24, repeats=2)
    steps, found = timing.steps, replayed(timing)
    assert len(steps) == timing.stats.steps
    assert timing.tokens >= timing.stats.new_tokens == 24
    names = {name for step in steps for name in step}
    mean = {name: sum(step.get(name, 0.0) for step in steps) / len(steps) for name in names}
    times = ProgramTimes(
        prefix=mean.get("prefix", 0.0), suffix=mean.get("suffix", 0.0) + mean.get("whole", 0.0),
        ahead=mean.get("ahead", 0.0), rollout=mean.get("rollout", 0.0),
        select=mean.get("select", 0.0) + mean.get("fallback", 0.0),
    )  # fmt: skip
    assert found.step >= step_time(times, 0.0) * (1 - 1e-9)
    assert found.step <= sum(mean.values()) + 3 * timing.times.rendezvous
    assert found.tokens_per_second == pytest.approx(timing.tokens / found.seconds)
