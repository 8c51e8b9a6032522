"""Lossless: speculative and mirror decoding give the tokens of plain decoding, whatever the settings."""

from itertools import combinations, product

import jax
import numpy as np
import pytest

import jaxspec
from jaxspec import candidates
from jaxspec.exits import init_affine_lens
from tests.jaxspec import models

WINDOWS, KAPPAS, EXITS = range(1, 9), range(1, 9), range(1, models.TARGET.num_layers + 1)
#: Windows × κ in full, and an exit layer so chosen that every exit meets every window and every κ.
COVERING = [(window, kappa, 1 + (window + kappa) % len(EXITS)) for window, kappa in product(WINDOWS, KAPPAS)]
DIAGONAL = [(1, 1, 4), (2, 3, 1), (3, 2, 2), (4, 8, 3), (5, 4, 1), (8, 1, 2)]

BUILDERS = [models.mirror, pytest.param(models.speculative, marks=pytest.mark.slow)]


def decode(method, prompts=models.PROMPTS, new_tokens=models.NEW_TOKENS):
    return jaxspec.generate(method, prompts, new_tokens)


def test_autoregressive_is_greedy_decoding_without_a_cache():
    assert decode(jaxspec.autoregressive(models.target())).tokens == models.expected()


def test_the_tiny_pair_says_something():
    """Otherwise identity would show little: lively text, acceptance neither nothing nor everything."""
    assert all(len(set(row)) > 3 for row in models.expected())
    assert 0.2 < decode(models.speculative()).stats.accepted_length < 2.5


@pytest.mark.parametrize("window", [*WINDOWS[:3], *(pytest.param(w, marks=pytest.mark.slow) for w in WINDOWS[3:])])
def test_speculative(window):
    assert decode(models.speculative(window)).tokens == models.expected()


def test_the_covering_array_holds_every_pair_of_values():
    axes = (WINDOWS, KAPPAS, EXITS)
    for first, second in combinations(range(3), 2):
        assert {(row[first], row[second]) for row in COVERING} == set(product(axes[first], axes[second]))


@pytest.mark.parametrize(("window", "kappa", "exit_layer"), DIAGONAL)
def test_mirror(window, kappa, exit_layer):
    assert decode(models.mirror(window, kappa, exit_layer)).tokens == models.expected()


@pytest.mark.slow
@pytest.mark.parametrize(("window", "kappa", "exit_layer"), COVERING)
def test_mirror_over_the_covering_array(window, kappa, exit_layer):
    assert decode(models.mirror(window, kappa, exit_layer)).tokens == models.expected()


@pytest.mark.slow
@pytest.mark.usefixtures("as_users_compile")
@pytest.mark.parametrize(("window", "kappa", "exit_layer"), DIAGONAL)
def test_mirror_compiled_as_users_do(window, kappa, exit_layer):
    expected = decode(jaxspec.autoregressive(models.target())).tokens
    assert decode(models.speculative(window)).tokens == expected
    assert decode(models.mirror(window, kappa, exit_layer)).tokens == expected


@pytest.mark.parametrize("budget", [3, *(pytest.param(budget, marks=pytest.mark.slow) for budget in (1, 100))])
def test_mirror_under_a_branch_budget(budget):
    assert decode(models.mirror(policy=candidates.mirror(budget))).tokens == models.expected()


def test_a_larger_budget_is_reused_more_often():
    few, many = (decode(models.mirror(policy=candidates.mirror(budget))).stats.reuse_rate for budget in (1, 3))
    assert few < many


@pytest.mark.parametrize("window", [1, 3])
def test_an_oracle_exit_is_always_reused(window):
    """At ℓₑ = N and κ = 1 the next window has been rolled out after every step that needs one."""
    result = decode(models.mirror(window, 1, models.TARGET.num_layers))
    assert result.tokens == models.expected()
    assert result.stats.needed > 4
    assert result.stats.reuse_rate == 1.0


def test_a_poor_exit_is_not_always_reused():
    assert decode(models.mirror(3, 1, 1)).stats.reuse_rate < 1.0


def test_any_exit_head_gives_the_same_tokens():
    lens = init_affine_lens(models.TARGET.width, 2, jax.random.key(0))
    lens = lens._replace(up=lens.up + 3.0, bias=lens.bias - 1.0)
    plain, turned = decode(models.mirror()), decode(models.mirror(exit=lens))
    assert plain.tokens == turned.tokens == models.expected()
    assert turned.stats.reused != plain.stats.reused


@pytest.mark.parametrize("build", [models.speculative, models.mirror])
def test_a_draft_equal_to_the_target_is_accepted_in_full(build):
    result = decode(build(window=3, draft=models.target()))
    assert result.tokens == models.expected()
    assert result.stats.accepted == 3 * result.stats.steps


@pytest.mark.parametrize("build", BUILDERS)
def test_a_stranger_as_draft(build):
    result = decode(build(window=3, draft=models.stranger()))
    assert result.tokens == models.expected()
    assert result.stats.accepted_length < decode(build(window=3)).stats.accepted_length


@pytest.mark.parametrize("build", BUILDERS)
def test_more_sequences_than_slices(build):
    """Beyond eight sequences the cache is written in another way."""
    random = np.random.default_rng(0)
    extra = [random.integers(models.VOCAB, size=size).tolist() for size in (1, 2, 4, 5, 6, 9, 13, 32)]
    prompts = [*models.PROMPTS, *extra]
    result = decode(build(window=3), prompts, 6)
    assert result.tokens == [models.greedy_text(models.target(), prompt, 6) for prompt in prompts]
