"""What the networks of drafts share: Flax modules as pure functions, a first layer that reads more than the stream."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax.numpy as jnp
from flax import nnx

from jaxspec.drafts.networks import DraftNetwork
from jaxspec.models.base import Array, Attend, Cache, Params
from jaxspec.models.config import DecoderConfig
from jaxspec.models.heads import spread, token_index
from jaxspec.models.layers import Layer, RMSNorm, turning, weight
from jaxspec.models.modules import bound, params_of, structure
from jaxspec.models.products import product
from jaxspec.verify.features import Features


class ModuleNetwork(DraftNetwork):
    """A network defined by a Flax module; its parameters are a pytree of dictionaries and lists.

    Those under ``fusion`` are what ``fuse`` needs, on the target's side. ``index`` is there if the draft's vocabulary
    is smaller than the target's: the row in its heads of every target token, [V], as many as rows for none.
    """

    #: Number of tokens V of the target.
    num_tokens: int
    #: Tokens that the heads score, if fewer.
    head_tokens: int | None = None

    @property
    def scored(self) -> int:
        """Number of tokens that the heads score."""
        return self.head_tokens or self.num_tokens

    @property
    def fusion(self) -> "Fusion":
        """How hidden states become features."""
        raise NotImplementedError

    def fuse(self, fusion: Params, features: Features) -> Array:
        """Return what comes with the tokens behind the positions of ``features`` [B, T, D]: [B, T, D']."""
        return jnp.moveaxis(self.fusion.bound(fusion)(features), 0, -1)

    def module(self, rngs: nnx.Rngs) -> Any:
        """Return the module."""
        raise NotImplementedError

    def bound(self, params: Params) -> Any:
        """Return the module with parameters."""
        return bound(_graph(self), params)

    def run(
        self, params: Params, inputs: Any, tokens: Array, positions: Array, cache: Cache, attend: Attend, depth: Any
    ) -> tuple[Array, Cache]:
        """Run the module."""
        return self.bound(params).run(inputs, tokens, positions, cache, attend, depth)

    def logits(self, params: Params, x: Array, depth: Any) -> Array:
        """Return logits [V, B, T]; −∞ for tokens that are not in the draft's vocabulary."""
        own = self.own_logits(params, x, depth)
        return spread(own, params["index"]) if "index" in params else own

    def own_logits(self, params: Params, x: Array, depth: Any) -> Array:
        """Return logits over the draft's vocabulary alone: [V_d, B, T]."""
        return self.bound(params).own_logits(x, depth)

    def init(self, key: Array) -> Params:
        """Draw fresh parameters."""
        return params_of(self.module(nnx.Rngs(key)))


@lru_cache
def _graph(network: Any) -> Any:
    return structure(network.module)


@dataclass(frozen=True)
class Fusion:
    """g = F·norm([norm(h_1); …; norm(h_n)]) of the n hidden states that are read; static.

    Attributes:
        count: n.
        width: D of the target.
        features: D' of g; None without F.
        norm_all: an RMS norm of all, before F.
        norm_each: an RMS norm of each.
        epsilon: of the norms.
    """

    count: int
    width: int
    features: int | None = None
    norm_all: bool = False
    norm_each: bool = False
    epsilon: float = 1e-6

    def module(self, rngs: nnx.Rngs) -> "FusionModule":
        """Return the module."""
        return FusionModule(self, rngs)

    def bound(self, params: Params) -> "FusionModule":
        """Return the module with parameters."""
        return bound(_graph(self), params)


class FusionModule(nnx.Module):
    """Parameters of ``Fusion``."""

    def __init__(self, fusion: Fusion, rngs: nnx.Rngs):
        joined, epsilon = fusion.count * fusion.width, fusion.epsilon
        self.matrix = weight(rngs, (fusion.features, joined), joined) if fusion.features else None
        self.input_norm = RMSNorm(joined, epsilon) if fusion.norm_all else None
        norms = [RMSNorm(fusion.width, epsilon) for _ in range(fusion.count)] if fusion.norm_each else None
        self.tap_norms = None if norms is None else nnx.List(norms)

    def __call__(self, features: Features) -> Array:
        """Return g [D', B, T]."""
        streams = (*features.taps, *(() if features.final is None else (features.final,)))
        parts = [jnp.moveaxis(stream, -1, 0) for stream in streams]
        if self.tap_norms is not None:
            parts = [norm(part) for norm, part in zip(self.tap_norms, parts, strict=True)]
        g = jnp.concatenate(parts)
        g = g if self.input_norm is None else self.input_norm(g)
        return g if self.matrix is None else product("dc,cbt->dbt", self.matrix[...], g)


def index_of(network: ModuleNetwork) -> nnx.Param | None:
    """Return the rows of tokens in a smaller vocabulary, at first of the first ones; None for a whole one."""
    if network.scored == network.num_tokens:
        return None
    return nnx.Param(token_index(range(network.scored), network.num_tokens))


def embedded(table: nnx.Param, tokens: Array) -> Array:
    """Return rows of a table for tokens [B, T], unscaled: [D, B, T]; tokens below 0 are token 0."""
    return jnp.moveaxis(table[...][jnp.maximum(tokens, 0)], -1, 0)


def scores(head: Array, x: Array) -> Array:
    """Return head [V, D] · x [D, B, T] in float32."""
    return product("vd,dbt->vbt", head, x, preferred_element_type=jnp.float32)


def run_layers(
    layers: Any,
    config: DecoderConfig,
    x: Array,
    positions: Array,
    cache: Cache,
    attend: Attend,
    heads: Callable[..., tuple[Array, Array, Array]] = Layer.heads,
) -> tuple[Array, Cache]:
    """Run layers on x [D, B, T]; ``heads`` (layer, x, turn) → queries, keys and values is that of the first one."""
    attention, rows = config.attention, list(cache)
    for index, layer in enumerate(layers):
        turn = turning(attention.rotary_of(index), positions, config.head_size)
        queries, keys, values = layer.heads(x, turn) if index else heads(layer, x, turn)
        context, rows[index] = attend(queries, keys, values, rows[index], attention.scores_of(index))
        x = layer.after_attention(x, context)
    return x, tuple(rows)
