"""Layers in tracks: every track runs on its own heads and hidden units; tracks meet at the ends of segments.

A mesh whose ``model`` axis has as many devices as there are tracks holds one on each, because parameters are split
along the axes along which a mesh divides them (``partition``). Only attention is called for all tracks at once: heads
are independent, so the callback and its cache [B, G, S, head_size] stay the same.

Where a device holds several tracks, XLA:CPU transposes weights in every forward: decoding with four tracks on a single
device took four to five times as long as without. Tracks are faster only on a mesh.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxspec.models._partition import partition
from jaxspec.models.base import Array, Attend, Params
from jaxspec.models.config import Scores, Tracks
from jaxspec.models.layers import Layer

#: What is added to the residual stream as it is: every track adds its share, so that it is added once.
SHARED_BIASES = ("out_bias", "down_bias")


def segments(tracks: Tracks, num_layers: int, layers: range) -> list[range]:
    """Return the segments that ``layers`` consist of.

    Raises:
        ValueError: they begin or end within a segment, where the tracks have not met.
    """
    meetings = tracks.meetings(num_layers)
    if layers.start not in meetings or layers.stop not in meetings:
        raise ValueError(
            f"expected layers that begin and end where tracks meet, of {meetings}, got {layers.start} to "
            f"{layers.stop}; use an exit layer among these, or a model without tracks"
        )
    inner = [meeting for meeting in meetings if layers.start <= meeting <= layers.stop]
    return [range(start, stop) for start, stop in zip(inner, inner[1:], strict=False)]


def meet(x: Array, tracks: Array) -> Array:
    """Return x + Σ_t (h_t − x): what tracks h [n, D, B, T] have added to x [D, B, T]; on a mesh, the one all-reduce."""
    return x + jnp.sum(tracks - x[None], axis=0)


def side_by_side(
    layer: Layer, x: Array, turn: Callable[[Array], Array], attend: Attend, rows: Any, scores: Scores
) -> tuple[Array, Any]:
    """Run ``Layer.__call__`` for every track of x [n, D, B, T]; rows are those of the whole layer."""
    graph, state = nnx.split(layer)
    params, axes = split(nnx.to_pure_dict(state), len(x))

    def heads(params: Params, x: Array) -> tuple[Array, Array, Array]:
        return nnx.merge(graph, params).heads(x, turn)

    def rest(params: Params, x: Array, context: Array) -> Array:
        return nnx.merge(graph, params).after_attention(x, context)

    projected = jax.vmap(heads, (axes, 0), out_axes=1)(params, x)
    queries, keys, values = (part.reshape(part.shape[0], -1, *part.shape[3:]) for part in projected)
    context, rows = attend(queries, keys, values, rows, layer.attention.with_sinks(scores))
    context = context.reshape(context.shape[0], len(x), -1, *context.shape[2:])
    return jax.vmap(rest, (axes, 0, 1))(params, x, context), rows


def split(layer: Params, count: int) -> tuple[Params, Params]:
    """Return a layer's parameters with an axis of tracks, and its index in each leaf; None: tracks share the leaf."""
    axes = jax.tree.map(lambda _, spec: _axis(spec), layer, partition(layer))

    def leaf(path: tuple, leaf: Array, axis: int | None) -> Array:
        if str(getattr(path[-1], "key", "")) in SHARED_BIASES:
            return leaf / count
        return leaf if axis is None else leaf.reshape(*leaf.shape[:axis], count, -1, *leaf.shape[axis + 1 :])

    return jax.tree_util.tree_map_with_path(leaf, layer, axes), axes


def _axis(spec: Any) -> int | None:
    return next((axis for axis, name in enumerate(spec) if name == "model"), None)
