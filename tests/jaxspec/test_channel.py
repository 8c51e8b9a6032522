"""The token channel: what arrives is bit for bit what was sent, in one array."""

import sys

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.acceptance import ratio
from jaxspec.candidates import Message, message, message_like
from jaxspec.channel import pack, send, unpack
from jaxspec.requests import Options, request_of
from jaxspec.sharding import mesh_of, replicated
from jaxspec.verify import longest_match, verdict_like
from tests.jaxspec import models

BATCH, WINDOW, KAPPA = 2, 3, 4


def a_message():
    random = np.random.default_rng(0)
    logits = jnp.asarray(random.normal(size=(models.VOCAB, BATCH, WINDOW + 1)), jnp.float32)
    return message(logits, jnp.asarray(random.integers(models.VOCAB, size=(BATCH, WINDOW)), jnp.int32), KAPPA)


def check(sent, like):
    packed = jax.jit(pack)(sent)
    assert packed.dtype == jnp.int32
    assert packed.shape == (BATCH, sum(leaf.size for leaf in jax.tree.leaves(sent)) // BATCH)
    found = jax.jit(lambda array: unpack(array, like))(packed)
    assert jax.tree.structure(found) == jax.tree.structure(sent)
    for leaf, expected in zip(jax.tree.leaves(found), jax.tree.leaves(sent), strict=True):
        assert leaf.dtype == expected.dtype
        np.testing.assert_array_equal(leaf, expected)


def test_a_message_comes_back():
    check(a_message(), message_like(BATCH, WINDOW, KAPPA))


def test_a_verdict_comes_back():
    window, choices = jnp.zeros((BATCH, WINDOW), jnp.int32), jnp.ones((BATCH, WINDOW + 1), jnp.int32)
    check(longest_match(window, choices, jnp.asarray([4, 9])), verdict_like(BATCH))


def test_no_number_is_special():
    """Infinite, missing and tiny ones keep their bits."""
    odd = jnp.asarray([[-jnp.inf, jnp.nan, -0.0], [1e-42, 3.4e38, jnp.inf]], jnp.float32)
    sent = Message(jnp.asarray([[-1, 2**31 - 1], [0, -(2**31)]], jnp.int32), odd, odd[:, :1])
    found = unpack(pack(sent), sent)
    for leaf, expected in zip(found, sent, strict=True):
        assert np.asarray(leaf).tobytes() == np.asarray(expected).tobytes()


def test_send_moves_to_another_mesh():
    home = replicated(mesh_of(jax.devices()[1:3]))
    sent = send(a_message(), home)
    assert all(leaf.devices() == set(jax.devices()[1:3]) for leaf in sent)
    jax.tree.map(np.testing.assert_array_equal, sent, a_message())


def sent_in_a_step(monkeypatch, **options):
    """Bytes that cross in one step, per sequence of two; sampled, with the paper's window and κ."""
    crossed, method = [], models.mirror(7, 8, 2, **options)
    prompts = [np.asarray(prompt, np.int32) for prompt in models.PROMPTS]
    state = method.init(*request_of(prompts, Options(max_new_tokens=8, temperature=1.0).arrays(2), method))
    counted = lambda tree, home: crossed.append(sum(leaf.nbytes for leaf in jax.tree.leaves(tree))) or send(tree, home)  # noqa: E731
    monkeypatch.setattr(sys.modules["jaxspec.mirror"], "send", counted)
    method.step(state)
    return [size / 2 for size in crossed]


def test_a_step_sends_less_than_a_kibibyte(monkeypatch):
    """Window, message and verdict: ids and log-probabilities, whatever the vocabulary and the width."""
    window, message, verdict = sent_in_a_step(monkeypatch)
    assert (window, message, verdict) == (4 * 7, 8 * 8 * 8 + 4 * 7, 4 * 3)
    assert window + message + verdict <= 1024


def test_the_ratio_test_sends_the_drafts_law_besides(monkeypatch):
    """Its most likely tokens and their log-probabilities for every drafted one: at most 64 of them."""
    window, message, verdict = sent_in_a_step(monkeypatch, acceptance=ratio())
    law = 7 * min(64, models.VOCAB) * 8
    assert (window - law, message, verdict) == (4 * 7, 8 * 8 * 8 + 4 * 7, 4 * 3)
