"""From logits to tokens: filters against a sorting oracle and transformers, noise that belongs to a place, and laws."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare

from jaxspec.verify import keys, sampling
from jaxspec.verify.keys import gumbel
from jaxspec.verify.sampling import SamplingArrays, greedy, log_probability
from jaxspec.verify.seen import Seen

VOCAB = 23
draw, filtered, perturbed = jax.jit(sampling.draw), jax.jit(sampling.filtered), jax.jit(sampling.perturbed)
#: Top-k, top-p and min-p alone, in pairs and all together; then at the ends of their ranges.
FILTERS = [
    {"top_k": 5},
    {"top_p": 0.7},
    {"min_p": 0.1},
    {"top_k": 8, "top_p": 0.8},
    {"top_k": 6, "min_p": 0.05},
    {"top_p": 0.9, "min_p": 0.02},
    {"top_k": 9, "top_p": 0.85, "min_p": 0.04},
    {"top_k": 1},
    {"top_k": 1000},
    {"top_p": 1e-6},
    {"min_p": 1.0},
    {},
]
TEMPERATURES = [0.3, 1.0, 1.7]


def asked(batch=1, **options):
    """A ``SamplingArrays`` with some options, each one number or one a sequence; the others draw from everything."""
    defaults = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0, "seed": 0}
    kinds = dict.fromkeys(SamplingArrays._fields, np.float32) | {"seed": np.uint32, "top_k": np.int32}
    values = defaults | options
    return SamplingArrays(
        **{name: jnp.asarray(np.broadcast_to(np.asarray(values[name], kinds[name]), batch)) for name in kinds}
    )


def random_logits(*shape, seed=0, scale=2.0):
    return np.random.default_rng(seed).normal(scale=scale, size=shape).astype(np.float32)


def tied_logits(*shape):
    """Whole numbers, so that many are equal."""
    return np.random.default_rng(1).integers(-2, 3, size=shape).astype(np.float32)


def sorted_filter(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """One row [V]: temperature, then top-k, top-p and min-p, by sorting; ties with the last one kept are kept."""
    scaled = logits / np.float32(temperature)
    ranked = np.sort(scaled)[::-1].astype(np.float64)
    if top_k:
        ranked = ranked[ranked >= ranked[min(top_k, len(ranked)) - 1]]
    mass = np.exp(ranked - ranked[0])
    if top_p < 1:
        ranked = ranked[ranked >= ranked[np.argmax(np.cumsum(mass) / mass.sum() >= top_p)]]
    if min_p:
        ranked = ranked[np.exp(ranked - ranked[0]) >= min_p * (1 - 1e-6)]
    return np.where(scaled >= ranked[-1], scaled, -np.inf)


def softmax(values):
    odds = np.exp(values.astype(np.float64) - values.max())
    return odds / odds.sum()


def positions_of(batch, *places):
    return jnp.broadcast_to(jnp.asarray(places, jnp.int32)[None], (batch, len(places)))


@pytest.mark.parametrize("options", FILTERS, ids=str)
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("make", [random_logits, tied_logits])
def test_filters_against_sorting(make, temperature, options):
    logits = make(VOCAB, 4, 3)
    found = filtered(jnp.asarray(logits), asked(4, temperature=temperature, **options))
    expected = np.apply_along_axis(sorted_filter, 0, logits, temperature, **options)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("bits", [1, 4])
def test_the_least_kept_value_is_that_of_sorting(bits):
    """A bit at a time as on CPUs, four as on TPUs: the k-th largest, ties included; 0 where all are not enough."""
    random = np.random.default_rng(bits)
    order = np.concatenate([random.integers(0, 1 << 32, (40, 3)), random.integers(0, 4, (20, 3))]).astype(np.uint32)
    order[:2] = np.uint32([[0] * 3, [(1 << 32) - 1] * 3])
    mass = random.random((60, 3)).astype(np.float32)
    for k in (1, 2, 30, 55, 60, 61):
        found = sampling.least_kept(jnp.asarray(order), lambda kept, k=k: jnp.sum(kept, axis=0) >= k, bits)
        expected = np.sort(order, axis=0)[::-1][k - 1] if k <= 60 else np.zeros(3)
        np.testing.assert_array_equal(found, expected)
    share = mass / mass.sum(axis=0)
    found = sampling.least_kept(
        jnp.asarray(order), lambda kept: jnp.sum(jnp.where(kept, share, 0), axis=0) >= 0.5, bits
    )
    for column, least in enumerate(np.asarray(found)):
        kept = order[:, column] >= least
        assert share[kept, column].sum() >= 0.5 > share[order[:, column] > least, column].sum()


def test_equal_tokens_are_kept_together():
    logits = jnp.asarray([3.0, 1.0, 3.0, 0.0, -0.0])[:, None, None]
    kept = lambda **options: np.flatnonzero(np.isfinite(filtered(logits, asked(**options))[:, 0, 0])).tolist()  # noqa: E731
    assert kept(top_k=1) == kept(top_p=0.3) == kept(min_p=0.9) == [0, 2]
    assert kept(top_k=4) == [0, 1, 2, 3, 4], "both zeros are one number"


def test_the_order_of_the_filters_matters():
    """Top-p of what top-k left: two of three equal tokens' mass; before it, two of four."""
    logits = jnp.log(jnp.asarray([0.4, 0.3, 0.2, 0.1]))[:, None, None]
    kept = np.isfinite(filtered(logits, asked(top_k=2, top_p=0.55))[:, 0, 0])
    assert kept.tolist() == [True, False, False, False]


def test_a_filter_leaves_neighbours_alone():
    """The tail of the second sequence is too light for a float32 sum to notice."""
    logits = jnp.asarray([[0.0, 0.0], [-19.0, -19.0], [-40.0, -40.0]])[:, :, None]
    found = filtered(logits, asked(2, top_p=[0.5, 1.0]))
    np.testing.assert_array_equal(found[:, 1], logits[:, 1])
    assert np.isinf(found[1:, 0]).all()


def test_sequences_with_options_of_their_own():
    """A batch in which everyone asks for something else is each of them alone."""
    rows = [
        {"temperature": t, "seed": 7 * i, **o} for i, (t, o) in enumerate(zip([0, 0.7, 1, 2] * 3, FILTERS, strict=True))
    ]
    logits, batch = jnp.asarray(random_logits(VOCAB, len(rows), 2)), len(rows)
    seen = jnp.asarray(np.random.default_rng(2).random((batch, 1, VOCAB)) < 0.3)
    penalty = np.linspace(1, 2, batch)
    columns = {name: [{"top_k": 0, "top_p": 1.0, "min_p": 0.0, **row}[name] for row in rows] for name in KEYS}
    together = perturbed(
        logits, asked(batch, repetition_penalty=penalty, **columns), positions_of(batch, 4, 9), Seen(seen)
    )
    for index, row in enumerate(rows):
        one = slice(index, index + 1)
        alone = asked(1, repetition_penalty=penalty[index], **row)
        expected = perturbed(logits[:, one], alone, positions_of(1, 4, 9), Seen(seen[one]))
        np.testing.assert_array_equal(together[:, one], expected)


KEYS = ("temperature", "seed", "top_k", "top_p", "min_p")


def test_temperature_zero_is_the_most_likely_token():
    """Whatever the filters say, and with warm neighbours."""
    logits = jnp.asarray(random_logits(VOCAB, 3, 4))
    options = asked(3, temperature=[0, 1, 0], top_k=[3, 0, 0], top_p=[1, 0.5, 0.2], seed=5)
    found = draw(logits, options, positions_of(3, 1, 2, 3, 4))
    np.testing.assert_array_equal(found[::2], greedy(logits)[::2])
    assert (found[1] != greedy(logits)[1]).any()


def test_noise_belongs_to_seed_and_position():
    seeds, places = (
        jnp.asarray([3, 8, 3, 2**32 - 1], jnp.uint32),
        jnp.asarray([[5, 6], [5, 6], [6, 7], [5, 5]], jnp.int32),
    )
    noise = gumbel(seeds, places, VOCAB)
    for index, position in np.ndindex(4, 2):
        alone = gumbel(seeds[index : index + 1], places[index : index + 1, position : position + 1], VOCAB)
        np.testing.assert_array_equal(noise[:, index, position], alone[:, 0, 0])
    np.testing.assert_array_equal(noise[:, 0, 1], noise[:, 2, 0])
    np.testing.assert_array_equal(noise[:, 3, 0], noise[:, 3, 1])
    flat = np.asarray(noise).transpose(1, 2, 0).reshape(-1, VOCAB)
    assert len(np.unique(flat, axis=0)) == 6, "other seeds and positions have other noise"


def test_noise_does_not_depend_on_padding_of_the_vocabulary():
    seeds, places = jnp.arange(3, dtype=jnp.uint32), positions_of(3, 0, 1000)
    np.testing.assert_array_equal(gumbel(seeds, places, VOCAB + 7)[:VOCAB], gumbel(seeds, places, VOCAB))


def test_streams_of_noise_differ():
    seeds, places = jnp.zeros(1, jnp.uint32), positions_of(1, 0)
    purposes = keys.TOKEN, keys.TEST, keys.RESIDUAL, keys.DRAFT
    noise = np.stack([gumbel(seeds, places, VOCAB, purpose)[:, 0, 0] for purpose in purposes])
    assert len(np.unique(noise)) == noise.size


def test_draws_do_not_depend_on_order():
    logits, order = jnp.asarray(random_logits(VOCAB, 6, 2)), jnp.asarray([4, 0, 5, 2, 1, 3])
    options, places = asked(6, seed=np.arange(6), top_p=np.linspace(0.5, 1, 6)), positions_of(6, 3, 4)
    turned = draw(logits[:, order], jax.tree.map(lambda leaf: leaf[order], options), places[order])
    np.testing.assert_array_equal(turned, draw(logits, options, places)[order])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.7, "top_k": 4},
        {"temperature": 1.5, "top_p": 0.8},
        {"top_k": 9, "top_p": 0.9, "min_p": 0.05},
    ],
    ids=str,
)
def test_the_law_of_draws(options):
    """Chi-square over 2·10⁵ draws, half at each of two positions."""
    count, size = 100_000, 11
    logits = random_logits(size, seed=3, scale=1.0)
    many = jnp.broadcast_to(jnp.asarray(logits)[:, None, None], (size, count, 2))
    tokens = draw(many, asked(count, seed=np.arange(count), **options), positions_of(count, 17, 18))
    law = softmax(sorted_filter(logits, **options))
    for column in np.asarray(tokens).T:
        counts = np.bincount(column, minlength=size)
        assert not counts[law == 0].any()
        assert chisquare(counts[law > 0], count * law[law > 0]).pvalue > 1e-3
    joint = np.bincount(tokens[:, 0] * size + tokens[:, 1], minlength=size**2)
    expected = count * np.outer(law, law).ravel()
    held = expected > 5
    rest = [joint[~held].sum()], [expected[~held].sum()]
    counts, expected = np.append(joint[held], rest[0]), np.append(expected[held], rest[1])
    assert chisquare(counts[expected > 0], expected[expected > 0]).pvalue > 1e-3, "positions are independent"


def test_everything_is_traced():
    """One program for all temperatures, filters, penalties and seeds."""
    chex.clear_trace_counter()
    run = jax.jit(chex.assert_max_traces(lambda *args: sampling.draw(*args), n=1))
    logits, seen = jnp.asarray(random_logits(VOCAB, 2, 1)), jnp.zeros((2, 1, VOCAB), bool)
    for temperature in (0.0, 0.7, 1.0):
        for number, options in enumerate(FILTERS):
            settings = asked(2, temperature=temperature, seed=number, repetition_penalty=1 + number / 9, **options)
            run(logits, settings, positions_of(2, number), Seen(seen))


def test_log_probability_is_of_the_plain_law():
    logits = random_logits(VOCAB, 2, 3)
    tokens = np.random.default_rng(0).integers(VOCAB, size=(2, 3))
    found = log_probability(jnp.asarray(logits), jnp.asarray(tokens, jnp.int32))
    for b, t in np.ndindex(2, 3):
        assert found[b, t] == pytest.approx(np.log(softmax(logits[:, b, t])[tokens[b, t]]), abs=1e-5)


def test_marks_follow_the_text():
    random = np.random.default_rng(4)
    seen, window = random.random((5, VOCAB)) < 0.2, random.integers(VOCAB, size=(5, 4))
    along = Seen(jnp.asarray(seen)).along(jnp.asarray(window, jnp.int32)).marks
    assert along.shape == (5, 5, VOCAB)
    for row, count in np.ndindex(5, 5):
        expected = set(np.flatnonzero(seen[row])) | set(window[row, :count].tolist())
        assert set(np.flatnonzero(along[row, count])) == expected
        after = Seen(jnp.asarray(seen)).add(jnp.asarray(window, jnp.int32), jnp.full(5, count, jnp.int32)).marks
        assert set(np.flatnonzero(after[row])) == expected


def test_without_a_penalty_nothing_is_noted():
    window = jnp.zeros((1, 2), jnp.int32)
    assert Seen().add(window, jnp.ones(1, jnp.int32)) == Seen()
    assert Seen().along(window) == Seen()


def peers():
    """Our option → transformers' processor with it."""
    import transformers as t

    return {
        "temperature": t.TemperatureLogitsWarper,
        "top_k": t.TopKLogitsWarper,
        "top_p": t.TopPLogitsWarper,
        "min_p": t.MinPLogitsWarper,
    }


@pytest.mark.peers
@pytest.mark.parametrize("options", FILTERS, ids=str)
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_filters_against_transformers(temperature, options):
    import torch

    logits, makers = random_logits(VOCAB, 16, seed=5), peers()
    expected = torch.from_numpy(logits.T.copy())
    for name, value in {"temperature": temperature, **options}.items():
        expected = makers[name](value)(None, expected)
    found = filtered(jnp.asarray(logits)[:, :, None], asked(16, temperature=temperature, **options))
    np.testing.assert_allclose(found[:, :, 0].T, expected.numpy(), rtol=1e-5)


@pytest.mark.peers
@pytest.mark.parametrize("penalty", [0.8, 1.0, 1.3])
def test_the_repetition_penalty_against_transformers(penalty):
    import torch
    import transformers

    logits, texts = random_logits(VOCAB, 8, seed=6), np.random.default_rng(0).integers(VOCAB, size=(8, 7))
    process = transformers.RepetitionPenaltyLogitsProcessor(penalty)
    expected = process(torch.from_numpy(texts), torch.from_numpy(logits.T.copy()))
    seen = Seen(jnp.zeros((8, VOCAB), bool)).add(jnp.asarray(texts, jnp.int32), jnp.full(8, 7, jnp.int32))
    found = sampling.penalised(jnp.asarray(logits)[:, :, None], jnp.full(8, penalty, jnp.float32), seen.as_branch())
    np.testing.assert_allclose(found[:, :, 0].T, expected.numpy(), rtol=1e-6)
