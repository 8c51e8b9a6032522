"""The cost model by hand, its measured inputs, and the comparison of policies that it gives."""

import json
from dataclasses import fields

import numpy as np
import pytest

from jaxspec import __main__ as command_line
from jaxspec.analysis import cost
from jaxspec.analysis.cost import ProgramTimes, StepTiming, accepted_length, step_time
from jaxspec.analysis.whatif import Assumptions, compare
from jaxspec.cli._doctor import verdict
from jaxspec.generation import Stats
from jaxspec.methods import candidates
from tests.support.jaxspec import models

NONE = ProgramTimes(suffix=5.0, fallback=3.0, rendezvous=0.1)
PEARL = ProgramTimes(suffix=5.0, ahead=2.0, select=0.2, fallback=3.0, rendezvous=0.1)
MIRROR = ProgramTimes(prefix=2.0, suffix=3.0, rollout=2.5, select=0.2, fallback=3.0, rendezvous=0.1)
HYBRID = ProgramTimes(prefix=2.0, suffix=3.0, ahead=2.4, rollout=2.5, select=0.2, fallback=3.0, rendezvous=0.1)


@pytest.mark.parametrize(
    ("times", "rate", "batch", "expected"),
    [
        (NONE, 1.0, 1, 5.0 + 0.1 + 3.0),
        (PEARL, 0.6, 1, 5.0 + 0.1 + 0.2 + 0.6 * 3.0),
        (MIRROR, 0.0, 1, 5.0 + 0.1 + 0.2),
        (MIRROR, 0.3, 1, 5.0 + 0.1 + 0.2 + 0.3 * 3.0),
        (MIRROR, 0.3, 4, 5.0 + 0.1 + 0.2 + (1 - 0.7**4) * 3.0),
        (HYBRID, 0.0, 1, 5.0 + 0.1 + 0.2),
        (ProgramTimes(prefix=2.0, suffix=3.0, rollout=4.0, rendezvous=0.1), 0.0, 1, 2.0 + 0.1 + 4.0 + 0.1),
        (ProgramTimes(prefix=2.0, suffix=3.0, ahead=2.8, rollout=4.0, rendezvous=0.1), 0.0, 1, 2.8 + 4.0 + 0.1),
    ],
)
def test_step_time(times, rate, batch, expected):
    assert step_time(times, rate, batch) == pytest.approx(expected)
    assert step_time(times, rate, batch) >= times.target


def test_no_step_undercuts_the_target_s_pass():
    """For any program times and any overlap."""
    random = np.random.default_rng(0)
    for _ in range(500):
        times = ProgramTimes(
            *(random.exponential(size=len(fields(ProgramTimes))) * random.integers(0, 2, len(fields(ProgramTimes))))
        )
        rate, batch, overlap = random.random(), int(random.integers(1, 9)), random.random()
        assert step_time(times, rate, batch, overlap) >= step_time(times, rate, batch) >= times.target
        assert step_time(times, 0.0) <= step_time(times, rate) <= step_time(times, rate, batch) <= step_time(times, 1.0)


@pytest.mark.parametrize(("times", "hidden"), [(NONE, 0.0), (PEARL, 2.0), (MIRROR, 2.5), (HYBRID, 4.9)])
def test_what_is_hidden(times, hidden):
    """A step whose programs run in sequence takes this much longer, and has an overlap of 0."""
    assert times.hidden == pytest.approx(hidden)
    sequential = times.prefix + times.suffix + times.ahead + times.rollout + times.select + times.rendezvous
    assert step_time(times, 0.0, overlap=0.0) == pytest.approx(sequential)
    if hidden:
        ready = Stats(needed=1, reused=1)
        assert StepTiming(times, sequential, ready).overlap == pytest.approx(0.0)
        assert StepTiming(times, step_time(times, 0.0), ready).overlap == pytest.approx(1.0)


def test_rollouts_cost_nothing_while_they_hide():
    """The step time is constant until the rollout takes longer than the suffix."""
    times = [step_time(MIRROR.__class__(**{**vars(MIRROR), "rollout": cost}), 0.2) for cost in (0.5, 1.5, 2.9, 3.9)]
    assert times[0] == times[1] == times[2]
    assert times[3] == pytest.approx(times[0] + 1.0)


def test_accepted_length_is_a_geometric_sum():
    assert accepted_length(1.0, 7) == 7
    assert accepted_length(0.0, 7) == 0
    assert accepted_length(0.5, 3) == pytest.approx(0.5 + 0.25 + 0.125)


@pytest.mark.parametrize("wrong", [(-0.1, 1), (1.1, 1), (0.5, 0)])
def test_invalid_rates(wrong):
    with pytest.raises(ValueError, match=r"expected 0 <= fallback_rate <= 1 and batch >= 1, got"):
        step_time(MIRROR, *wrong)


POLICIES = {
    "none": (candidates.none(), {"suffix", "fallback", "rendezvous"}),
    "saguaro": (candidates.saguaro(3), {"suffix", "ahead", "fallback", "rendezvous"}),
    "mirror": (candidates.mirror(2), {"prefix", "suffix", "rollout", "fallback", "rendezvous"}),
    "hybrid": (candidates.hybrid(2, 2), {"prefix", "suffix", "ahead", "rollout", "fallback", "rendezvous"}),
}


@pytest.mark.parametrize("name", POLICIES)
def test_program_times_of_every_policy_are_measured(name):
    policy, expected = POLICIES[name]
    timing = cost.measure(models.mirror(policy=policy), models.meshes(), models.PROMPTS[:1], 24, repeats=1)
    positive = {name for name, seconds in vars(timing.times).items() if seconds > 0}
    assert expected <= positive | {"fallback"} <= expected | {"select", "fallback"}
    assert timing.predicted >= timing.times.target
    assert timing.step > 0
    assert timing.stats.steps > 3


def test_doctor(capsys):
    command_line.main(["doctor", "--max-new-tokens", "32", "--policy", "hybrid", "--budget", "2", "--json"])
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    programs = {"prefix_ms", "suffix_ms", "ahead_ms", "rollout_ms"}
    assert programs | {"step_ms", "predicted_ms", "overlap", "reuse_rate"} <= set(printed)
    assert printed["prefix_ms"] > 0


def test_doctor_describes_the_overlap():
    assert len({verdict(share) for share in (1.0, 0.5, 0.0)}) == 3


@pytest.fixture(scope="module")
def result():
    return compare((0.0, 0.5, 0.95, 1.0), 12, margin=0.0)


def test_speculative_decoding_on_one_mesh_never_wins(result):
    """Two meshes without other costs are never slower, and faster if any outcome is predicted."""
    ahead = np.max([gain for name, gain in result.gains.items() if name != "speculative"], axis=0)
    assert (ahead >= result.gains["speculative"]).all()
    assert (ahead[1:] > result.gains["speculative"][1:]).all()
    assert not (result.winners == result.names.index("speculative")).any()


def test_hybrid_is_best_where_its_rollouts_are_hidden(result):
    """T_ahead in the prefix and T_rollout in the suffix cost nothing."""
    constants = Assumptions()
    longest = result.costs * max(constants.windows) / 7 * (1 + constants.branch_cost * (constants.branches - 1))
    hidden = longest <= min(constants.exit_share, 1 - constants.exit_share)
    assert 3 < hidden.sum() < len(hidden)
    both = result.gains["hybrid"][..., hidden]
    for part in ("mirror", "saguaro"):
        assert (both >= result.gains[part][..., hidden] - 1e-9).all()


def test_speed_ups_are_monotonic(result):
    """Cheaper drafts, higher acceptance and a higher Ω′ never hurt; the limit is γ+1 tokens per pass."""
    for gains in result.gains.values():
        assert (np.diff(gains, axis=0) >= -1e-9).all()
        assert (np.diff(gains, axis=1) >= -1e-9).all()
        assert (np.diff(gains, axis=2) <= 1e-9).all()
        assert gains.max() <= 9
    assert all(sum(result.shares(panel).values()) == pytest.approx(1.0) for panel in range(4))


def test_a_point_by_hand():
    """One window of 7 at a twentieth of the target's pass: everything is hidden except fallbacks."""
    gains = compare((0.8,), 2, Assumptions(branch_cost=0.0, windows=(7,))).gains
    cost, tokens = 0.05, 1 + accepted_length(0.95, 7)
    assert gains["mirror"][0, -1, 0] == pytest.approx(tokens / (1 + 0.2 * cost))
    assert gains["speculative"][0, -1, 0] == pytest.approx(tokens / (1 + cost))
    assert gains["pearl"][0, -1, 0] == pytest.approx(tokens / (1 + (1 - 0.95**8) * cost))
    assert gains["saguaro"][0, -1, 0] == pytest.approx(tokens / (1 + (1 - 0.95**8) * (1 - 0.6 * 0.8) * cost))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"foreseen": (1.1,)}, r"expected points >= 2, shares in \[0, 1\] and a margin"),
        ({"points": 1}, "got 1, "),
        ({"margin": 1.0}, "and 1.0"),
    ],
)
def test_invalid_comparisons(arguments, message):
    with pytest.raises(ValueError, match=message):
        compare(**arguments)


@pytest.mark.parametrize("wrong", [{"exit_share": 1.2}, {"draft_share": -0.1}, {"branches": 0}, {"windows": ()}])
def test_invalid_assumptions(wrong):
    with pytest.raises(ValueError, match="expected"):
        Assumptions(**wrong)


def test_whatif(tmp_path, capsys):
    picture = tmp_path / "new" / "whatif.png"
    options = ["--foreseen", "0.5", "0.9", "--points", "10", "--plot", str(picture)]
    command_line.main(["whatif", *options, "--json"])
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [panel["foreseen"] for panel in printed["panels"]] == [0.5, 0.9]
    assert all(sum(panel["wins"].values()) == pytest.approx(1.0) for panel in printed["panels"])
    assert picture.stat().st_size > 10_000
    command_line.main(["whatif", *options])
    assert "picture in" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("prompts", "repeats", "message"), [([], 1, "at least one prompt"), ([[1]], 0, "1 <= repeats")]
)
def test_nothing_to_measure_is_refused(prompts, repeats, message):
    with pytest.raises(ValueError, match=message):
        cost.measure(models.mirror(), models.meshes(), prompts, 4, repeats=repeats)
