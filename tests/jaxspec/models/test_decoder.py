"""The decoder: its equations against NumPy, and every way to run it (cached, split, jitted) gives the same logits."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec import DecoderConfig
from jaxspec.models.attention import cached, init_cache
from jaxspec.models.config import Attention, Block, Rotary
from jaxspec.training import hidden_states
from tests.support import reference
from tests.support.jaxspec import models

CONFIGS = {
    "grouped": models.TARGET,
    "one group": replace(models.TARGET, num_layers=2, num_kv_heads=1),
    "no groups": replace(models.TARGET, num_layers=2, num_kv_heads=4),
    "narrow": DecoderConfig(7, 6, 1, 3, 3, 2, 5, Attention(Rotary(50.0)), Block(epsilon=0.1)),
}
LENGTH, CAPACITY = 12, 24
TOKENS = np.random.default_rng(0).integers(models.VOCAB, size=(2, LENGTH)).astype(np.int32)


@partial(jax.jit, static_argnums=(0, 3))
def _whole(network, params, tokens, num_layers):
    return network.logits(params, hidden_states(network, params, tokens, (num_layers,))[0])


def whole(model, tokens, num_layers=None):
    """Logits [V, B, T] of one pass without a cache, after all or the first layers."""
    return _whole(*model[:2], jnp.asarray(tokens), num_layers or model.network.config.num_layers)


@partial(jax.jit, static_argnums=(0, 5))
def _run_cached(network, params, cache, x, starts, layers):
    positions = starts[:, None] + jnp.arange(x.shape[2])[None]
    return network.blocks(params, x, positions, cache, cached(positions), layers)


def run_cached(model, cache, tokens, starts, layers=None, x=None):
    """Runs tokens [B, T] at positions from ``starts`` [B] on; hidden state and cache."""
    x = model.network.embed(model.params, jnp.asarray(tokens)) if x is None else x
    layers = range(model.network.config.num_layers) if layers is None else layers
    return _run_cached(*model[:2], cache, x, jnp.asarray(starts, jnp.int32), layers)


def with_norm_scales(model):
    """A model whose norm scales are not all one."""
    keys = iter(jax.random.split(jax.random.key(5), 99))
    vary = lambda leaf: leaf * jax.random.uniform(next(keys), leaf.shape, minval=0.5, maxval=1.5)  # noqa: E731
    return model._replace(params=jax.tree.map(lambda leaf: vary(leaf) if leaf.ndim == 1 else leaf, model.params))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_decoder_follows_its_equations(config):
    model = with_norm_scales(models.random_model(config, 3))
    tokens = TOKENS % config.vocab_size
    for index, logits in enumerate(jnp.moveaxis(whole(model, tokens), 0, -1)):
        expected = reference.decoder_logits(model.params, config, tokens[index])
        np.testing.assert_allclose(logits, expected, atol=2e-5)


@pytest.mark.parametrize("num_layers", range(1, models.TARGET.num_layers + 1))
def test_a_prefix_of_layers_follows_its_equations(num_layers):
    model = models.target()
    expected = reference.decoder_logits(model.params, models.TARGET, TOKENS[0], num_layers)
    np.testing.assert_allclose(whole(model, TOKENS[:1], num_layers)[:, 0].T, expected, atol=2e-5)


def test_jit_changes_nothing():
    model = models.draft()
    with jax.disable_jit():
        eager = whole(model, TOKENS[:, :4])
    np.testing.assert_allclose(eager, whole(model, TOKENS[:, :4]), atol=1e-5)


@pytest.mark.parametrize("parts", [(12,), (1,) * 12, (5, 7), (1, 4, 3, 4), (11, 1)], ids=str)
def test_cached_decoding_equals_one_pass(parts):
    model, start, logits = models.target(), 0, []
    cache = init_cache(models.TARGET, 2, CAPACITY)
    for size in parts:
        x, cache = run_cached(model, cache, TOKENS[:, start : start + size], [start, start])
        logits.append(model.network.logits(model.params, x))
        start += size
    np.testing.assert_allclose(jnp.concatenate(logits, axis=2), whole(model, TOKENS), atol=1e-5)


@pytest.mark.parametrize("exit_layer", range(1, models.TARGET.num_layers + 1))
def test_prefix_then_suffix_equals_all_layers(exit_layer):
    model, cache = models.target(), init_cache(models.TARGET, 2, CAPACITY)
    _, cache = run_cached(model, cache, TOKENS[:, :8], [0, 0])
    expected, all_rows = run_cached(model, cache, TOKENS[:, 8:], [8, 8])
    x, rows = run_cached(model, cache, TOKENS[:, 8:], [8, 8], range(exit_layer))
    x, rows = run_cached(model, rows, None, [8, 8], range(exit_layer, models.TARGET.num_layers), x)
    np.testing.assert_array_equal(x, expected)
    jax.tree.map(np.testing.assert_array_equal, rows, all_rows)


def test_sequences_of_one_batch_have_their_own_positions():
    """Prompts of 3 and 8 tokens, padded to 8; then four tokens of each, at positions 3.. and 8.. ."""
    model, lengths = models.target(), [3, 8]
    padded = np.where(np.arange(8)[None] < np.asarray(lengths)[:, None], TOKENS[:, :8], 9)
    _, cache = run_cached(model, init_cache(models.TARGET, 2, CAPACITY), padded, [0, 0])
    following = np.stack([TOKENS[i, n : n + 4] for i, n in enumerate(lengths)])
    x, _ = run_cached(model, cache, following, lengths)
    logits = model.network.logits(model.params, x)
    for index, length in enumerate(lengths):
        expected = whole(model, TOKENS[index : index + 1, : length + 4])[:, 0, length:]
        np.testing.assert_allclose(logits[:, index], expected, atol=1e-5)


def test_stale_rows_after_a_rollback_do_not_matter():
    """A wrong window is run at positions 5..8; one sequence keeps one token of it, the other three."""
    model, lengths = models.target(), np.array([1, 3])
    _, cache = run_cached(model, init_cache(models.TARGET, 2, CAPACITY), TOKENS[:, :5], [0, 0])
    window = TOKENS[:, 5:9].copy()
    for index, count in enumerate(lengths):
        window[index, count:] = (window[index, count:] + 1) % models.VOCAB
    _, cache = run_cached(model, cache, window, [5, 5])
    again = np.stack([TOKENS[i, 5 + n : 8 + n] for i, n in enumerate(lengths)])
    x, _ = run_cached(model, cache, again, 5 + lengths)
    logits = model.network.logits(model.params, x)
    for index, count in enumerate(lengths):
        expected = whole(model, TOKENS[index : index + 1, : 8 + count])[:, 0, 5 + count :]
        np.testing.assert_allclose(logits[:, index], expected, atol=1e-5)


def test_rows_never_written_do_not_matter():
    model = models.target()
    clean = init_cache(models.TARGET, 2, CAPACITY)
    dirty = jax.tree.map(lambda rows: rows + 1e3, clean)
    for tokens in (TOKENS[:, :6], TOKENS[:, :1]):
        (x, _), (y, _) = (run_cached(model, cache, tokens, [0, 0]) for cache in (clean, dirty))
        np.testing.assert_array_equal(x, y)


def test_a_batch_beyond_the_slices_is_written_alike():
    """Nine sequences at nine positions; each equals a pass of its own."""
    model, random = models.target(), np.random.default_rng(1)
    tokens, starts = random.integers(models.VOCAB, size=(9, LENGTH)).astype(np.int32), np.arange(1, 10)
    _, cache = run_cached(model, init_cache(models.TARGET, 9, CAPACITY), tokens, np.zeros(9))
    new = np.stack([row[start : start + 2] for row, start in zip(tokens, starts, strict=True)])
    x, _ = run_cached(model, cache, new, starts)
    full = whole(model, tokens)
    for index, start in enumerate(starts):
        expected = model.network.logits(model.params, x)[:, index]
        np.testing.assert_allclose(expected, full[:, index, start : start + 2], atol=1e-5)
