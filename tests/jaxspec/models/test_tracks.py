"""Tracks: narrow decoders side by side, with one all-reduce a segment on as many devices, and the same everywhere."""

import json
import re
from collections import Counter
from dataclasses import asdict, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxspec
from jaxspec import DecoderConfig, Tracks, federated, zoo
from jaxspec.devices.sharding import put_model
from jaxspec.loading.store import load_model, save_model
from jaxspec.models._decoder import network
from jaxspec.models.attention import cached, causal, fill, init_cache
from jaxspec.models.config import build
from jaxspec.models.quantize import quantized
from jaxspec.text.tokenizer import train_tokenizer
from jaxspec.training import Schedule, distillation_loss, fit
from jaxspec.zoo import recipe
from jaxspec.zoo._grow import grow
from tests.support.jaxspec import models, pairs

#: Four key-value heads, so that four tracks can share the layers.
WIDE = replace(models.TARGET, num_heads=8, num_kv_heads=4)
LENGTH = 9
TOKENS = np.random.default_rng(6).integers(models.VOCAB, size=(2, LENGTH)).astype(np.int32)


def in_tracks(model, *tracks):
    """The parameters of a model, run in tracks."""
    return model._replace(network=network(replace(model.network.config, tracks=Tracks(*tracks))))


def wide():
    return models.random_model(WIDE, 4, 2.0, 1.0)


def mesh(size, data=1):
    return jaxspec.mesh_of(jax.devices()[: size * data], data)


def positions_of(x, start=0):
    return start + jnp.broadcast_to(jnp.arange(x.shape[2])[None], x.shape[1:])


@partial(jax.jit, static_argnums=0)
def hidden(net, params, tokens):
    """The final hidden state [D, B, T] of one pass without a cache."""
    x, count = net.embed(params, tokens), net.config.num_layers
    return net.blocks(params, x, positions_of(x), (None,) * count, causal(), range(count))[0]


# What a track computes


def part_of(layer, track, count):
    """Parameters of one track, by hand: its heads, its hidden units, its share of what is added to the stream."""
    axes = {"qkv": 0, "qkv_bias": 0, "out": 1, "gate_up": 1, "gate_up_bias": 1, "down": 1}

    def part(path, leaf):
        name = path[-1].key
        if name in axes:
            return jnp.split(leaf, count, axes[name])[track]
        return leaf / count if name in ("out_bias", "down_bias") else leaf

    return jax.tree_util.tree_map_with_path(part, layer)


def by_hand(model, count, segments, tokens):
    """Every track as a narrow decoder of its own, without tracks; their contributions are added after each segment."""
    config, params = model.network.config, model.params
    sizes = {name: getattr(config, name) // count for name in ("num_heads", "num_kv_heads", "hidden")}
    net, depth = network(replace(config, **sizes)), config.num_layers // segments
    parts = [
        {**params, "layers": [part_of(layer, track, count) for layer in params["layers"]]} for track in range(count)
    ]
    x = model.network.embed(params, tokens)
    run = jax.jit(
        lambda params, x, layers: net.blocks(params, x, positions_of(x), caches, causal(), layers)[0], static_argnums=2
    )
    caches = (None,) * config.num_layers
    if "positions" in params:
        x = x + jnp.moveaxis(params["positions"][positions_of(x)], -1, 0)
        parts = [{**part, "positions": jnp.zeros_like(params["positions"])} for part in parts]
    for start in range(0, config.num_layers, depth):
        x = x + sum(run(part, x, range(start, start + depth)) - x for part in parts)
    return x


@pytest.mark.parametrize("segments", [1, 2, 4])
@pytest.mark.parametrize("count", [2, 4])
def test_tracks_are_narrow_decoders_that_meet_after_each_segment(count, segments):
    model = wide()
    states = hidden(*in_tracks(model, count, segments)[:2], TOKENS)
    expected = by_hand(model, count, segments, TOKENS)
    np.testing.assert_allclose(states, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    assert np.abs(states - hidden(*model[:2], TOKENS)).max() > 0.01 * np.abs(expected).max()


@pytest.mark.parametrize("segments", [1, 2])
@pytest.mark.parametrize("family", ["opt", "gemma3", "qwen2", "mistral"])
def test_tracks_of_every_kind_of_block(family, segments):
    """Biases, layer norms, learned positions; norms around and of heads; windows."""
    model = pairs.target(family)
    states = hidden(*in_tracks(model, 2, segments)[:2], TOKENS)
    expected = by_hand(model, 2, segments, TOKENS)
    np.testing.assert_allclose(states, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_biases_are_added_once():
    """Without heads and hidden units only biases remain, added as often as without tracks."""
    model = pairs.target("opt")
    silent = lambda path, leaf: 0.0 * leaf if path[-1].key in ("out", "down") else leaf  # noqa: E731
    model = model._replace(params=jax.tree_util.tree_map_with_path(silent, model.params))
    expected = hidden(*model[:2], TOKENS)
    for segments in (1, 2):
        states = hidden(*in_tracks(model, 2, segments)[:2], TOKENS)
        np.testing.assert_allclose(states, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("segments", [1, 2])
def test_one_track_is_the_model_without_tracks(segments):
    np.testing.assert_array_equal(hidden(*in_tracks(wide(), 1, segments)[:2], TOKENS), hidden(*wide()[:2], TOKENS))


def test_parameters_are_shaped_as_without_tracks():
    shapes = lambda config: jax.tree.map(jnp.shape, jaxspec.decoder(config, jax.random.key(0)).params)  # noqa: E731
    assert shapes(replace(WIDE, tracks=Tracks(4))) == shapes(WIDE)


@pytest.mark.parametrize("parts", [(4, 5), (1,) * LENGTH], ids=str)
def test_cached_decoding_equals_one_pass(parts):
    net, params = in_tracks(wide(), 4)[:2]
    cache, start, states = init_cache(net.config, 2, 16), 0, []
    run = jax.jit(lambda x, at, cache: net.blocks(params, x, at, cache, cached(at), range(WIDE.num_layers)))
    for size in parts:
        x = net.embed(params, TOKENS[:, start : start + size])
        x, cache = run(x, positions_of(x, start), cache)
        states, start = [*states, x], start + size
    expected = hidden(net, params, TOKENS)
    np.testing.assert_allclose(jnp.concatenate(states, 2), expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    assert cache[0][0].shape == (2, WIDE.num_kv_heads, 16, WIDE.head_size)


# Meshes


def decoding_program(model, where, length=3):
    """Text of the compiled program that runs a draft's layers on a mesh after a prompt."""
    placed = put_model(model, where)
    count = placed.network.config.num_layers
    cache, _ = jax.jit(partial(fill, placed.network), static_argnums=2)(
        placed.params, jax.device_put(TOKENS, placed.batch), 16
    )
    x = jax.device_put(jnp.ones((WIDE.width, 2, length)), placed.replicated)

    def run(params, x, cache):
        at = positions_of(x, LENGTH)
        return placed.network.blocks(params, x, at, cache, cached(at), range(count))

    return jax.jit(run).lower(placed.params, x, cache).compile().as_text()


def collectives(text):
    names = "all-reduce|all-gather|all-to-all|collective-permute|collective-broadcast|reduce-scatter"
    return dict(Counter(re.findall(rf" ({names})(?:-start)?\(", text)))


@pytest.mark.parametrize("size", [2, 4])
def test_tracks_on_as_many_devices_meet_twice_a_forward(size):
    assert collectives(decoding_program(in_tracks(wide(), size), mesh(size))) == {"all-reduce": 2}


@pytest.mark.parametrize("size", [2, 4])
def test_without_tracks_devices_meet_twice_a_layer(size):
    assert collectives(decoding_program(wide(), mesh(size))) == {"all-reduce": 2 * WIDE.num_layers}


CASES = {
    "more tracks than devices": (lambda: in_tracks(wide(), 4), mesh(2), 1),
    "four segments": (lambda: in_tracks(wide(), 2, 4), mesh(2), 1),
    "a single token": (lambda: in_tracks(wide(), 2), mesh(2), 1),
    "batch shared too": (lambda: in_tracks(wide(), 2), mesh(2, data=2), 3),
    "eight bits": (lambda: quantized_wide(2), mesh(2), 3),
}


def quantized_wide(count):
    model = in_tracks(wide(), count)
    return model._replace(params=quantized(model.params))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_tracks_meet_once_a_segment(case):
    build_model, where, length = CASES[case]
    model = build_model()
    counts = collectives(decoding_program(model, where, length))
    assert counts == {"all-reduce": model.network.config.tracks.segments}


def few_heads():
    """Two key-value heads: on four devices each is held twice."""
    return in_tracks(models.random_model(replace(WIDE, num_kv_heads=2), 5, 2.0, 1.0), 2)


MODELS = {
    "four tracks": lambda: in_tracks(wide(), 4),
    "fewer tracks than devices": lambda: in_tracks(wide(), 2),
    "fewer key-value heads": few_heads,
    "eight bits": lambda: quantized_wide(2),
    "biases": lambda: in_tracks(models.random_model(with_biases(), 5, 2.0, 1.0), 4),
}


def with_biases():
    attention, block = replace(WIDE.attention, qkv_bias=True, out_bias=True), replace(WIDE.block, bias=True)
    return replace(WIDE, attention=attention, block=block)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", MODELS)
def test_what_tracks_compute_does_not_depend_on_the_mesh(name, size):
    model = MODELS[name]()
    placed = put_model(model, mesh(size))
    states = hidden(placed.network, placed.params, jax.device_put(TOKENS, placed.batch))
    expected = hidden(*model[:2], TOKENS)
    np.testing.assert_allclose(states, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


# Drafts


def draft():
    """The target's own layers, run in tracks: it agrees with the target at some tokens."""
    return in_tracks(wide(), 4)


@pytest.fixture(scope="module")
def text():
    rows = [models.greedy_text(wide(), prompt, models.NEW_TOKENS) for prompt in models.PROMPTS]
    assert all(len(set(row)) > 3 for row in rows)
    return rows


METHODS = {
    "speculative": lambda size: jaxspec.speculative(wide(), draft(), 3, mesh=mesh(size)),
    "mirror": lambda size: models.mirror(target=wide(), draft=draft(), placement=models.meshes(size, size)),
}
SLOW = ("speculative", 2), ("speculative", 4), ("mirror", 4)


@pytest.mark.parametrize(
    ("method", "size"),
    [("mirror", 2), *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)],
)
def test_decoding_with_a_draft_in_tracks_is_plain_decoding(method, size, text):
    output = jaxspec.generate(METHODS[method](size), models.PROMPTS, models.NEW_TOKENS)
    assert output.tokens == text
    assert 0 < output.stats.accepted_length < 3


@pytest.mark.slow
def test_a_draft_in_tracks_proposes_while_decoding_what_one_pass_predicts():
    """A difference would only lower acceptance, so other tests would not see it."""
    prompts = np.random.default_rng(2).integers(models.VOCAB, size=(4, 4)).astype(np.int32)
    data = federated.continued(wide(), prompts, 16)
    real = jaxspec.generate(jaxspec.speculative(wide(), draft(), 3), prompts.tolist(), 16 - 3)
    assert federated.accepted_length(*draft()[:2], data, 3) == pytest.approx(real.stats.accepted_length, abs=1e-9)


SCHEDULE = Schedule(steps=40, batch_size=4, sequence_length=8, learning_rate=1e-2, warmup=2)


def test_training_lowers_the_loss_of_a_draft_in_tracks():
    """Which starts from a plain draft's parameters."""
    model, batch = draft(), {"tokens": TOKENS}
    loss_fn, least = (jax.jit(distillation_loss(net, wide())) for net in (model.network, wide().network))
    params = fit(loss_fn, model.params, lambda step: batch, SCHEDULE, progress=False)
    entropy = least(wide().params, batch, jax.random.key(0))[0]
    before, after = (loss_fn(tree, batch, jax.random.key(0))[0] - entropy for tree in (model.params, params))
    assert 0 < after < 0.2 * before


def test_the_recipe_trains_a_draft_in_tracks(tmp_path):
    """As ``jaxspec train shakespeare … recipe.draft.tracks:tracks --recipe.draft.tracks.count 2`` does."""
    plan = replace(
        recipe.PairRecipe(target_schedule=replace(SCHEDULE, steps=2), draft_schedule=replace(SCHEDULE, steps=2)),
        target=replace(WIDE, num_layers=1),
        draft=DecoderConfig(1, 16, 2, 4, 2, 4, 16, tracks=Tracks(2)),
    )
    tokenizer = train_tokenizer(["abcdefghij"])
    tokens = np.tile(np.arange(10, dtype=np.int32), 10)
    data = recipe.Corpus(tokenizer, tokens, tokens, 100)
    target = recipe.train_target(plan, data, tmp_path / "target", None, progress=False)
    trained = recipe.train_draft(plan, data, target, tmp_path / "draft", progress=False)
    assert trained.network.config.tracks == Tracks(2)
    start = jaxspec.decoder(trained.network.config, jax.random.key(plan.seed + 1)).params
    assert all(jnp.any(one != other) for one, other in zip(*map(jax.tree.leaves, (start, trained.params)), strict=True))


# Configurations


def test_a_pair_with_a_draft_in_tracks_comes_back(tmp_path):
    pair = zoo.Pair(wide(), draft(), jaxspec.LogitLens(), 2, train_tokenizer(["abcdefghij"]), {})
    zoo.save(pair, tmp_path)
    loaded = zoo.load(tmp_path)
    assert loaded.draft.network.config == pair.draft.network.config
    assert loaded.target.network.config.tracks is None
    again = hidden(*loaded.draft[:2], TOKENS)
    np.testing.assert_allclose(again, hidden(*draft()[:2], TOKENS), atol=0.05 * np.abs(again).max())


def test_a_model_in_tracks_is_loaded_onto_a_mesh(tmp_path):
    save_model(draft(), tmp_path)
    loaded = load_model(tmp_path, mesh(2))
    assert loaded.network is draft().network
    states, expected = hidden(*loaded[:2], TOKENS), hidden(*draft()[:2], TOKENS)
    np.testing.assert_allclose(states, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_configurations_from_before_there_were_tracks():
    stored = json.loads(json.dumps(asdict(replace(WIDE, tracks=Tracks(2)))))
    assert build(DecoderConfig, stored) == replace(WIDE, tracks=Tracks(2))
    del stored["tracks"]
    assert build(DecoderConfig, stored) == WIDE


def exits():
    return models.mirror(target=draft(), draft=wide(), exit_layer=3)


ERRORS = {
    "heads": (lambda: replace(WIDE, tracks=Tracks(3)), "num_kv_heads divisible by 3 tracks, got 4; use fewer tracks"),
    "hidden": (lambda: replace(WIDE, hidden=18, tracks=Tracks(4)), "hidden divisible by 4 tracks, got 18"),
    "layers": (lambda: replace(WIDE, tracks=Tracks(2, 3)), "num_layers divisible by 3 segments, got 4"),
    "no tracks": (lambda: replace(WIDE, tracks=Tracks(0)), "tracks and segments >= 1, got 0 and 2"),
    "no segments": (lambda: replace(WIDE, tracks=Tracks(2, 0)), "tracks and segments >= 1, got 2 and 0"),
    "blocks": (lambda: in_tracks(pairs.target("opt after"), 2), 'norms "before" or "around".*got "after"'),
    "exit layer": (exits, r"exit_layer where the target's tracks meet, of \(2, 4\), got 3"),
    "growth": (lambda: grow(draft(), 2), r"expected a model without tracks to grow.*got Tracks\(count=4, segments=2\)"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_what_cannot_run_in_tracks_is_refused(case):
    make, message = ERRORS[case]
    with pytest.raises(ValueError, match=message):
        make()


def test_layers_that_end_within_a_segment_are_refused():
    net, params = draft()[:2]
    x = net.embed(params, TOKENS)
    with pytest.raises(ValueError, match=r"where tracks meet, of \(0, 2, 4\), got 0 to 3"):
        net.blocks(params, x, positions_of(x), (None,) * 4, causal(), range(3))


def test_no_published_family_has_tracks(tmp_path):
    with pytest.raises(ValueError, match=r"tracks=Tracks\(count=4"):
        jaxspec.save_huggingface(draft(), tmp_path)


@pytest.mark.slow
def test_a_target_in_tracks_can_exit_where_they_meet():
    target = draft()
    text = [models.greedy_text(target, prompt, 8) for prompt in models.PROMPTS]
    method = models.mirror(target=target, draft=wide(), exit_layer=2, placement=models.meshes(2, 1))
    assert jaxspec.generate(method, models.PROMPTS, 8).tokens == text
