"""A user's own model decodes as target and as draft: it needs three pure functions and a shape."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxspec
from jaxspec.training import log_probabilities
from tests.support.jaxspec import models, own_models

BUILDERS = {
    "bigram": own_models.bigram,
    "plain": own_models.plain_attention,
    "linen": own_models.linen_attention,
}
NEW_TOKENS = 10


def decode(method):
    return jaxspec.generate(method, models.PROMPTS, NEW_TOKENS)


@pytest.fixture(params=BUILDERS, scope="module")
def own(request):
    return BUILDERS[request.param]()


@pytest.fixture(scope="module")
def text(own):
    return [models.greedy_text(own, prompt, NEW_TOKENS) for prompt in models.PROMPTS]


def test_own_text_is_not_constant(text):
    assert all(len(set(row)) > 1 for row in text)


def test_own_target_decodes_with_every_method(own, text):
    """With its last layer as exit the next window has always been rolled out."""
    assert decode(jaxspec.autoregressive(own)).tokens == text
    assert decode(models.speculative(target=own)).tokens == text
    mirror = decode(models.mirror(target=own, exit_layer=own.network.config.num_layers, num_candidates=1))
    assert mirror.tokens == text
    assert mirror.stats.reuse_rate == 1.0


@pytest.mark.parametrize("build", [models.mirror, pytest.param(models.speculative, marks=pytest.mark.slow)])
def test_own_draft_changes_no_token(own, build):
    expected = [row[:NEW_TOKENS] for row in models.expected()]
    assert decode(build(draft=own)).tokens == expected


@pytest.mark.parametrize("build", [models.speculative, pytest.param(models.mirror, marks=pytest.mark.slow)])
def test_own_model_accepts_itself(own, text, build):
    result = decode(build(target=own, draft=own, **({"exit_layer": 1} if build is models.mirror else {})))
    assert result.tokens == text
    assert result.stats.verified == 3 * result.stats.steps


def test_bigram_text_follows_its_table():
    model = own_models.bigram()
    token, expected = models.PROMPTS[0][-1], []
    for _ in range(NEW_TOKENS):
        token = int(np.argmax(np.asarray(model.params)[token]))
        expected.append(token)
    assert decode(jaxspec.autoregressive(model)).tokens[0] == expected


def test_own_log_probabilities_are_normalised(own):
    probabilities = jnp.exp(log_probabilities(own.network, own.params, jnp.asarray([models.PROMPTS[1]])))
    np.testing.assert_allclose(probabilities.sum(axis=0), 1.0, atol=1e-5)
