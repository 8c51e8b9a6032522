"""Words of the package: one sentence each.

Shapes: B sequences, T tokens, D features, V vocabulary, G key-value heads, Q queries per key-value head, S cache rows,
γ window, κ candidates, R branches.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax

from jaxspec.config import DecoderConfig

Array = jax.Array
#: A plain pytree of arrays.
Params = Any
#: Key rows and value rows of one layer, each [B, G, S, head_size].
Rows = tuple[Array, Array]
#: One ``Rows`` per layer.
Cache = tuple[Rows, ...]


class Attend(Protocol):
    """Attention with memory: (queries, keys, values, rows of this layer) → (context, new rows)."""

    def __call__(self, queries: Array, keys: Array, values: Array, rows: Any) -> tuple[Array, Any]:
        """Queries [B, G, Q, T, head_size], keys and values [B, G, T, head_size]; context is shaped as the queries."""


@dataclass(frozen=True)
class Network:
    """A language model as three pure functions; anything that has them can be a target or a draft.

    Attributes:
        config: shape of the network; the engine reads vocabulary, layers and the size of a cache row.
        embed: (params, tokens [B, T]) → x [D, B, T].
        blocks: (params, x, positions [B, T], cache, attend, layers: range) → (x, cache).
        logits: (params, x [D, B, T]) → [V, B, T].
        partition: params → a partition specification for each, over the mesh axis ``model``.
    """

    config: DecoderConfig
    embed: Callable[..., Array]
    blocks: Callable[..., tuple[Array, Any]]
    logits: Callable[..., Array]
    partition: Callable[[Params], Any]


class Model(NamedTuple):
    """A network and its parameters, bundled at the edge; inside compiled programs only the parameters travel."""

    network: Network
    params: Params
