"""Speculative streaming: a draft that guesses several tokens ahead in the pass that says the next one.

Stream j of a place starts from the main stream's hidden state after ``start`` layers and runs the other layers along
with it: s_j = h + e_j + U_j·V_j·h. It attends to what the main stream sees there and to streams 1..j of its own place,
stands j positions further on, and its logits, through the same head, are a guess at the token j places behind the next
one. The main stream never sees a stream, so that it says what the plain draft says.

Source: Bhendawade et al., Speculative Streaming (arXiv 2402.11131), §3; Mirror-SD (arXiv 2510.13161), §3. The low-rank
map, which makes streams worth something while the draft itself stays frozen, is ours.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from jaxspec.models.attention import softmax_attention
from jaxspec.models.base import Array, Attend, Model, Network, Params, Streams
from jaxspec.models.config import DecoderConfig, Scores
from jaxspec.models.vocabulary import unfitted


def streaming(draft: Model, count: int = 2, *, start: int | None = None, rank: int = 32, seed: int = 0) -> Model:
    """A streaming draft from a plain one; its main stream is that draft, its streams are to be trained.

    Args:
        draft: the plain draft; its parameters are shared, not copied.
        count: lookahead streams.
        start: layers below the streams; default half of the draft's.
        rank: of the map with which a stream starts.
        seed: of the new parameters.

    Raises:
        ValueError: a draft that has streams already, a count or rank below 1, a start outside the draft.
    """
    draft = unfitted(draft)
    config = draft.network.config
    if draft.network.streams is not None:
        raise ValueError("expected a plain draft, got one with streams; pass the draft that it was made from")
    start = config.num_layers // 2 if start is None else start
    if count < 1 or rank < 1 or not 0 <= start < config.num_layers:
        raise ValueError(
            f"expected count >= 1, rank >= 1 and 0 <= start < {config.num_layers} (layers of the draft), got {count}, "
            f"{rank} and {start}"
        )
    if config.tracks is not None and start not in config.tracks.meetings(config.num_layers):
        raise ValueError(
            f"expected streams to start where tracks meet, {config.tracks.meetings(config.num_layers)}, got {start}"
        )
    own = init_streams(config, count, rank, jax.random.key(seed))
    return Model(network(draft.network, count, start), {"draft": draft.params, "streams": own}, draft.text)


def init_streams(config: DecoderConfig, count: int, rank: int, key: Array) -> Params:
    """Streams that start as the main stream does: e_j and U_j are zero."""
    return {
        "offset": jnp.zeros((count, config.width)),
        "reduce": jax.random.normal(key, (count, rank, config.width)) * config.width**-0.5,
        "expand": jnp.zeros((count, config.width, rank)),
    }


@lru_cache
def network(draft: Network, count: int, start: int) -> Network:
    """The streaming network over a plain one; its parameters are ``{"draft": ..., "streams": ...}``."""

    def main(function: Callable[..., Any], params: Params, *args: Any) -> Any:
        return function(params["draft"], *args)

    def partition(params: Params) -> Any:
        own = jax.tree.map(lambda _: PartitionSpec(), params["streams"])
        return {"draft": draft.partition(params["draft"]), "streams": own}

    def with_config(config: DecoderConfig) -> Network:
        return network(draft.with_config(config), count, start)  # type: ignore[misc]

    return Network(
        draft.config,
        partial(main, draft.embed),
        partial(main, draft.blocks),
        partial(main, draft.logits),
        partition,
        with_config if draft.with_config else None,
        Streams(draft, count, start),
    )


def about(model: Model) -> dict[str, Any] | None:
    """What ``like`` needs to know of a model's streams; None without any."""
    streams = model.network.streams
    if streams is None:
        return None
    reduce = model.params["streams"]["reduce"]
    return {"count": streams.count, "start": streams.start, "rank": reduce.shape[1], "dtype": reduce.dtype.name}


def like(draft: Network, params: Params, count: int, start: int, rank: int, dtype: str) -> tuple[Network, Params]:
    """The streaming network over a plain one, and the shapes of its parameters."""
    own = jax.eval_shape(lambda: init_streams(draft.config, count, rank, jax.random.key(0)))
    own = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), own)
    return network(draft, count, start), {"draft": params, "streams": own}


def limited(draft: Model, count: int) -> Model:
    """A streaming draft with no more than its first ``count`` streams; 0: the plain draft.

    Raises:
        ValueError: more streams than it has.
    """
    streams = draft.network.streams
    most = 0 if streams is None else streams.count
    if not 0 <= count <= most:
        raise ValueError(
            f"expected 0 to {most} streams, as many as the draft has, got {count}; jaxspec.streaming makes streams, "
            "jaxspec.training.fit_streams trains them"
        )
    if streams is None:
        return draft
    if count == 0:
        return Model(streams.draft, draft.params["draft"], draft.text)
    own = jax.tree.map(lambda leaf: leaf[:count], draft.params["streams"])
    params = {"draft": draft.params["draft"], "streams": own}
    return Model(network(streams.draft, count, streams.start), params, draft.text)


def forward(
    net: Network,
    params: Params,
    tokens: Array,
    positions: Array,
    cache: Any,
    attends: tuple[Attend, Attend],
    first: int = 0,
) -> tuple[Array, Any]:
    """Main stream and lookahead streams in one pass.

    Args:
        net: a streaming network.
        params: its parameters.
        tokens: of the main stream: [B, T].
        positions: theirs: [B, T].
        cache: rows of all layers.
        attends: attention below the streams and along them; the latter gets the streams' queries behind the main ones.
        first: tokens at the front that have no streams.

    Returns:
        Hidden states [D, B, T + (T − first)·k], those of streams behind, a place's next to each other; and the cache.
    """
    assert net.streams is not None
    (lower, upper), streams = attends, net.streams
    x, cache = net.blocks(params, net.embed(params, tokens), positions, cache, lower, range(streams.start))
    x = jnp.concatenate([x, _entered(params["streams"], x[:, :, first:])], axis=2)
    ahead = positions[:, first:, None] + 1 + jnp.arange(streams.count)[None, None]
    positions = jnp.concatenate([positions, ahead.reshape(len(positions), -1)], axis=1)
    return net.blocks(params, x, positions, cache, upper, range(streams.start, net.config.num_layers))


def _entered(own: Params, x: Array) -> Array:
    """Where streams start: [D, B, T·k] from the main stream's x [D, B, T]."""
    own = jax.tree.map(lambda leaf: leaf.astype(x.dtype), own)
    low = jnp.einsum("krd,dbt->krbt", own["reduce"], x)
    moved = jnp.einsum("kdr,krbt->kdbt", own["expand"], low) + own["offset"][:, :, None, None]
    return (x[..., None] + jnp.moveaxis(moved, 0, -1)).reshape(*x.shape[:2], -1)


def causal_streams(count: int) -> Attend:
    """``cache.causal`` with ``count`` streams at every place: training."""

    def attend(queries: Array, keys: Array, values: Array, rows: None, scores: Scores = Scores()) -> tuple[Array, None]:
        length = keys.shape[2] // (1 + count)
        places = np.concatenate([np.arange(length), np.repeat(np.arange(length), count)])
        positions = places + np.concatenate([np.zeros(length, int), np.tile(1 + np.arange(count), length)])
        main = np.arange(length)[None] <= places[:, None]
        if scores.window is not None:
            main &= np.arange(length)[None] > positions[:, None] - scores.window
        streams = np.concatenate([np.zeros((length, length * count), bool), own_streams(length, count)])
        seen = jnp.asarray(np.concatenate([main, streams], axis=1))
        return softmax_attention(queries, keys, values, seen[None], scores), rows

    return attend


def own_streams(places: int, count: int) -> np.ndarray:
    """Which streams a stream sees, streams 1..j of its own place: [places·k, places·k]."""
    return np.kron(np.eye(places, dtype=bool), np.tri(count, dtype=bool))
