"""The timeline: which programs ran, on which lane, in which order."""

import json
from itertools import pairwise

import pytest

import jaxspec
from jaxspec.analysis import plots as plot
from jaxspec.generation.trace import Span, Timeline, median_milliseconds
from jaxspec.methods import candidates
from tests.support.jaxspec import models

LANES = {"prefix": "target", "suffix": "target", "rollout": "draft", "select": "draft", "step": "target"}


def traced(method):
    with Timeline() as watch:
        result = jaxspec.generate(method, models.PROMPTS, models.NEW_TOKENS, watch=watch)
        return result, watch.spans()


@pytest.fixture(scope="module")
def mirror_spans():
    result, spans = traced(models.mirror())
    assert result.tokens == models.expected()
    return spans


def by_step(spans):
    steps = {}
    for span in spans:
        steps.setdefault(span.step, {})[span.name] = span
    return steps


def test_watch_sees_every_program_of_every_step():
    seen = []
    jaxspec.generate(models.mirror(), models.PROMPTS, models.NEW_TOKENS, watch=lambda *call: seen.append(call[:2]))
    steps = [sorted(seen[start : start + 4]) for start in range(0, len(seen), 4)]
    assert len(steps) > 2
    assert all(step == sorted((LANES[n], n) for n in ("prefix", "suffix", "rollout", "select")) for step in steps)


def test_spans_of_mirror_are_on_two_lanes(mirror_spans):
    assert {(span.lane, span.name) for span in mirror_spans} == {(LANES[n], n) for n in LANES if n != "step"}
    steps = by_step(mirror_spans)
    assert sorted(steps) == list(range(len(steps)))
    assert all(set(step) == {"prefix", "suffix", "rollout", "select"} for step in steps.values())


def test_spans_have_a_duration_and_a_lane_runs_one_program_at_a_time(mirror_spans):
    assert all(0 <= span.start <= span.end for span in mirror_spans)
    for lane in ("target", "draft"):
        ordered = sorted((span for span in mirror_spans if span.lane == lane), key=lambda span: span.start)
        assert all(before.end <= after.start for before, after in pairwise(ordered))


def test_the_message_and_the_verdict_are_waited_for(mirror_spans):
    for step in by_step(mirror_spans).values():
        assert step["prefix"].end <= step["suffix"].end
        assert step["prefix"].end <= step["rollout"].end
        assert step["suffix"].end <= step["select"].end
        assert step["suffix"].end <= step["select"].start


@pytest.mark.parametrize("build", [lambda: jaxspec.autoregressive(models.target()), models.speculative])
def test_methods_of_one_program_have_one_lane(build):
    result, spans = traced(build())
    assert result.tokens == models.expected()
    assert {(span.lane, span.name) for span in spans} == {("target", "step")}
    assert [span.step for span in spans] == list(range(len(spans)))


PROGRAMS = {
    "none": (candidates.none(), {"whole", "select"}),
    "saguaro": (candidates.saguaro(2), {"whole", "ahead", "select"}),
    "hybrid": (candidates.hybrid(2, 2), {"prefix", "ahead", "suffix", "rollout", "select"}),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_of_other_policies(name, tmp_path):
    policy, programs = PROGRAMS[name]
    result, spans = traced(models.mirror(policy=policy))
    assert result.tokens == models.expected()
    steps = by_step(spans)
    assert sorted(steps) == list(range(len(steps)))
    assert all(set(step) == programs for step in steps.values())
    assert all(step["select"].start >= step.get("whole", step.get("suffix")).end for step in steps.values())
    plot.timeline(spans, tmp_path / "timeline.png")
    assert (tmp_path / "timeline.png").stat().st_size > 0


@pytest.mark.parametrize("build", [models.mirror, models.speculative])
def test_a_trace_for_perfetto(build, tmp_path):
    """Every program on its lane, message and verdict, and the outcome at the end of a step."""
    with Timeline() as watch:
        stats = jaxspec.generate(build(), models.PROMPTS[:1], models.NEW_TOKENS, watch=watch).stats
        spans, outcomes = watch.spans(), watch.outcomes()
        watch.save(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    programs = [event for event in events if event["ph"] == "X"]
    assert [event["name"] for event in programs] == [span.name for span in spans]
    assert [event["ts"] for event in programs] == pytest.approx([1e6 * span.start for span in spans])
    assert sum(outcome.num_accepted[0] for outcome in outcomes[: stats.steps]) == stats.accepted
    ends = [event["args"] for event in programs if "num_accepted" in event["args"]]
    assert [end["num_accepted"] for end in ends] == [outcome.num_accepted for outcome in outcomes]
    instants = [event["name"] for event in events if event["ph"] == "i"]
    if build is models.mirror:
        assert instants == ["message", "verdict"] * len(outcomes)
        assert sum(end["reused"][0] for end in ends[: stats.steps - 1]) == stats.reused
    lanes = {event["tid"]: event["args"]["name"] for event in events if event["ph"] == "M"}
    assert [lanes[event["tid"]] for event in programs] == [span.lane for span in spans]


def test_median_milliseconds():
    ends = {"prefix": (0.001, 0.003, 0.010), "suffix": (0.002,)}
    spans = [Span("target", name, 0, 1.0, 1.0 + end) for name, row in ends.items() for end in row]
    assert median_milliseconds(spans) == pytest.approx({"prefix": 3.0, "suffix": 2.0})
