"""Whatever is drafted where no branch came true: the tokens of plain decoding, and windows as promised."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxspec
from jaxspec.methods import candidates, fallbacks
from jaxspec.methods.fallbacks import NOTHING, Text, continuation
from tests.support.jaxspec import models, pairs
from tests.support.jaxspec.fallback_rows import FALLBACKS, POLICIES, decode, tokens_of

#: Rows in which any two of fallback, policy and mode meet; all of them are rows of ``make matrix``.
ROWS = [(name, policy, "greedy") for name in FALLBACKS for policy in POLICIES]
ROWS += [(*row, "sampled") for row in zip(FALLBACKS, POLICIES, strict=True)]
ROWS += [
    (name, policy, mode)
    for name, policy in zip(("short", "n-gram", "full", "one"), POLICIES, strict=True)
    for mode in ("ratio", "ratio sampled")
]


@pytest.mark.parametrize(
    ("name", "policy", "mode"),
    [pytest.param(*row, marks=[pytest.mark.slow] * (row[2] != "greedy"), id="-".join(row)) for row in ROWS],
)
def test_tokens_are_those_of_plain_decoding(name, policy, mode):
    """By the ratio test at temperature 0; above, windows are cut and looked up, and text comes out all the same."""
    found, expected = tokens_of(name, policy, mode)
    assert found == expected


@pytest.mark.parametrize("length", [1, 2, 3, 9])
def test_a_short_window_holds_no_more(length):
    """With a draft that is always right, the windows' lengths are what is accepted."""
    stats = decode(fallbacks.Short(length), draft=models.target()).stats
    prompts = len(models.PROMPTS)
    first, later = 4 * prompts, min(length, 4) * (stats.steps - prompts)
    assert stats.accepted <= first + later
    assert stats.accepted >= first + later - 4 * prompts


def test_every_sequence_falls_back_for_itself():
    """In a batch as alone: the same steps and the same acceptance."""
    together = decode(fallbacks.Short(1), "mirror", pairs.PROMPTS).stats
    alone = [decode(fallbacks.Short(1), "mirror", [prompt]).stats for prompt in pairs.PROMPTS]
    assert together.steps == sum(stats.steps for stats in alone)
    assert together.accepted == sum(stats.accepted for stats in alone)
    assert 0 < together.reused < together.needed


def test_n_grams_foresee_text_that_repeats_itself():
    """The tiny target ends in a loop, which a stranger of a draft does not know."""
    long = {"prompts": [[6]], "draft": models.stranger()}
    run = lambda fallback: jaxspec.generate(  # noqa: E731
        models.mirror(window=4, num_candidates=4, policy=candidates.none(), fallback=fallback, draft=long["draft"]),
        long["prompts"],
        60,
    )
    looked_up, drafted = run(fallbacks.NGram(3)), run(fallbacks.Full())
    assert looked_up.tokens == drafted.tokens
    assert looked_up.stats.accepted_length > drafted.stats.accepted_length


def by_hand(tokens, position, size, count):
    """The last earlier place of the last ``size`` tokens, by search."""
    text = tokens[: position + 1]
    last = text[position + 1 - size :]
    for end in range(position - 1, size - 2, -1):
        if len(last) == size and text[end + 1 - size : end + 1] == last:
            follows = text[end + 1 : end + 1 + count]
            return follows + [NOTHING] * (count - len(follows))
    return [NOTHING] * count


@pytest.mark.parametrize("size", [1, 2, 3])
def test_lookup_finds_what_followed(size):
    random = np.random.default_rng(size)
    tokens = random.integers(0, 3, (64, 12))
    positions = random.integers(0, 12, 64)
    found = jax.jit(continuation, static_argnums=(1, 2))(Text(jnp.asarray(tokens), jnp.asarray(positions)), size, 4)
    expected = [by_hand(row.tolist(), place, size, 4) for row, place in zip(tokens, positions, strict=True)]
    assert found.tolist() == expected
    assert any(NOTHING in row and row[0] != NOTHING for row in expected)


@pytest.mark.parametrize("build", [fallbacks.Short, fallbacks.NGram])
def test_sizes_below_one(build):
    with pytest.raises(ValueError, match="expected 1 <= .*, a whole number, got 0"):
        build(0)
