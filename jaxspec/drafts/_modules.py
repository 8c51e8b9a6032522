"""What the networks of drafts share: Flax modules as pure functions, a first layer that reads more than the stream."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax.numpy as jnp
from flax import nnx

from jaxspec.drafts.networks import DraftNetwork
from jaxspec.models._layers import Layer, turning
from jaxspec.models.base import Array, Attend, Cache, Params
from jaxspec.models.config import DecoderConfig
from jaxspec.verify.features import Features


class ModuleNetwork(DraftNetwork):
    """A network defined by a Flax module; its parameters are a pytree of dictionaries and lists."""

    def module(self, rngs: nnx.Rngs) -> Any:
        """Return the module."""
        raise NotImplementedError

    def bound(self, params: Params) -> Any:
        """Return the module with parameters."""
        return nnx.merge(_graph(self), _numbered(params))

    def init(self, key: Array) -> Params:
        """Draw fresh parameters."""
        return _listed(nnx.to_pure_dict(nnx.split(self.module(nnx.Rngs(key)))[1]))


@lru_cache
def _graph(network: ModuleNetwork) -> Any:
    return nnx.split(nnx.eval_shape(lambda: network.module(nnx.Rngs(0))))[0]


def _numbered(params: Params) -> Params:
    if isinstance(params, list):
        params = dict(enumerate(params))
    return {name: _numbered(part) for name, part in params.items()} if isinstance(params, dict) else params


def _listed(params: Params) -> Params:
    if not isinstance(params, dict):
        return params
    parts = {name: _listed(part) for name, part in params.items()}
    return (
        [parts[index] for index in range(len(parts))] if parts and all(isinstance(key, int) for key in parts) else parts
    )


def only_stream(features: Features) -> Array:
    """Return the one stream that is read: [D, B, T]."""
    (stream,) = (*features.taps, *(() if features.final is None else (features.final,)))
    return jnp.moveaxis(stream, -1, 0)


def embedded(table: nnx.Param, tokens: Array) -> Array:
    """Return rows of a table for tokens [B, T], unscaled: [D, B, T]; tokens below 0 are token 0."""
    return jnp.moveaxis(table[...][jnp.maximum(tokens, 0)], -1, 0)


def scores(head: Array, x: Array) -> Array:
    """Return head [V, D] · x [D, B, T] in float32."""
    return jnp.einsum("vd,dbt->vbt", head, x, preferred_element_type=jnp.float32)


def run_layers(
    layers: Any,
    config: DecoderConfig,
    x: Array,
    positions: Array,
    cache: Cache,
    attend: Attend,
    heads: Callable[[Layer, Array, Callable], tuple[Array, Array, Array]] = Layer.heads,
) -> tuple[Array, Cache]:
    """Run layers on x [D, B, T]; ``heads`` (layer, x, turn) → queries, keys and values is that of the first one."""
    attention, rows = config.attention, list(cache)
    for index, layer in enumerate(layers):
        turn = turning(attention.rotary_of(index), positions, config.head_size)
        projected = (layer.heads if index else lambda x, turn: heads(layers[0], x, turn))(x, turn)
        context, rows[index] = attend(*projected, rows[index], attention.scores_of(index))
        x = layer.after_attention(x, context)
    return x, tuple(rows)
