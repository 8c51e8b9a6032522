"""The network of a streaming draft: the plain draft's functions, and a pass that runs streams along."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from jaxspec.models.attention import softmax_attention
from jaxspec.models.base import Array, Attend, Network, Params
from jaxspec.models.config import DecoderConfig, Scores


@dataclass(frozen=True, eq=False)
class StreamingNetwork(Network):
    """A network with lookahead streams; its parameters are ``{"draft": ..., "streams": ...}``.

    As a ``Network`` it is the plain draft, which is the main stream.

    Attributes:
        plain: the plain network.
        count: streams; stream j guesses the token j positions behind the next one.
        start: layers below the streams.
    """

    plain: Network = None  # type: ignore[assignment]
    count: int = 0
    start: int = 0


@lru_cache
def streaming_network(plain: Network, count: int, start: int) -> StreamingNetwork:
    """Return the streaming network over a plain one, made once, since compiled programs belong to it."""

    def main(function: Callable[..., Any], params: Params, *args: Any) -> Any:
        return function(params["draft"], *args)

    def partition(params: Params) -> Any:
        own = jax.tree.map(lambda _: PartitionSpec(), params["streams"])
        return {"draft": plain.partition(params["draft"]), "streams": own}

    def with_config(config: DecoderConfig) -> Network:
        return streaming_network(plain.with_config(config), count, start)  # type: ignore[misc]

    return StreamingNetwork(
        plain.config,
        partial(main, plain.embed),
        partial(main, plain.blocks),
        partial(main, plain.logits),
        partition,
        with_config if plain.with_config else None,
        partial(main, plain.final) if plain.final else None,
        plain=plain,
        count=count,
        start=start,
    )


def init_streams(config: DecoderConfig, count: int, rank: int, key: Array) -> Params:
    """Return streams that start as the main stream does: e_j and U_j are zero."""
    return {
        "offset": jnp.zeros((count, config.width)),
        "reduce": jax.random.normal(key, (count, rank, config.width)) * config.width**-0.5,
        "expand": jnp.zeros((count, config.width, rank)),
    }


def forward(
    network: StreamingNetwork,
    params: Params,
    tokens: Array,
    positions: Array,
    cache: Any,
    attends: tuple[Attend, Attend],
    first: int = 0,
) -> tuple[Array, Any]:
    """Run main stream and lookahead streams in one pass.

    Args:
        network: with streams.
        params: its parameters.
        tokens: of the main stream: [B, T].
        positions: theirs: [B, T].
        cache: rows of all layers.
        attends: attention below the streams and along them; the latter gets the streams' queries behind the main ones.
        first: tokens at the front that have no streams.

    Returns:
        Hidden states [D, B, T + (T − first)·k], those of streams behind, a token's next to each other; and the cache.
    """
    lower, upper = attends
    x, cache = network.blocks(params, network.embed(params, tokens), positions, cache, lower, range(network.start))
    x = jnp.concatenate([x, _entered(params["streams"], x[:, :, first:])], axis=2)
    ahead = positions[:, first:, None] + 1 + jnp.arange(network.count)[None, None]
    positions = jnp.concatenate([positions, ahead.reshape(len(positions), -1)], axis=1)
    return network.blocks(params, x, positions, cache, upper, range(network.start, network.config.num_layers))


def _entered(own: Params, x: Array) -> Array:
    """Return the input of the streams, [D, B, T·k], from the main stream's x [D, B, T]."""
    own = jax.tree.map(lambda leaf: leaf.astype(x.dtype), own)
    low = jnp.einsum("krd,dbt->krbt", own["reduce"], x)
    moved = jnp.einsum("kdr,krbt->kdbt", own["expand"], low) + own["offset"][:, :, None, None]
    return (x[..., None] + jnp.moveaxis(moved, 0, -1)).reshape(*x.shape[:2], -1)


def causal_streams(count: int) -> Attend:
    """Return ``attention.causal`` with ``count`` streams at every token: training."""

    def attend(queries: Array, keys: Array, values: Array, rows: None, scores: Scores = Scores()) -> tuple[Array, None]:
        length = keys.shape[2] // (1 + count)
        tokens = np.concatenate([np.arange(length), np.repeat(np.arange(length), count)])
        positions = tokens + np.concatenate([np.zeros(length, int), np.tile(1 + np.arange(count), length)])
        main = np.arange(length)[None] <= tokens[:, None]
        if scores.window is not None:
            main &= np.arange(length)[None] > positions[:, None] - scores.window
        streams = np.concatenate([np.zeros((length, length * count), bool), own_streams(length, count)])
        seen = jnp.asarray(np.concatenate([main, streams], axis=1))
        return softmax_attention(queries, keys, values, seen[None], scores), rows

    return attend


def own_streams(tokens: int, count: int) -> np.ndarray:
    """Return which streams a stream attends to, streams 1..j of its own token: [tokens·k, tokens·k]."""
    return np.kron(np.eye(tokens, dtype=bool), np.tri(count, dtype=bool))
