"""Core types shared by all of jaxspec.

Shapes: B sequences, T tokens, D features, V vocabulary, G key-value heads, Q queries per key-value head, S cache rows,
γ window, κ candidates, R branches.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax

from jaxspec.models.config import DecoderConfig, Scores
from jaxspec.text import Text

Array = jax.Array
"""A ``jax.Array``."""
Params = Any
"""A plain pytree of arrays."""
Rows = tuple[Array, Array]
"""Key rows and value rows of one layer, each [B, G, S, head_size]."""
Cache = tuple[Rows, ...]
"""One ``Rows`` per layer."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("logits",),
    meta_fields=("scale", "softcap", "window", "sinks"),
)
@dataclass(frozen=True)
class SinkScores(Scores):
    """Attention weights with the learned logits of a layer's sinks.

    Attributes:
        logits: one for every query head, [G, Q].
    """

    logits: Array | None = None


class Attend(Protocol):
    """Attention with memory: (queries, keys, values, rows of this layer, scores) → (context, new rows)."""

    def __call__(
        self, queries: Array, keys: Array, values: Array, rows: Any, scores: Scores = Scores()
    ) -> tuple[Array, Any]:
        """Queries [B, G, Q, T, head_size], keys and values [B, G, T, head_size]; context is shaped as the queries."""


@dataclass(frozen=True, eq=False)
class Network:
    """A language model as three pure functions; anything that has them can be a target or a draft.

    Compiled programs belong to one network object: make it once (``models.network`` keeps those it made).

    Attributes:
        config: shape of the network; the engine reads vocabulary, layers and the size of a cache row.
        embed: (params, tokens [B, T]) → x [D, B, T].
        blocks: (params, x, positions [B, T], cache, attend, layers: range) → (x, cache).
        logits: (params, x [D, B, T]) → [V, B, T].
        partition: params → a partition specification for each, over the mesh axis ``model``.
        with_config: the same kind of network with another configuration; lets a mesh repeat key-value heads.
        final: (params, x [D, B, T]) → f [D, B, T], what the output head reads: the final norm's output; only drafts
            that read it need it.
        own_logits: (params, x [D, B, T]) → logits of the tokens that the head scores, [head_tokens, B, T], if these are
            not all (``Ends.head_tokens``); only training needs it.
        source: of a network fitted to another vocabulary (``jaxspec.fit_vocabulary``), the one it was made from.
    """

    config: DecoderConfig
    embed: Callable[..., Array]
    blocks: Callable[..., tuple[Array, Any]]
    logits: Callable[..., Array]
    partition: Callable[[Params], Any]
    with_config: Callable[[DecoderConfig], "Network"] | None = None
    final: Callable[..., Array] | None = None
    source: "Network | None" = None
    own_logits: Callable[..., Array] | None = None


class Model(NamedTuple):
    """A network and its parameters, bundled at the edge; inside compiled programs only the parameters travel.

    Attributes:
        network: pure functions.
        params: their parameters.
        text: tokenizer, chat template and stop tokens, for a model that came with them.
    """

    network: Network
    params: Params
    text: Text | None = None
