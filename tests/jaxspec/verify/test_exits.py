"""Exit heads: the affine lens starts as the logit lens and follows its equation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxspec
from jaxspec import AffineLens, LogitLens, zoo
from jaxspec.verify.exits import init_affine_lens
from jaxspec.zoo.recipe import containment
from tests.support import reference
from tests.support.jaxspec import models

WIDTH = models.TARGET.width


def hidden(seed=0):
    return jax.random.normal(jax.random.key(seed), (WIDTH, 2, 5))


def logits(head, x):
    return head(models.target().network, models.target().params, x)


def numpy_logits(x):
    """Norm and tied head of x [D, ...] in NumPy: [V, ...]."""
    params = models.target().params
    normed = reference.rms_norm(np.moveaxis(np.asarray(x, float), 0, -1), params["final_norm"]["scale"], 1e-5)
    return np.moveaxis(normed @ np.asarray(params["embedding"], float).T, -1, 0)


def test_logit_lens_is_the_targets_own_norm_and_head():
    np.testing.assert_allclose(logits(LogitLens(), hidden()), numpy_logits(hidden()), atol=1e-5)


@pytest.mark.parametrize("rank", [1, 4])
def test_affine_lens_starts_as_the_logit_lens(rank):
    lens = init_affine_lens(WIDTH, rank, jax.random.key(0))
    np.testing.assert_array_equal(logits(lens, hidden()), logits(LogitLens(), hidden()))
    assert np.any(lens.down != 0), "with both factors zero it could never learn"


def test_affine_lens_follows_its_equation():
    random = np.random.default_rng(0)
    down, up, bias = (random.normal(size=size).astype(np.float32) for size in ((3, WIDTH), (WIDTH, 3), (WIDTH,)))
    x = np.asarray(hidden(), float)
    turned = x + np.einsum("dr,re,ebt->dbt", up, down, x) + bias[:, None, None]
    found = logits(AffineLens(*map(jnp.asarray, (down, up, bias))), hidden())
    np.testing.assert_allclose(found, numpy_logits(turned), atol=1e-4)
    assert np.abs(found - logits(LogitLens(), hidden())).max() > 0.1


@pytest.mark.slow
def test_a_published_checkpoint_with_early_exits_keeps_them(tmp_path):
    """As LayerSkip's are: trained with an exit loss through the shared head, written and read as any Llama."""
    pair = zoo.load()
    jaxspec.save_huggingface(pair.target, tmp_path)
    text = np.random.default_rng(0).integers(0, pair.target.network.config.vocab_size, 512)
    found = [
        containment(model, pair.exit_layer, text, 4, 128) for model in (pair.target, jaxspec.load_huggingface(tmp_path))
    ]
    assert found[0] == found[1]
    assert found[0]["top8"] > 0.5
