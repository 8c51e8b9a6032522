"""Attention to rows in several arrays, against the softmax of all of them joined."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.models.attention import attend_parts, softmax_attention
from jaxspec.models.base import SinkScores
from jaxspec.models.config import Scores

B, G, Q, T, H = 2, 3, 2, 4, 8
SIZES = (7, 5, 1)


def inputs(dtype):
    draw = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(draw.normal(size=shape), dtype)  # noqa: E731
    queries = 3 * normal(B, G, Q, T, H)
    keys, values = normal(B, G, sum(SIZES), H), normal(B, G, sum(SIZES), H)
    seen = jnp.asarray(draw.random((B, T, sum(SIZES))) < 0.6).at[:, :, -1].set(True)
    return queries, keys, values, seen.at[0, 1, : SIZES[0]].set(False)  # one part that a query does not see at all


def in_parts(queries, keys, values, seen, scores):
    cuts = np.cumsum(SIZES)[:-1].tolist()
    split = zip(*(jnp.split(each, cuts, axis=2) for each in (keys, values, seen)), strict=True)
    return attend_parts(queries, list(split), scores)


def of_sinks():
    return SinkScores(sinks=True, logits=jnp.asarray(np.random.default_rng(1).normal(size=(G, Q)), jnp.float32))


@pytest.mark.parametrize(
    "scores", [Scores(), Scores(scale=0.2, softcap=2.0), of_sinks()], ids=["plain", "cap", "sinks"]
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 2e-6), (jnp.bfloat16, 2e-2)])
def test_parts_are_as_one_array(scores, dtype, tolerance):
    queries, keys, values, seen = inputs(dtype)
    wide = [each.astype(jnp.float32) for each in (queries, keys, values)]
    expected = softmax_attention(*wide, seen, scores)
    found = in_parts(queries, keys, values, seen, scores)
    assert found.dtype == dtype
    np.testing.assert_allclose(found.astype(jnp.float32), expected, atol=tolerance)


@pytest.mark.parametrize("scores", [Scores(), of_sinks()], ids=["plain", "sinks"])
def test_gradients_of_parts(scores):
    queries, keys, values, seen = inputs(jnp.float32)
    loss = lambda attend: lambda *moved: jnp.sum(jnp.sin(attend(*moved, seen, scores)))  # noqa: E731
    expected = jax.grad(loss(softmax_attention), (0, 1, 2))(queries, keys, values)
    found = jax.grad(loss(in_parts), (0, 1, 2))(queries, keys, values)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


def test_sinks_against_numpy():
    queries, keys, values, seen = inputs(jnp.float32)
    scores = of_sinks()
    logits = np.einsum("bgqth,bgsh->bgqts", queries, keys, dtype=np.float64) * H**-0.5
    logits = np.where(np.asarray(seen)[:, None, None], logits, -np.inf)
    sink = np.broadcast_to(np.asarray(scores.logits, np.float64)[None, :, :, None, None], (*logits.shape[:-1], 1))
    weights = np.exp(np.concatenate([logits, sink], axis=-1))
    weights = (weights / weights.sum(-1, keepdims=True))[..., :-1]
    expected = np.einsum("bgqts,bgsh->bgqth", weights, values)
    np.testing.assert_allclose(in_parts(queries, keys, values, seen, scores), expected, atol=2e-6)
