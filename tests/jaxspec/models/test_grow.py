"""Grown models compute the function of the small ones, at every fraction of the depth."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxspec
from jaxspec import zoo
from jaxspec.generation.trace import Passes
from jaxspec.training import hidden_states
from jaxspec.zoo._grow import grow
from jaxspec.zoo.recipe import containment
from tests.support.jaxspec import models

TOKENS = jnp.asarray([[1, 5, 3, 7, 2, 9, 4, 4], [6, 0, 10, 2, 2, 3, 3, 3]], jnp.int32)
LAYERS = range(1, models.TARGET.num_layers + 1)
FACTORS = [(2, 1), (1, 2), (3, 2), (2, 3)]


def states(model, exits):
    return [np.asarray(x) for x in _states(model.network, model.params, exits)]


@partial(jax.jit, static_argnums=(0, 2))
def _states(network, params, exits):
    return hidden_states(network, params, TOKENS, exits)


@cache
def rounding():
    """Change of states when norm scales differ by a few units in the last place, as rounding does when growing."""
    small, layers = models.target(), tuple(LAYERS)

    def nudged(steps):
        by = np.float32(1 + steps * 2.0**-23)
        scaled = lambda path, leaf: leaf * by if "norm" in jax.tree_util.keystr(path) else leaf  # noqa: E731
        return small._replace(params=jax.tree_util.tree_map_with_path(scaled, small.params))

    moved = [states(nudged(steps), layers) for steps in (1, 2, 4)]
    return max(np.abs(a - b).max() for each in moved for a, b in zip(each, states(small, layers), strict=True))


@pytest.mark.parametrize(("width", "depth"), FACTORS)
def test_hidden_states_are_the_small_model_s_at_every_fraction_of_the_depth(width, depth):
    small, large = models.target(), grow(models.target(), width, depth)
    for one, other in zip(
        states(small, tuple(LAYERS)), states(large, tuple(layer * depth for layer in LAYERS)), strict=True
    ):
        size = one.shape[0]
        np.testing.assert_allclose(other[:size], one, rtol=0, atol=2 * rounding())
        assert not other[size:].any()


def test_rounding_is_small():
    """So that the test above can fail."""
    assert rounding() < 5e-5 * np.abs(states(models.target(), (1,))[0]).max()


@pytest.mark.parametrize(("width", "depth"), FACTORS)
def test_sizes_are_those_of_a_larger_model(width, depth):
    small, large = models.target(), grow(models.target(), width, depth)
    count = lambda model: sum(leaf.size for leaf in jax.tree.leaves(model.params["layers"]))  # noqa: E731
    assert count(large) > 0.9 * width**2 * depth * count(small)
    assert large.network.config.num_layers == depth * small.network.config.num_layers


def test_new_weights_are_not_zero():
    """Except what is added to the residual stream; so no computation can be skipped."""
    layers = grow(models.target(), 2, 2).params["layers"]
    assert all(float(jnp.mean(layer["attention"]["qkv"] != 0)) > 0.99 for layer in layers)
    assert all(float(jnp.mean(layer["mlp"]["gate_up"] != 0)) > 0.99 for layer in layers)
    assert not layers[0]["attention"]["out"].any()


def test_text_is_the_small_model_s():
    large = grow(models.target(), 2, 2)
    assert (
        jaxspec.generate(jaxspec.autoregressive(large), models.PROMPTS, models.NEW_TOKENS).tokens == models.expected()
    )
    method = models.mirror(target=large, draft=grow(models.draft(), 2), exit_layer=4)
    assert jaxspec.generate(method, models.PROMPTS, models.NEW_TOKENS).tokens == models.expected()


@pytest.mark.slow
def test_streams_guess_what_the_small_draft_s_do():
    """Equal numbers of passes for the same branches."""
    results = []
    for draft in (models.streaming(2, models.target), grow(models.streaming(2, models.target), 2, 2)):
        watch = Passes()
        method = models.mirror(4, draft=draft, policy=models.ALL_BRANCHES)
        results.append((jaxspec.generate(method, models.PROMPTS, models.NEW_TOKENS, watch=watch).tokens, watch.mean))
    assert results[0] == results[1]


@pytest.mark.slow
def test_the_exit_of_the_embedded_target_predicts_as_much():
    """Containment at each fraction of the depth, on held-out text."""
    pair = zoo.load("shakespeare")
    large = grow(pair.target, 1, 2)
    text = "\n".join(role.text for role in zoo.recipe.federated.read_roles()[:40])
    tokens = np.asarray(pair.tokenizer.encode(text).ids, np.int32)
    for layer in (2, 4, 6):
        small, grown = containment(pair.target, layer, tokens, 8, 64), containment(large, 2 * layer, tokens, 8, 64)
        assert small == pytest.approx(grown, abs=0.005)


@pytest.mark.parametrize("factors", [(0, 1), (1, 0)])
def test_factors_below_one(factors):
    with pytest.raises(ValueError, match="expected width and depth >= 1"):
        grow(models.target(), *factors)


def test_other_kinds_are_refused():
    from tests.support.jaxspec import pairs

    with pytest.raises(ValueError, match="expected a model with Llama's blocks"):
        grow(pairs.target("opt"), 2)
