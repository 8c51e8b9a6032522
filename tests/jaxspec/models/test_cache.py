"""The cache: what a token sees of it, and where new rows go."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.models.attention import attend_cache, softmax_attention, visible, write
from jaxspec.models.config import Scores

GROUPS, SHARED, CAPACITY, SIZE = 2, 3, 12, 4


def draw(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


SCORES = {"plain": Scores(), "scaled": Scores(0.9), "capped": Scores(softcap=0.5), "window": Scores(window=3)}


def oracle(queries, keys, values, positions, scores):
    """One query at a time, in NumPy, over the rows up to its own."""
    out = np.zeros(queries.shape)
    for b, g, q, t in np.ndindex(*queries.shape[:4]):
        first = 0 if scores.window is None else max(0, positions[b, t] + 1 - scores.window)
        rows = range(first, positions[b, t] + 1)
        logits = keys[b, g, rows] @ queries[b, g, q, t] * (scores.scale or SIZE**-0.5)
        weights = np.exp(logits if scores.softcap is None else scores.softcap * np.tanh(logits / scores.softcap))
        out[b, g, q, t] = weights / weights.sum() @ values[b, g, rows]
    return out


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("attention", [softmax_attention, attend_cache], ids=["all rows", "cache"])
@pytest.mark.parametrize("scores", SCORES.values(), ids=SCORES.keys())
def test_attention_is_softmax_over_the_rows_seen(tokens, attention, scores):
    """The last row of a cache is free: no token sees it, one alone or several."""
    queries = draw(0, 2, GROUPS, SHARED, tokens, SIZE)
    keys, values = draw(1, 2, GROUPS, CAPACITY, SIZE), draw(2, 2, GROUPS, CAPACITY, SIZE)
    positions = np.asarray([[3], [CAPACITY - 1 - tokens]]) + np.arange(tokens)[None]
    seen = visible(CAPACITY, jnp.asarray(positions), scores.window)
    rows = ((keys, values),) if attention is attend_cache else (keys, values)
    context = attention(queries, *rows, seen, scores)
    arrays = (np.asarray(a, np.float64) for a in (queries, keys, values))
    np.testing.assert_allclose(context, oracle(*arrays, positions, scores), atol=1e-5)


@pytest.mark.parametrize("batch", [1, 2, 9])
def test_rows_are_written_at_each_sequences_position(batch):
    rows, new = draw(3, batch, GROUPS, CAPACITY, SIZE), draw(4, batch, GROUPS, 2, SIZE)
    positions = np.arange(batch) % (CAPACITY - 1)
    expected = np.array(rows)
    for index, position in enumerate(positions):
        expected[index, :, position : position + 2] = new[index]
    np.testing.assert_array_equal(write(rows, new, jnp.asarray(positions)), expected)
