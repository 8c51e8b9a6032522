"""A long cache is read only as far as it is in use: the same logits, by every method, whole and on several devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxspec
from jaxspec.drafts import trees
from jaxspec.models import attention
from jaxspec.models.attention import attend_in_use, softmax_attention, visible
from jaxspec.models.config import Scores
from tests.support.jaxspec import models


@pytest.fixture
def few_rows(monkeypatch):
    """Buckets of 4, 8, 16, … rows."""
    jax.clear_caches()
    monkeypatch.setattr(attention, "READ", 4)
    yield
    jax.clear_caches()


@pytest.mark.parametrize("length", [1, 3])
@pytest.mark.parametrize("window", [None, 5])
def test_attention_is_that_to_the_whole_cache(few_rows, length, window):
    random = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(random.normal(size=shape), jnp.float32)  # noqa: E731
    queries, rows, scores = draw(2, 2, 3, length, 8), (draw(2, 2, 33, 8), draw(2, 2, 33, 8)), Scores(window=window)
    run = jax.jit(lambda positions: attend_in_use(queries, rows, positions, scores))
    for last in range(length - 1, 32):
        positions = jnp.asarray([[last - 1], [last]]) - jnp.arange(length)[None, ::-1]
        positions = jnp.maximum(positions, 0)
        whole = softmax_attention(queries, *rows, visible(33, positions, window), scores)
        np.testing.assert_allclose(run(positions), whole, atol=2e-6)


METHODS = {
    "autoregressive": lambda: jaxspec.autoregressive(models.target()),
    "two devices": lambda: jaxspec.autoregressive(models.target(), jaxspec.mesh_of(jax.devices()[:2])),
    "speculative": lambda: models.speculative(4),
    "lookup": lambda: jaxspec.lookup(models.target(), 4),
    "mirror": lambda: models.mirror(4, 2),
    "tree": lambda: jaxspec.speculative(models.target(), models.draft(), tree=trees.static((2, 2, 1))),
    "grown tree": lambda: jaxspec.speculative(models.target(), models.draft(), tree=trees.dynamic(2, 3, 6)),
    "streams": lambda: models.mirror(4, 2, draft=models.streaming()),
}


@pytest.mark.parametrize("name", METHODS)
def test_tokens_are_those_of_plain_decoding(few_rows, name):
    found = jaxspec.generate(METHODS[name](), models.PROMPTS, models.NEW_TOKENS)
    assert found.tokens == models.expected()


def test_a_long_prompt_is_run_in_chunks(few_rows, monkeypatch):
    expected = jaxspec.generate(jaxspec.autoregressive(models.target()), [list(range(10)) * 4], 8).tokens
    jax.clear_caches()
    monkeypatch.setattr(attention, "CHUNK", 8)
    assert jaxspec.generate(jaxspec.autoregressive(models.target()), [list(range(10)) * 4], 8).tokens == expected
