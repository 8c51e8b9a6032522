"""One decoder-only transformer for all families: defined in Flax, used as pure functions over a range of layers.

Activations are feature-major, x [D, B, T]: with few tokens W [N, K] @ x [K, T] streams the weights once, whatever T,
which is what makes verifying a window cost little more than one step. Attention is a callback, so that training,
cached decoding and branch rollouts run the same layers.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax.numpy as jnp
from flax import nnx

from jaxspec.models._partition import partition
from jaxspec.models._tracks import meet, segments, side_by_side
from jaxspec.models.base import Array, Attend, Model, Network, Params
from jaxspec.models.config import DecoderConfig
from jaxspec.models.experts import mixture
from jaxspec.models.heads import spread, token_index
from jaxspec.models.layers import Layer, norm, project, turning, weight
from jaxspec.models.modules import bound, params_of, structure
from jaxspec.models.products import product


class Decoder(nnx.Module):
    """Embedding, layers, final norm and output head."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        c, ends = config, config.ends
        size = ends.embedding_size or c.width
        self.embedding = weight(rngs, (c.vocab_size, size), c.width)
        self.layers = nnx.List([Layer(config, rngs, mlp=mixture(config, i, rngs)) for i in range(c.num_layers)])
        self.final_norm = norm(c.width, c.block) if ends.final_norm else None
        self.head = None if ends.tied else weight(rngs, (ends.head_tokens or c.vocab_size, size), size)
        first = ends.head_tokens and token_index(range(ends.head_tokens), c.vocab_size)
        self.index = nnx.Param(first) if ends.head_tokens else None
        self.positions = weight(rngs, (ends.positions, c.width), c.width) if ends.positions else None
        self.project_in = weight(rngs, (c.width, size), size) if size != c.width else None
        self.project_out = weight(rngs, (size, c.width), c.width) if size != c.width else None
        self.config = config

    def embed(self, tokens: Array) -> Array:
        """Embed token ids [B, T]: x [D, B, T]."""
        table, scale = self.embedding[...], self.config.ends.embedding_scale
        scale = self.config.width**0.5 if scale is None else scale
        x = jnp.moveaxis(table[tokens], -1, 0) * jnp.asarray(scale, table.dtype)
        return x if self.project_in is None else project("de,ebt->dbt", self.project_in, x)

    def blocks(self, x: Array, positions: Array, cache: Any, attend: Attend, layers: range) -> tuple[Array, Any]:
        """Run ``layers`` on x [D, B, T] at ``positions`` [B, T]; ``cache`` holds one entry per layer of the model.

        Raises:
            ValueError: the layers begin or end within a segment of tracks.
        """
        attention, cache = self.config.attention, list(cache)
        if self.positions is not None and 0 in layers:
            x = x + jnp.moveaxis(self.positions[...][positions], -1, 0)
        kinds = {attention.rotary_of(index) for index in layers}
        turns = {kind: turning(kind, positions, self.config.head_size) for kind in kinds}

        def run(x: Array, layers: range, call: Callable) -> Array:
            for index in layers:
                turn, scores = turns[attention.rotary_of(index)], attention.scores_of(index)
                x, cache[index] = call(self.layers[index], x, turn, attend, cache[index], scores)
            return x

        tracks = self.config.tracks
        if tracks is None or tracks.count == 1:
            return run(x, layers, Layer.__call__), tuple(cache)
        for segment in segments(tracks, self.config.num_layers, layers):
            copies = jnp.broadcast_to(x[None], (tracks.count, *x.shape))
            x = meet(x, run(copies, segment, side_by_side))
        return x, tuple(cache)

    def final(self, x: Array) -> Array:
        """Apply the final norm (and projection) to x [D, B, T]: what the head reads."""
        x = x if self.final_norm is None else self.final_norm(x)
        return x if self.project_out is None else project("ed,dbt->ebt", self.project_out, x)

    def logits(self, x: Array) -> Array:
        """Apply the final norm and the head to x [D, B, T]: [V, B, T] float32."""
        return self.own_logits(x) if self.index is None else spread(self.own_logits(x), self.index[...])

    def own_logits(self, x: Array) -> Array:
        """Return the logits of the tokens that the head scores: [head_tokens or V, B, T]."""
        x = self.final(x)
        head, ends = self.embedding if self.head is None else self.head, self.config.ends
        cap, scale = ends.softcap, ends.logit_scale
        logits = product("vd,dbt->vbt", head[...], x, preferred_element_type=jnp.float32)
        logits = logits if scale is None else scale * logits
        return logits if cap is None else cap * jnp.tanh(logits / cap)


@cache
def network(config: DecoderConfig) -> Network:
    """Return the decoder as pure functions of plain parameters; no array is made."""
    graph = structure(partial(Decoder, config))

    def method(name: str, params: Params, *args: Any) -> Any:
        return getattr(bound(graph, params), name)(*args)

    embed, blocks, logits, final, own = (
        partial(method, name) for name in ("embed", "blocks", "logits", "final", "own_logits")
    )
    return Network(config, embed, blocks, logits, partition, network, final, own_logits=own)


def init_params(config: DecoderConfig, key: Array) -> Params:
    """Draw fresh parameters, a plain pytree: a dictionary in which ``layers`` is a list."""
    return params_of(Decoder(config, nnx.Rngs(key)))


def decoder(config: DecoderConfig, key: Array) -> Model:
    """Return a freshly initialised model: ``Model(network, params)``."""
    return Model(network(config), init_params(config, key))
