"""The law by hand, and what is measured for it."""

import json
from dataclasses import fields

import numpy as np
import pytest

from jaxspec import __main__ as command_line
from jaxspec.analysis import cost as latency
from jaxspec.analysis.cost import Measured, Parts, accepted_length, speed_up, step_time
from jaxspec.analysis.whatif import Assumptions, surface
from jaxspec.cli._doctor import verdict
from jaxspec.generation import Stats
from jaxspec.methods import candidates
from tests.support.jaxspec import models

NONE = Parts(suffix=5.0, fallback=3.0, rendezvous=0.1)
PEARL = Parts(suffix=5.0, ahead=2.0, select=0.2, fallback=3.0, rendezvous=0.1)
MIRROR = Parts(prefix=2.0, suffix=3.0, rollout=2.5, select=0.2, fallback=3.0, rendezvous=0.1)
HYBRID = Parts(prefix=2.0, suffix=3.0, ahead=2.4, rollout=2.5, select=0.2, fallback=3.0, rendezvous=0.1)


@pytest.mark.parametrize(
    ("parts", "rate", "batch", "expected"),
    [
        (NONE, 1.0, 1, 5.0 + 0.1 + 3.0),
        (PEARL, 0.6, 1, 5.0 + 0.1 + 0.2 + 0.6 * 3.0),
        (MIRROR, 0.0, 1, 5.0 + 0.1 + 0.2),
        (MIRROR, 0.3, 1, 5.0 + 0.1 + 0.2 + 0.3 * 3.0),
        (MIRROR, 0.3, 4, 5.0 + 0.1 + 0.2 + (1 - 0.7**4) * 3.0),
        (HYBRID, 0.0, 1, 5.0 + 0.1 + 0.2),
        (Parts(prefix=2.0, suffix=3.0, rollout=4.0, rendezvous=0.1), 0.0, 1, 2.0 + 0.1 + 4.0 + 0.1),
        (Parts(prefix=2.0, suffix=3.0, ahead=2.8, rollout=4.0, rendezvous=0.1), 0.0, 1, 2.8 + 4.0 + 0.1),
    ],
)
def test_law(parts, rate, batch, expected):
    assert step_time(parts, rate, batch) == pytest.approx(expected)
    assert step_time(parts, rate, batch) >= parts.target


def test_no_step_undercuts_the_target_s_pass():
    """Whatever the programs take, and however much of them is hidden."""
    random = np.random.default_rng(0)
    for _ in range(500):
        parts = Parts(*(random.exponential(size=len(fields(Parts))) * random.integers(0, 2, len(fields(Parts)))))
        rate, batch, overlap = random.random(), int(random.integers(1, 9)), random.random()
        assert step_time(parts, rate, batch, overlap) >= step_time(parts, rate, batch) >= parts.target
        assert step_time(parts, 0.0) <= step_time(parts, rate) <= step_time(parts, rate, batch) <= step_time(parts, 1.0)


@pytest.mark.parametrize(("parts", "hidden"), [(NONE, 0.0), (PEARL, 2.0), (MIRROR, 2.5), (HYBRID, 4.9)])
def test_what_is_hidden(parts, hidden):
    """A step whose programs run in turn takes as much more; an overlap of 0 is told of just that one."""
    assert parts.hidden == pytest.approx(hidden)
    in_turn = parts.prefix + parts.suffix + parts.ahead + parts.rollout + parts.select + parts.rendezvous
    assert step_time(parts, 0.0, overlap=0.0) == pytest.approx(in_turn)
    if hidden:
        ready = Stats(needed=1, reused=1)
        assert Measured(parts, in_turn, ready).overlap == pytest.approx(0.0)
        assert Measured(parts, step_time(parts, 0.0), ready).overlap == pytest.approx(1.0)


def test_rollouts_cost_nothing_while_they_hide():
    """The zero-slope region ends where the suffix does."""
    times = [step_time(MIRROR.__class__(**{**vars(MIRROR), "rollout": cost}), 0.2) for cost in (0.5, 1.5, 2.9, 3.9)]
    assert times[0] == times[1] == times[2]
    assert times[3] == pytest.approx(times[0] + 1.0)


def test_speed_up_counts_the_extra_token():
    assert speed_up(MIRROR, 0.0, 4.0, plain_step=5.3) == pytest.approx(5.0)


def test_accepted_length_is_a_geometric_sum():
    assert accepted_length(1.0, 7) == 7
    assert accepted_length(0.0, 7) == 0
    assert accepted_length(0.5, 3) == pytest.approx(0.5 + 0.25 + 0.125)


@pytest.mark.parametrize("wrong", [(-0.1, 1), (1.1, 1), (0.5, 0)])
def test_rates_that_cannot_be(wrong):
    with pytest.raises(ValueError, match=r"expected 0 <= fallback_rate <= 1 and batch >= 1, got"):
        step_time(MIRROR, *wrong)


POLICIES = {
    "none": (candidates.none(), {"suffix", "fallback", "rendezvous"}),
    "saguaro": (candidates.saguaro(3), {"suffix", "ahead", "fallback", "rendezvous"}),
    "mirror": (candidates.mirror(2), {"prefix", "suffix", "rollout", "fallback", "rendezvous"}),
    "hybrid": (candidates.hybrid(2, 2), {"prefix", "suffix", "ahead", "rollout", "fallback", "rendezvous"}),
}


@pytest.mark.parametrize("name", POLICIES)
def test_parts_of_every_policy_are_measured(name):
    policy, expected = POLICIES[name]
    found = latency.measure(models.mirror(policy=policy), models.meshes(), models.PROMPTS[:1], 24, repeats=1)
    positive = {part for part, seconds in vars(found.parts).items() if seconds > 0}
    assert expected <= positive | {"fallback"} <= expected | {"select", "fallback"}
    assert found.law >= found.parts.target
    assert found.step > 0
    assert found.stats.steps > 3


def test_doctor(capsys):
    command_line.main(["doctor", "--max-new-tokens", "32", "--policy", "hybrid", "--budget", "2", "--json"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"prefix_ms", "suffix_ms", "ahead_ms", "rollout_ms", "step_ms", "law_ms", "overlap", "reuse_rate"} <= set(
        found
    )
    assert found["prefix_ms"] > 0


def test_doctors_words():
    assert len({verdict(share) for share in (1.0, 0.5, 0.0)}) == 3


@pytest.fixture(scope="module")
def found():
    return surface((0.0, 0.5, 0.95, 1.0), 12, margin=0.0)


def test_vanilla_wins_at_no_share_foreseen(found):
    """Two meshes with nothing else to pay for are never slower, and where anything is foreseen they are faster."""
    ahead = np.max([gain for name, gain in found.gains.items() if name != "speculative"], axis=0)
    assert (ahead >= found.gains["speculative"]).all()
    assert (ahead[1:] > found.gains["speculative"][1:]).all()
    assert not (found.winners == found.names.index("speculative")).any()


def test_hybrid_is_no_worse_where_its_rollouts_hide(found):
    """T_ahead in the prefix, T_rollout in the suffix: then the most is foreseen for nothing."""
    given = Assumptions()
    longest = found.costs * max(given.windows) / 7 * (1 + given.branch_cost * (given.branches - 1))
    hidden = longest <= min(given.exit_share, 1 - given.exit_share)
    assert 3 < hidden.sum() < len(hidden)
    both = found.gains["hybrid"][..., hidden]
    for part in ("mirror", "saguaro"):
        assert (both >= found.gains[part][..., hidden] - 1e-9).all()


def test_what_the_surface_says_everywhere(found):
    """Cheaper drafts, likelier tokens and more foresight never hurt; nobody beats γ+1 tokens a pass."""
    for gains in found.gains.values():
        assert (np.diff(gains, axis=0) >= -1e-9).all()
        assert (np.diff(gains, axis=1) >= -1e-9).all()
        assert (np.diff(gains, axis=2) <= 1e-9).all()
        assert gains.max() <= 9
    assert all(sum(found.shares(panel).values()) == pytest.approx(1.0) for panel in range(4))


def test_a_point_of_the_surface_by_hand():
    """One window of 7 at a twentieth of the target's pass: all of it hides, but for what falls back."""
    gains = surface((0.8,), 2, Assumptions(branch_cost=0.0, windows=(7,))).gains
    cost, tokens = 0.05, 1 + accepted_length(0.95, 7)
    assert gains["mirror"][0, -1, 0] == pytest.approx(tokens / (1 + 0.2 * cost))
    assert gains["speculative"][0, -1, 0] == pytest.approx(tokens / (1 + cost))
    assert gains["pearl"][0, -1, 0] == pytest.approx(tokens / (1 + (1 - 0.95**8) * cost))
    assert gains["saguaro"][0, -1, 0] == pytest.approx(tokens / (1 + (1 - 0.95**8) * (1 - 0.6 * 0.8) * cost))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"foreseen": (1.1,)}, r"expected points >= 2, shares in \[0, 1\] and a margin"),
        ({"points": 1}, "got 1, "),
        ({"margin": 1.0}, "and 1.0"),
    ],
)
def test_surfaces_that_cannot_be(arguments, words):
    with pytest.raises(ValueError, match=words):
        surface(**arguments)


@pytest.mark.parametrize("wrong", [{"exit_share": 1.2}, {"draft_share": -0.1}, {"branches": 0}, {"windows": ()}])
def test_assumptions_that_cannot_be(wrong):
    with pytest.raises(ValueError, match="expected"):
        Assumptions(**wrong)


def test_whatif(tmp_path, capsys):
    picture = tmp_path / "new" / "whatif.png"
    options = ["--foreseen", "0.5", "0.9", "--points", "10", "--plot", str(picture)]
    command_line.main(["whatif", *options, "--json"])
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [panel["foreseen"] for panel in told["panels"]] == [0.5, 0.9]
    assert all(sum(panel["wins"].values()) == pytest.approx(1.0) for panel in told["panels"])
    assert picture.stat().st_size > 10_000
    command_line.main(["whatif", *options])
    assert "picture in" in capsys.readouterr().out
