"""The law by hand, and what is measured for it."""

import json

import pytest

from jaxspec import __main__ as command_line
from jaxspec import candidates, latency
from jaxspec.commands.doctor import verdict
from jaxspec.latency import Parts, accepted_length, speed_up, step_time
from tests.jaxspec import models

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
