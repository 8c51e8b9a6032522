"""The cache: what a token sees of it, and where new rows go."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.cache import MAX_SLICES, attend_cache, softmax_attention, visible, write

GROUPS, SHARED, CAPACITY, SIZE = 2, 3, 12, 4


def draw(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def oracle(queries, keys, values, seen):
    """One query at a time, in NumPy, over the rows it sees."""
    out = np.zeros(queries.shape)
    for b, g, q, t in np.ndindex(*queries.shape[:4]):
        rows = np.flatnonzero(seen[b, t])
        scores = keys[b, g, rows] @ queries[b, g, q, t] / SIZE**0.5
        weights = np.exp(scores - scores.max())
        out[b, g, q, t] = weights / weights.sum() @ values[b, g, rows]
    return out


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("attention", [softmax_attention, "cache"])
def test_attention_is_softmax_over_the_rows_seen(tokens, attention):
    """The last row of a cache is free: no token sees it, one alone or several."""
    queries = draw(0, 2, GROUPS, SHARED, tokens, SIZE)
    keys, values = draw(1, 2, GROUPS, CAPACITY, SIZE), draw(2, 2, GROUPS, CAPACITY, SIZE)
    seen = visible(CAPACITY, jnp.asarray([[3], [CAPACITY - tokens]]) + jnp.arange(tokens)[None])
    if attention is softmax_attention:
        found = attention(queries, keys, values, seen)
    else:
        found = attend_cache(queries, (keys, values), seen)
    arrays = (np.asarray(a, np.float64) for a in (queries, keys, values))
    np.testing.assert_allclose(found, oracle(*arrays, np.asarray(seen)), atol=1e-5)


@pytest.mark.parametrize("batch", [2, MAX_SLICES + 1])
def test_rows_are_written_where_each_sequence_stands(batch):
    rows, new = draw(3, batch, GROUPS, CAPACITY, SIZE), draw(4, batch, GROUPS, 2, SIZE)
    positions = np.arange(batch) % (CAPACITY - 1)
    expected = np.array(rows)
    for index, place in enumerate(positions):
        expected[index, :, place : place + 2] = new[index]
    np.testing.assert_array_equal(write(rows, new, jnp.asarray(positions)), expected)
