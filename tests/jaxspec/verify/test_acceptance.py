"""Rules of acceptance keep the target's law: by enumeration, by counting draws, and token for token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare

from jaxspec.verify import acceptance
from jaxspec.verify.acceptance import acceptance_probability, dense, residual
from jaxspec.verify.verdict import longest_match
from tests.jaxspec.verify.test_sampling import asked, positions_of, random_logits, softmax, sorted_filter

VOCAB, DRAWS = 7, 100_000
OPTIONS = [{}, {"temperature": 0.6, "top_p": 0.85}, {"top_k": 4, "min_p": 0.05, "temperature": 1.3}]


def laws(kind, random):
    """Target's and draft's law of one place, float64, of the given kind."""
    target, draft = random.dirichlet(np.full(VOCAB, 0.7), 2)
    if kind == "zeros in both":
        target, draft = (law * (random.random(VOCAB) < 0.6) for law in (target, draft))
        target[0] += 0.1
        draft[1] += 0.1
    if kind == "equal":
        draft = target.copy()
    if kind == "apart":
        target[: VOCAB // 2], draft[VOCAB // 2 :] = 0, 0
    if kind == "truncated":
        draft[np.argsort(draft)[:-3]] = 0
    if kind == "certain":
        draft = np.eye(VOCAB)[random.integers(VOCAB)]
    return target / target.sum(), draft / draft.sum()


KINDS = ["any", "zeros in both", "equal", "apart", "truncated", "certain"]


def law_of_one_step(target, draft):
    """Σ_ŷ q(ŷ)·[a(ŷ)·δ_ŷ + (1 − a(ŷ))·(p − q)₊/‖(p − q)₊‖₁]."""
    accept = np.asarray(acceptance_probability(jnp.asarray(target), jnp.asarray(draft)))
    other = np.asarray(residual(jnp.asarray(target), jnp.asarray(draft)))
    assert accept.dtype == other.dtype == np.float64
    return draft * accept + np.sum(draft * (1 - accept)) * other / other.sum()


@pytest.mark.parametrize("kind", KINDS)
def test_one_step_of_ratio_has_the_law_of_the_target(kind):
    random = np.random.default_rng(0)
    with jax.enable_x64(True):
        for _ in range(50):
            target, draft = laws(kind, random)
            assert np.abs(law_of_one_step(target, draft) - target).sum() / 2 < 1e-9


@pytest.mark.parametrize("kind", KINDS)
def test_ratio_accepts_as_often_as_the_laws_overlap(kind):
    """Σ min(p, q) = 1 − TV, the most that any rule can do."""
    random = np.random.default_rng(1)
    with jax.enable_x64(True):
        target, draft = laws(kind, random)
        accept = np.asarray(acceptance_probability(jnp.asarray(target), jnp.asarray(draft)))
    assert np.sum(draft * accept) == pytest.approx(np.minimum(target, draft).sum(), abs=1e-12)


@pytest.mark.parametrize("top", [1, 3, 64])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_draft_s_law_is_its_most_likely_tokens_renormalised(top, options):
    logits = random_logits(VOCAB, 5, 2)
    tokens, law = jax.jit(acceptance.ratio(top).propose)(
        jnp.asarray(logits), asked(5, **options), positions_of(5, 3, 4)
    )
    found = np.asarray(dense(law, VOCAB))
    for b, t in np.ndindex(5, 2):
        expected = softmax(sorted_filter(logits[:, b, t], **options))
        expected[np.argsort(expected)[: -min(top, VOCAB)]] = 0
        np.testing.assert_allclose(found[:, b, t], expected / expected.sum(), atol=1e-6)
        assert found[tokens[b, t], b, t] > 0


def bigrams(seed, scale=1.0):
    """A bigram model: logits [V, V] of the next token (axis 0) after every token."""
    return jnp.asarray(random_logits(VOCAB, VOCAB, seed=seed, scale=scale))


def after(table, tokens):
    """Logits [V, B, T] after tokens [B, T]."""
    return table[:, tokens]


def window_of(rule, draft, options, last, position, size):
    """A window [B, γ] drafted token by token, and its law."""
    tokens, laws = [last], []
    for step in range(1, size + 1):
        said, law = rule.propose(after(draft, tokens[-1]), options, position + step)
        tokens, laws = [*tokens, said], [*laws, law]
    law = None if laws[0] is None else jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), *laws)
    return jnp.concatenate(tokens[1:], axis=1), law


def one_step(rule, target, draft, options, last, position, size):
    """Choices [B, γ+1] and their verdict, from the last committed token [B] on."""
    window, law = window_of(rule, draft, options, last[:, None], position[:, None], size)
    logits = after(target, jnp.concatenate([last[:, None], window], axis=1))
    places = position[:, None] + 1 + jnp.arange(size + 1)[None]
    choices = rule.choose(logits, window, law, options, places)
    return choices, longest_match(window, choices, position)


def first_two(rule, target, draft, options, size):
    """The first two tokens of every sequence after token 0, by two steps of γ drafted tokens; and A of the first."""
    last = position = jnp.zeros(options.seed.shape, jnp.int32)
    choices, verdict = one_step(rule, target, draft, options, last, position, size)
    later, _ = one_step(rule, target, draft, options, verdict.next_token, verdict.position, size)
    second = jnp.where(verdict.num_accepted > 0, choices[:, 1], later[:, 0])
    return choices[:, 0], second, verdict.num_accepted


run_two = jax.jit(first_two, static_argnums=(0, 4))


def fits(counts, expected):
    """Chi-square of counts against expected ones; those below five together."""
    counts, expected = np.ravel(counts), np.ravel(expected)
    assert not counts[expected == 0].any(), "a token of no probability"
    small = expected < 5
    counts, expected = (np.append(part[~small], part[small].sum()) for part in (counts, expected))
    return len(counts[expected > 0]) == 1 or chisquare(counts[expected > 0], expected[expected > 0]).pvalue > 1e-3


@pytest.mark.parametrize(("size", "top"), [(1, 64), *(pytest.param(2, top, marks=pytest.mark.slow) for top in (64, 2))])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_law_of_two_tokens_under_ratio(options, size, top):
    target, draft = bigrams(1), bigrams(2)
    settings = asked(DRAWS, seed=np.arange(DRAWS), **options)
    first, second, accepted = run_two(acceptance.ratio(top), target, draft, settings, size)
    law = np.stack([softmax(sorted_filter(np.asarray(target)[:, token], **options)) for token in range(VOCAB)])
    joint = law[0][:, None] * law
    assert 0.1 < np.mean(accepted > 0) < 0.9
    assert fits(np.bincount(first, minlength=VOCAB), DRAWS * law[0])
    assert fits(np.bincount(first * VOCAB + second, minlength=VOCAB**2), DRAWS * joint)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("shared_noise", [True, False])
def test_match_chooses_what_plain_decoding_draws(options, shared_noise):
    target, draft = bigrams(1), bigrams(2)
    settings, rule = asked(1000, seed=np.arange(1000), **options), acceptance.match(shared_noise)
    first, second, accepted = run_two(rule, target, draft, settings, 2)
    alone, then, none = run_two(rule, target, bigrams(3), settings, 1)
    np.testing.assert_array_equal(first, alone)
    np.testing.assert_array_equal(second, then)
    assert (accepted != none).any(), "another draft is accepted elsewhere"
    plain = jax.jit(lambda *args: rule.choose(*args))
    places, last = jnp.ones((1000, 1), jnp.int32), jnp.zeros((1000, 1), jnp.int32)
    for offset, expected in enumerate((first, second)):
        nothing = jnp.zeros((1000, 0), jnp.int32)
        last = plain(after(target, last), nothing, None, settings, places + offset)
        np.testing.assert_array_equal(last[:, 0], expected)


@pytest.mark.parametrize("scale", [0.2, 1.0, 3.0])
def test_shared_noise_couples_the_draft_to_the_target(scale):
    """P(accept) ≥ (1 − TV)/(1 + TV), whatever the laws; without it a draft only hits what it deems most likely."""
    target, draft = bigrams(4), bigrams(4) + bigrams(5, scale)
    settings = asked(DRAWS, seed=np.arange(DRAWS))
    accepted = np.mean(run_two(acceptance.match(), target, draft, settings, 1)[2])
    p, q = (softmax(np.asarray(table)[:, 0]) for table in (target, draft))
    distance = np.abs(p - q).sum() / 2
    noise = 4 * (accepted * (1 - accepted) / DRAWS) ** 0.5
    assert (1 - distance) / (1 + distance) - noise <= accepted <= 1 - distance + noise
    unshared = np.mean(run_two(acceptance.match(shared_noise=False), target, draft, settings, 1)[2])
    assert unshared == pytest.approx(p[np.argmax(q)], abs=0.01)


def test_ratio_at_temperature_zero_is_match():
    """Greedy sequences among warm ones."""
    temperature = np.where(np.arange(64) % 3 == 1, 1.0, 0.0)
    settings = asked(64, seed=np.arange(64), temperature=temperature, top_k=3)
    found, expected = (
        run_two(rule, bigrams(1), bigrams(1) + bigrams(2), settings, 2)
        for rule in (acceptance.ratio(), acceptance.match())
    )
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one[temperature == 0], other[temperature == 0])


def test_a_draft_equal_to_the_target_is_always_accepted():
    for rule in (acceptance.match(), acceptance.ratio()):
        settings = asked(1000, seed=np.arange(1000), top_p=0.9)
        assert np.all(run_two(rule, bigrams(1), bigrams(1), settings, 2)[2] == 2)
