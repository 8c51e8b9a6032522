"""N-grams as a draft: the lookup by hand, and plain decoding's tokens with every method."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxspec
from jaxspec.drafts import prompt_lookup
from jaxspec.drafts.ngram import BEHIND_ONE, CommittedText, continuation, verified_width, verified_widths
from jaxspec.methods import candidates
from jaxspec.verify import acceptance
from jaxspec.verify.sampling import NOTHING
from tests.support.jaxspec import models, pairs
from tests.support.jaxspec.fallback_rows import SAMPLED, sampled

METHODS = {
    "speculative": lambda: models.speculative(4, draft=prompt_lookup(1)),
    "lookup": lambda: jaxspec.lookup(models.target(), 4, sizes=(3, 2, 1)),
    "ratio": lambda: models.speculative(4, draft=prompt_lookup(1), acceptance=acceptance.ratio(4)),
    "mirror": lambda: models.mirror(4, 2, draft=prompt_lookup(1)),
    "hybrid": lambda: models.mirror(4, 4, draft=prompt_lookup(1), policy=candidates.hybrid(3, 3, num_candidates=4)),
}


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
    found = jax.jit(continuation, static_argnums=(1, 2))(
        CommittedText(jnp.asarray(tokens), jnp.asarray(positions)), (size,), 4
    )
    expected = [by_hand(row.tolist(), place, size, 4) for row, place in zip(tokens, positions, strict=True)]
    assert found.tolist() == expected
    assert any(NOTHING in row and row[0] != NOTHING for row in expected)


def test_shorter_n_grams_are_tried_where_longer_ones_are_new():
    random = np.random.default_rng(4)
    tokens, positions = random.integers(0, 4, (64, 14)), random.integers(0, 14, 64)
    found = continuation(CommittedText(jnp.asarray(tokens), jnp.asarray(positions)), (3, 2, 1), 4).tolist()
    tried = [[by_hand(row.tolist(), at, n, 4) for n in (3, 2, 1)] for row, at in zip(tokens, positions, strict=True)]
    tried = [[three, two, one[:BEHIND_ONE] + [NOTHING] * (4 - BEHIND_ONE)] for three, two, one in tried]
    expected = [next((each for each in three if each[0] != NOTHING), three[-1]) for three in tried]
    assert found == expected
    assert {next((n for n, each in enumerate(three) if each[0] != NOTHING), 3) for three in tried} == {0, 1, 2, 3}


def test_a_step_that_finds_nothing_is_one_of_plain_decoding():
    """The target runs one token; where something was found, that and little more."""
    method = jaxspec.lookup(models.target(), 4, sizes=(3, 2, 1))
    request, capacity = models.request(models.PROMPTS[:1], 24), 64
    state, widths = method.init(request, capacity), []
    for _ in range(24):
        found = int((np.asarray(state.window.tokens) >= 0).sum())
        state, info = method.step(state)
        widths.append((found, info.tokens.shape[1]))
    expected = {0: 1, 1: 2, 2: 4, 3: 4, 4: 5}
    assert {found for found, _ in widths} >= {0, 4}
    assert all(expected[found] == width for found, width in widths)


def test_widths_that_are_verified():
    assert [verified_widths(window) for window in (1, 2, 3, 5, 8)] == [
        (0, 1), (0, 1, 2), (0, 1, 3), (0, 1, 3, 5), (0, 1, 3, 7, 8)
    ]  # fmt: skip
    for window in range(1, 10):
        for drafted in range(window + 1):
            tokens = np.where(np.arange(window) < drafted, 5, NOTHING)
            width = verified_width(np.stack([tokens, np.full(window, NOTHING)]))
            assert width == min(each for each in verified_widths(window) if each >= drafted)


@pytest.mark.parametrize("name", METHODS)
def test_tokens_are_those_of_plain_decoding(name):
    found = jaxspec.generate(METHODS[name](), models.PROMPTS, models.NEW_TOKENS)
    assert found.tokens == models.expected()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["speculative", "lookup", "mirror", "hybrid"])
def test_sampled_tokens_are_those_of_plain_decoding(name):
    found = jaxspec.generate(METHODS[name](), pairs.PROMPTS, models.NEW_TOKENS, sampling=SAMPLED)
    assert found.tokens == sampled()


def test_text_that_repeats_itself_is_accepted():
    """The tiny target ends in a loop. A step that accepts nothing emits one token."""
    stats = jaxspec.generate(METHODS["speculative"](), [[6]], 60).stats
    assert stats.accepted_length > 0.5


def test_windows_are_the_same_with_branches():
    """A lookup in a branch finds what a lookup after the verdict finds."""
    one, other = (jaxspec.generate(METHODS[name](), [[6]], 60).stats for name in ("speculative", "mirror"))
    assert (one.steps, one.accepted) == (other.steps, other.accepted)
    assert other.reused > 0


def test_a_size_below_one():
    with pytest.raises(ValueError, match="expected 1 <= .*, a whole number, got 0"):
        prompt_lookup(0)
    with pytest.raises(ValueError, match="expected a size of an n-gram, got none"):
        jaxspec.lookup(models.target(), sizes=())
