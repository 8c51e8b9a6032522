"""The token channel: the bits that were sent arrive, in one array."""

import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxspec
from jaxspec import Sampling
from jaxspec.devices import channel
from jaxspec.devices.channel import LocalChannel, RemoteChannel, pack, send, unpack
from jaxspec.devices.sharding import batch_sharding, mesh_of, replicated
from jaxspec.generation.requests import request_of
from jaxspec.verify.acceptance import ratio
from jaxspec.verify.message import Message, exit_message, message_like
from jaxspec.verify.verdict import longest_match, verdict_like
from tests.support.jaxspec import models

BATCH, WINDOW, KAPPA = 2, 3, 4


def a_message():
    random = np.random.default_rng(0)
    logits = jnp.asarray(random.normal(size=(models.VOCAB, BATCH, WINDOW + 1)), jnp.float32)
    return exit_message(logits, jnp.asarray(random.integers(models.VOCAB, size=(BATCH, WINDOW)), jnp.int32), KAPPA)


def check(sent, like):
    packed = jax.jit(pack)(sent)
    assert packed.dtype == jnp.int32
    words = [leaf.size // BATCH / (2 if leaf.dtype.itemsize == 2 else 1) for leaf in jax.tree.leaves(sent)]
    assert packed.shape == (BATCH, sum(map(math.ceil, words)))
    unpacked = jax.jit(lambda array: unpack(array, like))(packed)
    assert jax.tree.structure(unpacked) == jax.tree.structure(sent)
    for leaf, expected in zip(jax.tree.leaves(unpacked), jax.tree.leaves(sent), strict=True):
        assert leaf.dtype == expected.dtype
        np.testing.assert_array_equal(leaf, expected)


def test_a_message_comes_back():
    check(a_message(), message_like(BATCH, WINDOW, KAPPA))


def test_a_verdict_comes_back():
    window, choices = jnp.zeros((BATCH, WINDOW), jnp.int32), jnp.ones((BATCH, WINDOW + 1), jnp.int32)
    check(longest_match(window, choices, jnp.asarray([4, 9])), verdict_like(BATCH))


def test_special_numbers_keep_their_bits():
    """Infinity, NaN, −0 and subnormal numbers."""
    odd = jnp.asarray([[-jnp.inf, jnp.nan, -0.0], [1e-42, 3.4e38, jnp.inf]], jnp.float32)
    sent = Message(jnp.asarray([[-1, 2**31 - 1], [0, -(2**31)]], jnp.int32), odd, odd[:, :1])
    received = unpack(pack(sent), sent)
    for leaf, expected in zip(received, sent, strict=True):
        assert np.asarray(leaf).tobytes() == np.asarray(expected).tobytes()


def test_send_moves_to_another_mesh():
    sharding = replicated(mesh_of(jax.devices()[1:3]))
    sent = send(a_message(), sharding)
    assert all(leaf.devices() == set(jax.devices()[1:3]) for leaf in sent)
    jax.tree.map(np.testing.assert_array_equal, sent, a_message())


def sent_in_a_step(monkeypatch, **options):
    """Bytes of every transfer of one step, for each of two sequences; sampled, with the paper's window and κ."""
    crossed, method = [], models.mirror(7, 8, 2, **options)
    prompts = [np.asarray(prompt, np.int32) for prompt in models.PROMPTS]
    state = method.init(*request_of(prompts, method, 8, Sampling(temperature=1.0)))

    def counted(tree, sharding):
        crossed.append(sum(leaf.nbytes for leaf in jax.tree.leaves(tree)))
        return send(tree, sharding)

    monkeypatch.setattr(channel, "send", counted)
    method.step(state)
    return [size / 2 for size in crossed]


def test_a_step_sends_less_than_a_kibibyte(monkeypatch):
    """Window, message and verdict: ids and log-probabilities, for any vocabulary and width."""
    message, verdict, window = sent_in_a_step(monkeypatch)
    assert (window, message, verdict) == (4 * 7, 8 * 8 * 8 + 4 * 7, 4 * 3)
    assert window + message + verdict <= 1024


def test_the_ratio_test_also_sends_the_drafts_distribution(monkeypatch):
    """Its most likely tokens and their log-probabilities for every drafted one: at most 64 of them."""
    message, verdict, window = sent_in_a_step(monkeypatch, acceptance=ratio())
    distribution = 7 * min(64, models.VOCAB) * 8
    assert (window - distribution, message, verdict) == (4 * 7, 8 * 8 * 8 + 4 * 7, 4 * 3)


def test_bools_and_short_numbers_come_back():
    """Those of 16 bits are sent in pairs, shorter ones as 32 bits."""
    sent = jnp.asarray([[True, False]] * BATCH), jnp.asarray([[1.5, -jnp.inf, -2.25]] * BATCH, jnp.bfloat16)
    sent += (jnp.asarray([-3, 7], jnp.int8),)
    assert pack(sent).shape == (BATCH, 2 + 2 + 1)
    check(sent, sent)


@pytest.mark.parametrize(("sizes", "data"), [((1, 1), 1), ((2, 1), 1), ((2, 4), 2)], ids=str)
def test_both_channels_carry_the_same(sizes, data):
    """Between two meshes of one process both work, and the value arrives in the sharding of the receiving mesh."""
    cuts = sizes[0], sum(sizes)
    meshes = mesh_of(jax.devices()[: cuts[0]]), mesh_of(jax.devices()[cuts[0] : cuts[1]], data)
    remote, local = RemoteChannel(*meshes), LocalChannel(*map(batch_sharding, meshes))
    shared = jnp.asarray([True, False])
    for ways in ((remote.to_draft, local.to_draft), (remote.to_target, local.to_target)):
        result, expected = (way(a_message(), shared) for way in ways)
        jax.tree.map(np.testing.assert_array_equal, result, expected)
        for one, other in zip(result[0], expected[0], strict=True):
            assert one.dtype == other.dtype
            assert one.sharding.is_equivalent_to(other.sharding, one.ndim)
    assert remote.transfers == 2


SETTINGS = {
    "greedy": ({}, Sampling()),
    "ratio": ({"acceptance": ratio(4)}, Sampling(1.0, seed=3)),
    "without a message": ({"policy": jaxspec.candidates.saguaro(6, num_candidates=4)}, Sampling(1.0)),
}


@pytest.mark.parametrize("sizes", [(1, 1), pytest.param((2, 1), marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize(("building", "sampling"), SETTINGS.values(), ids=SETTINGS)
def test_decoding_is_the_same_over_both_channels(monkeypatch, building, sampling, sizes):
    """Token for token, with the same steps; at most three transfers for each step, and one for the first window."""
    results, steps, channels = [], [], []
    for between in (channel.channel_between, lambda *meshes: channels.append(RemoteChannel(*meshes)) or channels[-1]):
        monkeypatch.setattr(sys.modules["jaxspec.methods._mirror"], "channel_between", between)
        method, watch = models.mirror(placement=models.meshes(*sizes), **building), lambda *call: steps.append(call[1])
        steps.clear()
        results.append(jaxspec.generate(method, models.PROMPTS, models.NEW_TOKENS, sampling=sampling, watch=watch))
    local, remote = results
    assert remote.tokens == local.tokens
    assert remote.log_probabilities == local.log_probabilities
    counts = "steps", "new_tokens", "accepted", "needed", "reused"
    assert [getattr(remote.stats, name) for name in counts] == [getattr(local.stats, name) for name in counts]
    assert channels[0].transfers == 1 + sum(2 if "whole" in steps else 3 for name in steps if name == "select")
