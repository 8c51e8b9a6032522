"""One decoder-only transformer: defined in Flax, used as pure functions over a range of layers.

Activations are feature-major, x [D, B, T]: with few tokens W [N, K] @ x [K, T] streams the weights once, whatever T,
which is what makes verifying a window cost little more than one step. Attention is a callback, so that training,
cached decoding and branch rollouts run the same layers.
"""

from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from jaxspec.config import DecoderConfig
from jaxspec.types import Array, Attend, Model, Network, Params


class RMSNorm(nnx.Module):
    """x / √(mean x² + ε) · scale over the feature axis 0."""

    def __init__(self, features: int, epsilon: float):
        self.scale = nnx.Param(jnp.ones((features,)))
        self.epsilon = epsilon

    def __call__(self, x: Array) -> Array:
        """Normalises x [D, ...]."""
        scale = self.scale[...].reshape(-1, *(1,) * (x.ndim - 1))
        return x * jax.lax.rsqrt(jnp.mean(x * x, axis=0, keepdims=True) + self.epsilon) * scale


class Layer(nnx.Module):
    """x + O·attend(QKV·norm(x)), then x + down·(silu(gate) · up): one pre-norm block with fused projections."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        c, queries = config, config.num_heads // config.num_kv_heads
        self.attention_norm = RMSNorm(c.width, c.norm_epsilon)
        self.mlp_norm = RMSNorm(c.width, c.norm_epsilon)
        residual_scale = (2 * c.num_layers) ** -0.5
        self.qkv = _weight(rngs, (c.num_kv_heads, queries + 2, c.head_size, c.width), c.width)
        self.out = _weight(rngs, (c.width, c.num_heads * c.head_size), c.num_heads * c.head_size, residual_scale)
        self.gate_up = _weight(rngs, (2, c.hidden, c.width), c.width)
        self.down = _weight(rngs, (c.width, c.hidden), c.hidden, residual_scale)

    def __call__(self, x: Array, rotary: tuple[Array, Array], attend: Attend, rows: Any) -> tuple[Array, Any]:
        """Runs the block on x [D, B, T]; ``attend`` reads and extends this layer's cache ``rows``."""
        qkv = jnp.einsum("gqhd,dbt->gqhbt", self.qkv[...], self.attention_norm(x))
        qkv = jnp.transpose(qkv, (3, 0, 1, 4, 2))
        rotated = rotate(qkv[:, :, :-1], *rotary)
        context, rows = attend(rotated[:, :, :-1], rotated[:, :, -1], qkv[:, :, -1], rows)
        context = jnp.transpose(context, (1, 2, 4, 0, 3)).reshape(-1, *x.shape[1:])
        x = x + jnp.einsum("dc,cbt->dbt", self.out[...], context)
        gate, up = jnp.einsum("gfd,dbt->gfbt", self.gate_up[...], self.mlp_norm(x))
        return x + jnp.einsum("df,fbt->dbt", self.down[...], jax.nn.silu(gate) * up), rows


class Decoder(nnx.Module):
    """Embedding, layers, final norm and tied output head."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        self.embedding = _weight(rngs, (config.vocab_size, config.width), config.width)
        self.layers = nnx.List([Layer(config, rngs) for _ in range(config.num_layers)])
        self.final_norm = RMSNorm(config.width, config.norm_epsilon)
        self.config = config

    def embed(self, tokens: Array) -> Array:
        """Token ids [B, T] to x [D, B, T], scaled by √D to unit size."""
        return jnp.moveaxis(self.embedding[...][tokens], -1, 0) * self.config.width**0.5

    def blocks(self, x: Array, positions: Array, cache: Any, attend: Attend, layers: range) -> tuple[Array, Any]:
        """Runs ``layers`` on x [D, B, T] at ``positions`` [B, T]; ``cache`` holds one entry per layer of the model."""
        rotary, cache = rotary_tables(positions, self.config), list(cache)
        for index in layers:
            x, cache[index] = self.layers[index](x, rotary, attend, cache[index])
        return x, tuple(cache)

    def logits(self, x: Array) -> Array:
        """Hidden state x [D, B, T] through the final norm and the head: [V, B, T]."""
        return jnp.einsum("vd,dbt->vbt", self.embedding[...], self.final_norm(x))


def rotary_tables(positions: Array, config: DecoderConfig) -> tuple[Array, Array]:
    """cos and sin of position · θ^(−2i/head_size): each [B, T, head_size / 2]."""
    frequencies = config.rope_theta ** (-jnp.arange(0, config.head_size, 2, dtype=jnp.float32) / config.head_size)
    angles = positions.astype(jnp.float32)[..., None] * frequencies[None, None]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    # XLA:CPU would compute both anew in every layer, for every head: it takes cosines for cheap. Divisions it does not.
    one = cos * cos + sin * sin
    return cos / one, sin / one


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Turns the halves of every head of x [B, G, Q, T, head_size] by the rotary angles."""
    cos, sin = cos[:, None, None], sin[:, None, None]
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


@lru_cache
def network(config: DecoderConfig) -> Network:
    """The decoder as pure functions of plain parameters; no array is made."""
    graph = nnx.split(nnx.eval_shape(lambda: Decoder(config, nnx.Rngs(0))))[0]

    def method(name: str, params: Params, *args: Any) -> Any:
        return getattr(nnx.merge(graph, _to_state(params)), name)(*args)

    embed, blocks, logits = (partial(method, name) for name in ("embed", "blocks", "logits"))
    return Network(config, embed, blocks, logits, partition)


def partition(params: Params) -> Params:
    """Tensor parallelism by heads and hidden features (Megatron): two all-reduces a layer, the rest is replicated."""
    axes = {"qkv": PartitionSpec("model"), "gate_up": PartitionSpec(None, "model")}
    axes |= dict.fromkeys(("out", "down"), PartitionSpec(None, "model"))
    name = lambda path: str(getattr(path[-1], "key", ""))  # noqa: E731
    return jax.tree_util.tree_map_with_path(lambda path, _: axes.get(name(path), PartitionSpec()), params)


def init_params(config: DecoderConfig, key: Array) -> Params:
    """Fresh parameters as a plain pytree: a dictionary in which ``layers`` is a list."""
    pure = nnx.to_pure_dict(nnx.split(Decoder(config, nnx.Rngs(key)))[1])
    return {**pure, "layers": [pure["layers"][index] for index in range(config.num_layers)]}


def decoder(config: DecoderConfig, key: Array) -> Model:
    """A freshly initialised model: ``Model(network, params)``."""
    return Model(network(config), init_params(config, key))


def _to_state(params: Params) -> Params:
    return {**params, "layers": dict(enumerate(params["layers"]))}


def _weight(rngs: nnx.Rngs, shape: tuple[int, ...], fan_in: int, scale: float = 1.0) -> nnx.Param:
    return nnx.Param(jax.random.normal(rngs.params(), shape) * (scale * fan_in**-0.5))
