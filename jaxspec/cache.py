"""Attention with and without memory: the callbacks under which a network's layers run.

The cache has a fixed capacity S, the last row of which stays free; what is visible is decided by positions alone, so
rolling back after a rejected window is arithmetic on lengths and copies nothing.
"""

import jax
import jax.numpy as jnp

from jaxspec.config import DecoderConfig
from jaxspec.types import Array, Attend, Cache, Rows

#: Up to this batch one in-place slice a sequence is fastest on CPU; beyond, one scatter compiles faster.
MAX_SLICES = 8


def init_cache(config: DecoderConfig, batch: int, capacity: int, dtype: jnp.dtype = jnp.float32) -> Cache:
    """Zero rows for every layer: keys and values, each [B, G, S, head_size]."""
    shape = (batch, config.num_kv_heads, capacity, config.head_size)
    return tuple((jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for _ in range(config.num_layers))


def write(rows: Array, new: Array, positions: Array) -> Array:
    """Writes new [B, G, T, head_size] into rows [B, G, S, head_size] from ``positions`` [B] on."""
    if rows.shape[0] > MAX_SLICES:
        update = lambda old, part, place: jax.lax.dynamic_update_slice(old, part, (0, place, 0))  # noqa: E731
        return jax.vmap(update)(rows, new, positions)
    for index in range(rows.shape[0]):
        rows = jax.lax.dynamic_update_slice(rows, new[index : index + 1], (index, 0, positions[index], 0))
    return rows


def causal() -> Attend:
    """Attention of a whole sequence to itself, without memory: training and scoring."""

    def attend(queries: Array, keys: Array, values: Array, rows: None) -> tuple[Array, None]:
        length = keys.shape[2]
        seen = jnp.arange(length)[None, :] <= jnp.arange(length)[:, None]
        return softmax_attention(queries, keys, values, seen[None]), rows

    return attend


def cached(positions: Array) -> Attend:
    """Attention of tokens at consecutive ``positions`` [B, T] to the cache, which they extend first."""

    def attend(queries: Array, keys: Array, values: Array, rows: Rows) -> tuple[Array, Rows]:
        rows = write(rows[0], keys, positions[:, 0]), write(rows[1], values, positions[:, 0])
        return attend_cache(queries, rows, visible(rows[0].shape[2], positions + 1)), rows

    return attend


def visible(capacity: int, lengths: Array) -> Array:
    """Rows below ``lengths`` [B, T] as a mask [B, T, S]."""
    return jnp.arange(capacity)[None, None, :] < lengths[:, :, None]


def attend_cache(queries: Array, rows: Rows, seen: Array) -> Array:
    """Attention to rows just extended, of which the last one stays free, whatever the capacity."""
    if queries.shape[3] == 1:
        # XLA:CPU extends a cache twice and copies it four times if a single token then reads it as it is.
        rows, seen = jax.tree.map(lambda part: part[:, :, :-1], rows), seen[:, :, :-1]
    return softmax_attention(queries, *rows, seen)


def softmax_attention(queries: Array, keys: Array, values: Array, seen: Array) -> Array:
    """softmax(q·kᵀ / √head_size)·v over the rows that a query sees.

    Args:
        queries: [B, G, Q, T, head_size].
        keys: [B, G, S, head_size].
        values: likewise.
        seen: which rows a query sees: [B or 1, T, S].
    """
    batch, groups, shared, length, size = queries.shape
    queries = queries.reshape(batch, groups, shared * length, size) * size**-0.5
    scores = jnp.einsum("bgxh,bgsh->bgxs", queries, keys)
    scores = jnp.where(jnp.tile(seen, (1, shared, 1))[:, None], scores, -jnp.inf)
    context = jnp.einsum("bgxs,bgsh->bgxh", jax.nn.softmax(scores, axis=-1), values)
    return context.reshape(batch, groups, shared, length, size)
