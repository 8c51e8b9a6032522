"""Attention sinks: their equation, and the same tokens however a model with sinks is run."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxspec
from jaxspec import Model
from jaxspec.drafts import trees
from jaxspec.loading.store import load_model, save_model
from jaxspec.models._decoder import network
from jaxspec.models.attention import softmax_attention
from jaxspec.models.base import SinkScores
from jaxspec.models.config import Attention, Scores, Tracks
from jaxspec.training import hidden_states
from tests.support.jaxspec import models, pairs

NAME = "gpt-oss"


def plain():
    return jaxspec.generate(pairs.autoregressive(NAME), pairs.PROMPTS[:3], pairs.NEW_TOKENS).tokens


def streaming():
    draft = jaxspec.streaming(pairs.draft(NAME), 2, start=0, rank=4)
    up = jax.random.normal(jax.random.key(8), draft.params["streams"]["expand"].shape)
    return draft._replace(params={**draft.params, "streams": {**draft.params["streams"], "expand": up}})


def test_a_sink_takes_a_share_of_the_weights():
    rng = np.random.default_rng(0)
    queries, keys, values = (rng.normal(size=shape) for shape in ((1, 2, 2, 3, 4), (1, 2, 5, 4), (1, 2, 5, 4)))
    sinks, seen = rng.normal(size=(2, 2)), rng.integers(0, 2, (1, 3, 5)).astype(bool)
    seen[..., 0] = True
    weights = np.exp(np.einsum("bgqth,bgsh->bgqts", queries, keys) / 2) * seen[:, None, None]
    total = weights.sum(-1, keepdims=True) + np.exp(sinks)[None, :, :, None, None]
    expected = np.einsum("bgqts,bgsh->bgqth", weights / total, values)
    arrays = (jnp.asarray(each, jnp.float32) for each in (queries, keys, values))
    scores = SinkScores(sinks=True, logits=jnp.asarray(sinks, jnp.float32))
    np.testing.assert_allclose(softmax_attention(*arrays, jnp.asarray(seen), scores), expected, atol=1e-5)


def test_sinks_without_their_logits_are_never_left_out():
    arrays = [jnp.zeros(shape) for shape in ((1, 1, 1, 1, 2), (1, 1, 1, 2), (1, 1, 1, 2))]
    with pytest.raises(ValueError, match="expected the logits of attention sinks"):
        softmax_attention(*arrays, jnp.ones((1, 1, 1), bool), Scores(sinks=True))


METHODS = {
    "windows": lambda: jaxspec.speculative(pairs.target(NAME), pairs.draft(NAME), 3),
    "a tree": lambda: jaxspec.speculative(pairs.target(NAME), pairs.draft(NAME), tree=trees.static((3, 2, 1))),
    "streams": lambda: jaxspec.speculative(pairs.target(NAME), streaming(), 3),
    "mirror": lambda: pairs.mirror(NAME, 3),
    "mirror with streams": lambda: models.mirror(3, exit_layer=1, target=pairs.target(NAME), draft=streaming()),
}
QUICK = ("windows", "mirror")


@pytest.mark.parametrize(
    "kind", [*QUICK, *(pytest.param(kind, marks=pytest.mark.slow) for kind in METHODS if kind not in QUICK)]
)
def test_every_method_gives_the_tokens_of_plain_decoding(kind):
    assert jaxspec.generate(METHODS[kind](), pairs.PROMPTS[:3], pairs.NEW_TOKENS).tokens == plain()


def test_tracks_have_the_sinks_of_their_heads():
    """Tracks that meet once a layer, after attention alone, are the model itself."""
    config = replace(models.TARGET, attention=Attention(scores=Scores(sinks=True)))
    model = models.random_model(config, 3)
    for layer in model.params["layers"]:
        layer["attention"]["sinks"] = jax.random.normal(jax.random.key(1), layer["attention"]["sinks"].shape)
        layer["mlp"]["down"] = jnp.zeros_like(layer["mlp"]["down"])
    tracks = Model(network(replace(config, tracks=Tracks(2, config.num_layers))), model.params)
    tokens = jnp.asarray([models.PROMPTS[1]], jnp.int32)
    one, two = (hidden_states(each.network, each.params, tokens)[-1] for each in (model, tracks))
    np.testing.assert_allclose(one, two, atol=1e-4)


def test_a_checkpoint_keeps_every_setting(tmp_path):
    model = pairs.target(NAME)
    save_model(model, tmp_path)
    again = load_model(tmp_path)
    assert again.network is model.network
    jax.tree.map(np.testing.assert_array_equal, again.params, model.params)
