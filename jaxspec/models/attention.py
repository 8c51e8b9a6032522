"""Attention with and without memory: the callbacks under which a network's layers run.

The cache has a fixed capacity S, the last row of which stays free; what is visible is decided by positions alone, so
rolling back after a rejected window is arithmetic on lengths and copies nothing.
"""

from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxspec.models.base import Array, Attend, Cache, Network, Params, Rows, SinkScores
from jaxspec.models.config import DecoderConfig, Scores
from jaxspec.models.taps import run_layers

#: Tokens of a prompt that are run at a time.
CHUNK = 256
#: Fewest rows of a cache that are read; otherwise as many as are in use, rounded up to this times a power of two.
READ = 256
#: Bytes of a layer's rows, of all devices, below which a TPU reads them all: its compiler cannot fetch them ahead of a
#: branch, which by its own estimates costs more than fewer rows save, but for ``MANY`` tokens.
SMALL_ON_TPU, MANY = 32 << 20, 64
#: Columns of ones by which weights are multiplied to sum them: a product with one column is none on a TPU.
ONES = 8


def init_cache(config: DecoderConfig, batch: int, capacity: int, dtype: jnp.dtype = jnp.float32) -> Cache:
    """Return zero rows for every layer: keys and values, each [B, G, S, head_size]."""
    shape = (batch, config.num_kv_heads, capacity, config.head_size)
    return tuple((jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for _ in range(config.num_layers))


def write(rows: Array, new: Array, positions: Array) -> Array:
    """Write new [B, G, T, head_size] into rows [B, G, S, head_size] from ``positions`` [B], or [] for all, on."""
    if positions.ndim == 0:
        return jax.lax.dynamic_update_slice_in_dim(rows, new, positions, axis=2)
    if rows.shape[0] == 1:
        return jax.lax.dynamic_update_slice(rows, new, (0, 0, positions[0], 0))

    def update(old: Array, part: Array, start: Array) -> Array:
        at = start + jnp.arange(part.shape[0])
        return old.at[at].set(part, unique_indices=True, indices_are_sorted=True)

    # One index a row and head, so that a divided cache stays where it is. On a TPU a scatter of whole slices becomes a
    # loop over the sequences, and one of rows of all heads wants these side by side, for which it copies the cache.
    return jax.vmap(jax.vmap(update))(rows, new, jnp.broadcast_to(positions[:, None], rows.shape[:2]))


def fill(
    network: Network,
    params: Params,
    tokens: Array,
    capacity: int,
    taps: tuple[int, ...] = (),
    finish: Callable[[dict[int, Array], Array], Any] = lambda streams, x: None,
) -> tuple[Cache, Any]:
    """Return a cache with the rows of prompts [B, P]; long ones are run ``CHUNK`` tokens at a time, in constant memory.

    Args:
        network: the model.
        params: its parameters.
        tokens: prompts; if longer than ``CHUNK``, a multiple of it.
        capacity: rows of the cache.
        taps: layers i before which the residual stream is kept (``run_layers``).
        finish: (streams by tap, stream after the last layer) of a chunk → leaves [B, T, …] to keep of it.

    Returns:
        The cache, and what ``finish`` returned, for the whole prompts.
    """
    embedded = jax.eval_shape(network.embed, params, tokens)
    cache = init_cache(network.config, len(tokens), capacity, embedded.dtype)
    layers = range(network.config.num_layers)

    def run(cache: Cache, tokens: Array, start: Array) -> tuple[Cache, Any]:
        positions = start + jnp.broadcast_to(jnp.arange(tokens.shape[1])[None], tokens.shape)
        x, attend = network.embed(params, tokens), cached(positions, start)
        x, cache, streams = run_layers(network, params, x, positions, cache, attend, layers, taps)
        return cache, finish(streams, x)

    return in_chunks(run, cache, tokens)


def in_chunks(run: Callable[[Any, Any, Array], tuple[Any, Any]], state: Any, values: Any) -> tuple[Any, Any]:
    """Run (state, values, start) → (state, kept) over values [B, P, …], ``CHUNK`` of P at a time; kept is [B, P, …]."""
    batch, length = jax.tree.leaves(values)[0].shape[:2]
    if length <= CHUNK:
        return run(state, values, jnp.int32(0))
    split = lambda leaf: jnp.moveaxis(leaf.reshape(batch, -1, CHUNK, *leaf.shape[2:]), 1, 0)  # noqa: E731
    join = lambda leaf: jnp.moveaxis(leaf, 0, 1).reshape(batch, length, *leaf.shape[3:])  # noqa: E731
    parts = jax.tree.map(split, values), CHUNK * jnp.arange(length // CHUNK)
    state, kept = jax.lax.scan(lambda state, part: run(state, *part), state, parts)
    return state, jax.tree.map(join, kept)


def causal() -> Attend:
    """Return attention of a whole sequence to itself, without memory: training and scoring."""

    def attend(queries: Array, keys: Array, values: Array, rows: None, scores: Scores = Scores()) -> tuple[Array, None]:
        positions = jnp.arange(keys.shape[2])
        seen = _within(positions[None, :], positions[:, None], scores.window)
        return softmax_attention(queries, keys, values, seen[None], scores), rows

    return attend


def cached(positions: Array, start: Array | None = None) -> Attend:
    """Return attention of tokens at consecutive ``positions`` [B, T] to the cache; their rows are written there first.

    If all sequences start at the same position, ``start`` is it.
    """
    first = positions[:, 0] if start is None else start

    def attend(queries: Array, keys: Array, values: Array, rows: Rows, scores: Scores = Scores()) -> tuple[Array, Rows]:
        rows = write(rows[0], keys, first), write(rows[1], values, first)
        return attend_in_use(queries, rows, positions, scores), rows

    return attend


class TreeRows(NamedTuple):
    """Rows of one layer while a tree is run: those of the cache, which it only reads, and those of its nodes.

    Attributes:
        committed: keys and values of the cache, [B, G, S, head_size] each.
        nodes: of the nodes that have been run, [B, G, n, head_size] each.
    """

    committed: Rows
    nodes: Rows


def with_tree(cache: Cache) -> tuple[TreeRows, ...]:
    """Return the rows of every layer, beside which those of a tree find room."""
    return tuple(TreeRows((keys, values), (keys[:, :, :0], values[:, :, :0])) for keys, values in cache)


def in_tree(position: Array, depth: Any, ancestors: Any, nodes: range, along: Array | None = None) -> Attend:
    """Return attention of a tree's ``nodes`` to the cache below ``position`` and to their ancestors in the tree.

    The cache has ``TreeRows``; ``keep_path`` moves those of an accepted path into it. The position of a node in the
    sequence, by which sliding windows count, is ``position`` + depth.

    Args:
        position: of the root: [B].
        depth: of all nodes: [b, N], b = B or 1.
        ancestors: which nodes each sees, itself included: [b, N, N].
        nodes: that are run; nodes before them have their rows.
        along: consecutive positions [B, K] of tokens that are run before the nodes, with rows in the cache.
    """
    steps = jnp.asarray(depth)[:, nodes.start : nodes.stop]
    extra = 0 if along is None else along.shape[1]

    def before(capacity: int, reach: int | None) -> Array:
        rows = jnp.arange(capacity)[None, None, :]
        mask = jnp.broadcast_to(rows < position[:, None, None], (len(position), len(nodes), capacity))
        if reach is not None:
            mask &= _within(rows, position[:, None, None] + steps[..., None], reach)
        return mask if along is None else jnp.concatenate([visible(capacity, along, reach), mask], axis=1)

    def own(reach: int | None) -> Array:
        mask = jnp.asarray(ancestors)[:, nodes.start : nodes.stop, : nodes.stop]
        if reach is not None:
            mask &= steps[..., None] - jnp.asarray(depth)[:, None, : nodes.stop] < reach
        return jnp.pad(mask, ((0, 0), (extra, 0), (0, 0)))

    def attend(
        queries: Array, keys: Array, values: Array, rows: TreeRows, scores: Scores = Scores()
    ) -> tuple[Array, TreeRows]:
        committed = rows.committed
        if along is not None:
            first = keys[:, :, :extra], values[:, :, :extra]
            committed = write(committed[0], first[0], along[:, 0]), write(committed[1], first[1], along[:, 0])
        join = lambda old, new: jnp.concatenate([old, new[:, :, extra:]], axis=2)  # noqa: E731
        fresh = join(rows.nodes[0], keys), join(rows.nodes[1], values)
        capacity = committed[0].shape[2]

        def some(bound: int, queries: Array, committed: Rows, fresh: Rows, masks: tuple[Array, Array]) -> Array:
            keys, values = (side[:, :, :bound] for side in committed)
            return attend_parts(queries, [(keys, values, masks[0][:, :, :bound]), (*fresh, masks[1])], scores)

        masks = before(capacity, scores.window), own(scores.window)
        used = jnp.max(position if along is None else along + 1)
        found = in_use(some, partial(some, capacity), used, capacity, queries, committed, fresh, masks)
        return found, TreeRows(committed, fresh)

    return attend


def keep_path(rows: Sequence[TreeRows], position: Array, path: Array) -> Cache:
    """Return the cache with the rows of a tree's nodes ``path`` [B, D+1] from ``position`` [B] on.

    Args:
        rows: of every layer; keys keep their rotation.
        position: of the root.
        path: numbers of nodes in the order in which they were run; one that was not run gives an arbitrary row.
    """

    def kept(layer: TreeRows) -> Rows:
        pick = lambda new: jnp.take_along_axis(new, path[:, None, :, None], axis=2, mode="clip")  # noqa: E731
        keys, values = (write(old, pick(new), position) for old, new in zip(*layer, strict=True))
        return keys, values

    return tuple(kept(layer) for layer in rows)


def visible(capacity: int, positions: Array, window: int | None = None) -> Array:
    """Return the rows that queries at ``positions`` [B, T] see, up to their own: a mask [B, T, S]."""
    return _within(jnp.arange(capacity)[None, None, :], positions[:, :, None], window)


def _within(rows: Array, positions: Array, window: int | None) -> Array:
    """Return whether the position of a row is at most ``positions``, and among the last ``window`` up to there."""
    seen = rows <= positions
    return seen if window is None else seen & (rows > positions - window)


def attend_cache(queries: Array, rows: Rows, seen: Array, scores: Scores) -> Array:
    """Attend to rows just extended, of which the last one stays free, whatever the capacity."""
    if queries.shape[3] == 1:
        # XLA:CPU extends a cache twice and copies it four times if a single token then reads it as it is.
        rows, seen = jax.tree.map(lambda part: part[:, :, :-1], rows), seen[:, :, :-1]
    return softmax_attention(queries, *rows, seen, scores)


def attend_in_use(queries: Array, rows: Rows, positions: Array, scores: Scores) -> Array:
    """Attend to the rows up to ``positions`` [B, T]; of a long cache only those in use are read (``READ``)."""
    seen = visible(rows[0].shape[2], positions, scores.window)

    def attend(bound: int, queries: Array, rows: Rows, seen: Array) -> Array:
        return softmax_attention(queries, rows[0][:, :, :bound], rows[1][:, :, :bound], seen[:, :, :bound], scores)

    every, used = partial(attend_cache, scores=scores), jnp.max(positions) + 1
    return in_use(attend, every, used, rows[0].shape[2], queries, rows, seen)


def in_use(
    some: Callable[..., Array],
    every: Callable[..., Array],
    used: Array,
    most: int,
    queries: Array,
    rows: Rows,
    *rest: Any,
) -> Array:
    """Attend to the first rows of a cache: as many as are in use, rounded up; to all of a small one on a TPU.

    Args:
        some: (bound, queries, rows, *rest) → attention to the first ``bound`` rows.
        every: (queries, rows, *rest) → attention to all rows.
        used: rows in use, [].
        most: rows that may be in use.
        queries: of the tokens.
        rows: of a layer.
        rest: what else both are given.
    """
    bounds = [READ << power for power in range(most.bit_length()) if READ << power < most]

    def chosen(used: Array, *operands: Any) -> Array:
        enough = jnp.sum(used > jnp.asarray(bounds, jnp.int32), dtype=jnp.int32)
        return jax.lax.switch(enough, [*(partial(some, bound) for bound in bounds), every], *operands)

    small = sum(side.size * side.dtype.itemsize for side in rows) < SMALL_ON_TPU and queries.shape[3] < MANY
    if not (bounds and small):
        return chosen(used, queries, rows, *rest) if bounds else every(queries, rows, *rest)
    whole = lambda used, *operands: every(*operands)  # noqa: E731
    return jax.lax.platform_dependent(used, queries, rows, *rest, tpu=whole, default=chosen)


def softmax_attention(queries: Array, keys: Array, values: Array, seen: Array, scores: Scores = Scores()) -> Array:
    """Return softmax(cap·tanh(scale·q·kᵀ / cap))·v over the rows that a query sees; the softmax in float32.

    Args:
        queries: [B, G, Q, T, head_size].
        keys: [B, G, S, head_size].
        values: likewise.
        seen: which rows a query sees: [B or 1, T, S].
        scores: scale (default 1/√head_size), cap (default none) and sinks (default none).
    """
    return attend_parts(queries, [(keys, values, seen)], scores)


def attend_parts(queries: Array, parts: Sequence[tuple[Array, Array, Array]], scores: Scores = Scores()) -> Array:
    """Attend to rows in several arrays as if these were one: keys, values and the rows that are seen, of each.

    Raises:
        ValueError: scores with sinks, but without their logits.
    """
    batch, groups, shared, length, size = queries.shape
    scale = size**-0.5 if scores.scale is None else scores.scale
    queries = queries.reshape(batch, groups, shared * length, size) * jnp.asarray(scale, queries.dtype)

    def weighed(keys: Array, seen: Array) -> Array:
        weights = jnp.einsum("bgxh,bgsh->bgxs", queries, keys, preferred_element_type=jnp.float32)
        if scores.softcap is not None:
            weights = scores.softcap * jnp.tanh(weights / scores.softcap)
        return jnp.where(jnp.tile(seen, (1, shared, 1))[:, None], weights, -jnp.inf)

    columns, sinks = [weighed(keys, seen) for keys, _, seen in parts], sink_logits(scores)
    if len(parts) == 1 and sinks is None:
        weights = jax.nn.softmax(columns[0], axis=-1).astype(parts[0][1].dtype)
        context = jnp.einsum("bgxs,bgsh->bgxh", weights, parts[0][1])
    else:
        sink = None if sinks is None else jnp.repeat(sinks.astype(jnp.float32), length, axis=1)[None, :, :, None]
        context = _softmax_of_parts(columns, [values for _, values, _ in parts], sink)
    return context.reshape(batch, groups, shared, length, size)


def _softmax_of_parts(columns: Sequence[Array], values: Sequence[Array], sink: Array | None) -> Array:
    """Return softmax([c₁ c₂ … sink])·[v₁; v₂; …; 0] without joining the columns.

    With m their maximum that is Σᵢ exp(cᵢ − m)·vᵢ / (Σᵢ Σ exp(cᵢ − m) + exp(sink − m)).
    The sums of weights are products with ones: a TPU computes exponentials beside a product, and anew beside a sum.

    Args:
        columns: scores [B, G, X, Sᵢ], float32.
        values: [B, G, Sᵢ, head_size].
        sink: a logit without a value [1, G, X, 1], or None.
    """
    tops = [jnp.max(each, axis=-1, keepdims=True) for each in columns] + ([] if sink is None else [sink])
    most = jax.lax.stop_gradient(reduce(jnp.maximum, tops))
    product = partial(jnp.einsum, "bgxs,bgsh->bgxh", preferred_element_type=jnp.float32)
    weights = [jnp.exp(each - most) for each in columns]
    ones = [jnp.ones((*side.shape[:3], ONES), each.dtype) for each, side in zip(weights, values, strict=True)]
    rounded = [each.astype(side.dtype) for each, side in zip(weights, values, strict=True)]
    context = reduce(jnp.add, map(product, rounded, values))
    total = reduce(jnp.add, map(product, weights, ones))[..., :1]
    total = total if sink is None else total + jnp.exp(sink - most)
    return (context / total).astype(values[0].dtype)


def sink_logits(scores: Scores) -> Array | None:
    """Return the logits of sinks [G, Q]; None if there are none.

    Raises:
        ValueError: the layer has sinks, but its caller has not passed their logits.
    """
    if not scores.sinks:
        return None
    if not isinstance(scores, SinkScores) or scores.logits is None:
        raise ValueError(
            "expected the logits of attention sinks (SelfAttention.with_sinks), got none; use a draft without sinks"
        )
    return scores.logits
