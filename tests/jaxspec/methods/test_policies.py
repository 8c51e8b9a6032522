"""What is rolled out ahead changes the time and nothing else: every policy gives the tokens of plain decoding."""

from dataclasses import replace
from functools import cache

import jax
import pytest

import jaxspec
from jaxspec.methods import candidates
from jaxspec.verify import acceptance
from tests.support.jaxspec import models, pairs, policies
from tests.support.jaxspec.fallback_rows import SAMPLED

POLICIES = {
    "none": candidates.none(),
    "pearl": candidates.pearl(),
    "saguaro": candidates.saguaro(6, num_candidates=4),
    "ahead": candidates.ahead(6, num_candidates=4),
    "mirror": candidates.mirror(4, num_candidates=4),
    "mirror, exit alone": candidates.mirror(4, exit_weight=None),
    "hybrid": candidates.hybrid(3, 3, num_candidates=4),
}
AHEAD = [name for name, policy in POLICIES.items() if policy.ahead]


def method(policy, **options):
    return models.mirror(policy=policy, **{"window": 3, "num_candidates": 4} | options)


def decode(policy, prompts=models.PROMPTS, sampling=None, **options):
    return jaxspec.generate(method(policy, **options), prompts, models.NEW_TOKENS, sampling=sampling)


@pytest.mark.parametrize("name", POLICIES)
def test_tokens_are_those_of_plain_decoding(name):
    result = decode(POLICIES[name])
    assert result.tokens == models.expected()
    assert (result.stats.reused > 0) == (name != "none")


@pytest.mark.parametrize("name", POLICIES)
def test_sampled_tokens_are_those_of_plain_decoding(name):
    target = jaxspec.autoregressive(models.target())
    plain = jaxspec.generate(target, pairs.PROMPTS, models.NEW_TOKENS, sampling=SAMPLED)
    assert decode(POLICIES[name], pairs.PROMPTS, SAMPLED).tokens == plain.tokens


@pytest.mark.slow
@pytest.mark.parametrize("row", policies.covering(), ids=str)
def test_identity_over_the_covering_array(row):
    """Policies × drafts × windows × κ × exits × batches: any two values meet, at both temperatures."""
    for temperature in policies.TEMPERATURES:
        assert policies.decode(row, temperature) == policies.expected(row[-1], temperature)


@pytest.mark.parametrize("name", POLICIES)
def test_windows_are_those_of_speculative_decoding(name):
    """Whoever rolled them out, and whenever."""
    result, vanilla = decode(POLICIES[name]), jaxspec.generate(models.speculative(3), models.PROMPTS, models.NEW_TOKENS)
    assert (result.stats.steps, result.stats.accepted) == (vanilla.stats.steps, vanilla.stats.accepted)


@pytest.mark.parametrize("name", AHEAD)
@pytest.mark.parametrize("sampling", [None, SAMPLED], ids=["greedy", "sampled"])
def test_a_draft_equal_to_the_target_foresees_everything(name, sampling):
    """It accepts every window, and its own next token is the target's: what it rolled out itself always comes true."""
    stats = decode(POLICIES[name], sampling=sampling, draft=models.target()).stats
    assert stats.verified == 3 * stats.steps
    assert stats.reuse_rate == 1.0


def test_with_all_of_the_drafts_candidates_every_window_is_ready():
    """But for the bonus token that it holds for the least likely."""
    policy = candidates.saguaro(4 * (models.VOCAB - 1), num_candidates=models.VOCAB - 1)
    assert decode(policy).stats.reuse_rate > 0.95


def test_hybrid_foresees_no_less_than_its_parts():
    few, exits, both = (
        decode(policy).stats.reuse_rate
        for policy in (
            candidates.ahead(3, num_candidates=4),
            candidates.mirror(3),
            POLICIES["hybrid"],
        )
    )
    assert both >= max(few, exits) > 0


@pytest.mark.parametrize("name", POLICIES)
def test_the_ratio_test_goes_through_every_policy(name):
    """At temperature 0 it is greedy decoding; above, a draft equal to the target is never rejected."""
    rule = acceptance.ratio(4)
    assert decode(POLICIES[name], acceptance=rule).tokens == models.expected()
    warm = jaxspec.Sampling(1.0, seed=3)
    stats = decode(POLICIES[name], sampling=warm, acceptance=acceptance.ratio(64), draft=models.target()).stats
    assert stats.verified == 3 * stats.steps


@pytest.mark.parametrize("name", ["saguaro", "mirror", "hybrid"])
def test_larger_meshes_change_nothing(name):
    assert decode(POLICIES[name], placement=models.meshes(4, 2)).tokens == models.expected()


COUNTED = []


@cache
def counting():
    """A draft equal to the target that notes how many tokens every pass runs."""
    draft = models.target()

    def embed(params, tokens):
        jax.debug.callback(lambda: COUNTED.append(tokens.size))
        return draft.network.embed(params, tokens)

    return draft._replace(network=replace(draft.network, embed=embed))


@pytest.mark.slow
@pytest.mark.parametrize("name", POLICIES)
def test_draft_tokens_of_a_step(name):
    """R·γ + 1 a sequence, whatever its prefix; γ + 1 where all is drafted anew."""
    built = method(POLICIES[name], draft=counting())
    state = built.init(models.request([[1, 5, 3], [3] * 20]), 64)
    jax.effects_barrier()
    COUNTED.clear()
    jax.block_until_ready(built.step(state))
    jax.effects_barrier()
    branches = {"none": 1, "pearl": 1, "saguaro": 6, "ahead": 6, "mirror": 4, "mirror, exit alone": 4, "hybrid": 6}[
        name
    ]
    assert sum(COUNTED) == 2 * (branches * 3 + 1)


def test_equal_policies_share_their_programs():
    jax.clear_caches()
    decode(candidates.saguaro(3))
    assert decode(candidates.saguaro(3)).stats.compiled == 0
