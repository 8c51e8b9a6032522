"""Tensor and data parallelism: what the compiled programs send between devices, and that it changes no result."""

import re
from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import jaxspec
from jaxspec import DecoderConfig
from jaxspec.devices.sharding import mesh_of, put_model
from jaxspec.drafts import init_draft, trees
from jaxspec.generation.requests import request_of
from jaxspec.models.attention import cached, init_cache
from jaxspec.models.config import Attention, Block, Ends
from jaxspec.verify.programs import target_plain
from jaxspec.verify.target import Target
from tests.support.jaxspec import models

VOCAB = 96
CONFIGS = {
    "untied": DecoderConfig(VOCAB, 32, 3, 8, 2, 4, 64, ends=Ends(tied=False)),
    "tied": DecoderConfig(VOCAB, 32, 2, 8, 8, 6, 32),
    "learned positions": DecoderConfig(
        VOCAB, 32, 2, 8, 8, 4, 64,
        Attention(rotary=None, qkv_bias=True, out_bias=True),
        Block(layer_norm=True, activation="relu", gated=False, bias=True),
        Ends(embedding_scale=1.0, positions=64),
    ),
    "around": DecoderConfig(
        VOCAB, 32, 2, 8, 4, 4, 64, Attention(window=5, windowed=(True, False), norm_heads=True), Block(norms="around")
    ),
}  # fmt: skip
MESHES = [(1, 1), (2, 1), (4, 1), (8, 1), (8, 2), (4, 4)]
PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6], [5], [3, 5, 8, 9, 7, 9], [2, 7, 1]]
SAMPLING = jaxspec.Sampling(0.8, top_p=0.9, top_k=20, repetition_penalty=1.1, seed=7)
COLLECTIVE = re.compile(
    r"= (\(?[^=]*?) (all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all|collective-broadcast)"
    r"(?:-start)?\("
)


def mesh(size, data=1):
    return mesh_of(jax.devices()[:size], data)


def collectives(compiled):
    """(shape, kind) of every collective in a compiled program."""
    return COLLECTIVE.findall(compiled.as_text())


@pytest.fixture(params=CONFIGS, scope="module")
def model(request):
    return models.random_model(CONFIGS[request.param], 5)


@partial(jax.jit, static_argnums=0)
def hidden(network, params, x, positions, cache):
    return network.blocks(params, x, positions, cache, cached(positions), range(network.config.num_layers))


def blocks_on(model, where, batch=4, length=3):
    """Every layer over ``length`` tokens of a batch, compiled for a mesh."""
    network, params, home, _ = put_model(model, where)
    cut = PartitionSpec("data") if "data" in where.axis_names else PartitionSpec()
    x = jax.device_put(
        jnp.ones((model.network.config.width, batch, length)), NamedSharding(where, PartitionSpec(None, *cut))
    )
    positions = jax.device_put(np.tile(np.arange(length), (batch, 1)), home)
    rows = NamedSharding(where, PartitionSpec(*(cut or (None,)), "model"))
    cache = jax.device_put(init_cache(network.config, batch, 16), rows)
    return hidden.lower(network, params, x, positions, cache).compile()


@pytest.mark.parametrize(("size", "data"), [(2, 1), (4, 1), (8, 1), (8, 2)])
def test_two_all_reduces_a_layer_and_nothing_else(model, size, data):
    """From embedded input to final hidden state, for one token or several."""
    for length in (1, 3):
        counts = Counter(kind for _, kind in collectives(blocks_on(model, mesh(size, data), length=length)))
        assert counts == {"all-reduce": 2 * model.network.config.num_layers}


@pytest.mark.parametrize("size", [2, 8])
def test_the_vocabulary_is_never_gathered(model, size):
    """A step: one more collective for the embedding, two for log-sum-exp, one pair for each shard for the argmax."""
    method = jaxspec.autoregressive(model, mesh(size))
    request, capacity = request_of([np.asarray(p) for p in PROMPTS], method, 8)
    network, params, _, _ = put_model(model, mesh(size))
    transfers = collectives(target_plain.lower(Target(network), params, method.init(request, capacity)).compile())
    layers, width = model.network.config.num_layers, model.network.config.width
    wide = [kind for shape, kind in transfers if elements(shape) >= width * len(PROMPTS)]
    assert wide == ["all-reduce"] * (2 * layers + 1)
    gathered = [elements(shape) for shape, kind in transfers if kind == "all-gather"]
    assert gathered
    assert max(gathered) <= size * len(PROMPTS), "one candidate a shard and sequence"
    assert {kind for _, kind in transfers} == {"all-reduce", "all-gather"}


def elements(shape):
    """Numbers in the largest array of an HLO shape."""
    return max(int(np.prod([int(n) for n in dims.split(",") if n])) for dims in re.findall(r"\[([\d,]*)\]", shape))


@pytest.mark.parametrize(("size", "data"), MESHES)
def test_logits_and_tokens_of_every_mesh(model, size, data):
    expected = jaxspec.generate(jaxspec.autoregressive(model), PROMPTS, 12)
    result = jaxspec.generate(jaxspec.autoregressive(model, mesh(size, data)), PROMPTS, 12)
    assert result.tokens == expected.tokens
    np.testing.assert_allclose(result.log_probabilities, expected.log_probabilities, atol=1e-4)


@pytest.mark.parametrize("method", ["speculative", "mirror"])
@pytest.mark.parametrize(("size", "data"), [(4, 2), (8, 1)])
def test_drafts_on_meshes(method, size, data):
    """Sampled, so that noise and filters are sharded too."""
    model = models.random_model(CONFIGS["untied"], 5)
    draft = models.random_model(DecoderConfig(VOCAB, 16, 1, 4, 2, 4, 32), 6)
    expected = jaxspec.generate(jaxspec.autoregressive(model), PROMPTS, 10, sampling=SAMPLING)
    if method == "speculative":
        draft = models.random_model(DecoderConfig(VOCAB, 16, 1, 8, 4, 4, 32), 6)
        built = jaxspec.speculative(model, draft, 3, mesh(size, data))
    else:
        halves = jax.devices()[: size // 2], jax.devices()[size // 2 : size]
        where = jaxspec.Placement(*(mesh_of(half, data) for half in halves))
        built = jaxspec.mirror(model, draft, window=3, num_candidates=2, exit_layer=2, placement=where)
    assert jaxspec.generate(built, PROMPTS, 10, sampling=SAMPLING).tokens == expected.tokens


WAYS = {
    "two meshes": lambda pair: jaxspec.mirror(
        *pair,
        window=3,
        num_candidates=2,
        exit_layer=2,
        placement=jaxspec.Placement(mesh_of(jax.devices()[:4]), mesh_of(jax.devices()[4:8])),
    ),
    "a tree on one mesh": lambda pair: jaxspec.speculative(*pair, mesh=mesh(2), tree=trees.static((3, 2))),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_draft_that_reads_hidden_states_on_meshes(way):
    """Of a tensor-parallel target; all taps lie at or below the exit."""
    model = models.random_model(CONFIGS["untied"], 5)
    pair = model, init_draft("eagle3", model, taps=(0, 1, 2))
    expected = jaxspec.generate(jaxspec.autoregressive(model), PROMPTS, 10, sampling=SAMPLING)
    assert jaxspec.generate(WAYS[way](pair), PROMPTS, 10, sampling=SAMPLING).tokens == expected.tokens


def test_a_batch_that_the_data_axis_does_not_divide():
    """It is padded, and the padding does not appear in the result."""
    model = models.random_model(CONFIGS["untied"], 5)
    expected = jaxspec.generate(jaxspec.autoregressive(model), PROMPTS[:3], 6)
    result = jaxspec.generate(jaxspec.autoregressive(model, mesh(4, 2)), PROMPTS[:3], 6)
    assert result.tokens == expected.tokens
    assert result.stats.new_tokens == 18
