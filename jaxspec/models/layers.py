"""Parts of a decoder, feature-major: norms, projections, attention and feed-forward blocks, rotary positions."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxspec.models.base import Array, Attend, SinkScores
from jaxspec.models.config import Block, DecoderConfig, Scores
from jaxspec.models.products import product
from jaxspec.models.quantize import Int8
from jaxspec.models.rotary import Rotary

#: Non-linearities by the names that published configurations use.
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_pytorch_tanh": partial(jax.nn.gelu, approximate=True),
    "gelu_new": partial(jax.nn.gelu, approximate=True),
    "gelu_fast": partial(jax.nn.gelu, approximate=True),
}


def weight(rngs: nnx.Rngs, shape: tuple[int, ...], fan_in: int, scale: float = 1.0) -> nnx.Param:
    """Draw a random matrix; its product with unit-variance features has unit variance (times ``scale``)."""
    return nnx.Param(jax.random.normal(rngs.params(), shape) * (scale * fan_in**-0.5))


def bias(shape: tuple[int, ...], present: bool) -> nnx.Param | None:
    """Return zeros if the layer has a bias, otherwise None."""
    return nnx.Param(jnp.zeros(shape)) if present else None


def project(equation: str, matrix: nnx.Param, x: Array, offset: nnx.Param | None = None) -> Array:
    """Return matrix · x + offset: contract the last axis of ``matrix`` with the first of x; keep x's last two axes."""
    return multiply(equation, matrix.get_value(), x, None if offset is None else offset[...])


def multiply(equation: str, matrix: Array | Int8, x: Array, offset: Array | None = None) -> Array:
    """Return ``project`` of arrays."""
    if isinstance(matrix, Int8):
        y = product(equation, matrix.values.astype(x.dtype), x) * matrix.scale[..., None, None].astype(x.dtype)
    else:
        y = product(equation, matrix, x)
    return y if offset is None else y + offset[..., None, None]


class RMSNorm(nnx.Module):
    """x / √(mean x² + ε) · scale over the feature axis 0, computed in float32."""

    def __init__(self, features: int, epsilon: float):
        self.scale = nnx.Param(jnp.ones((features,)))
        self.epsilon = epsilon

    def __call__(self, x: Array) -> Array:
        """Normalise x [D, ...]."""
        wide = x.astype(jnp.float32)
        unit = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=0, keepdims=True) + self.epsilon)
        return (unit * _column(self.scale[...], x)).astype(x.dtype)


class LayerNorm(nnx.Module):
    """(x − mean) / √(variance + ε) · scale + bias over the feature axis 0, computed in float32."""

    def __init__(self, features: int, epsilon: float):
        self.scale, self.bias = nnx.Param(jnp.ones((features,))), nnx.Param(jnp.zeros((features,)))
        self.epsilon = epsilon

    def __call__(self, x: Array) -> Array:
        """Normalise x [D, ...]."""
        wide = x.astype(jnp.float32)
        centred = wide - jnp.mean(wide, axis=0, keepdims=True)
        unit = centred * jax.lax.rsqrt(jnp.mean(centred * centred, axis=0, keepdims=True) + self.epsilon)
        return (unit * _column(self.scale[...], x) + _column(self.bias[...], x)).astype(x.dtype)


def _column(values: Array, x: Array) -> Array:
    return values.astype(jnp.float32).reshape(-1, *(1,) * (x.ndim - 1))


def norm(features: int, block: Block) -> RMSNorm | LayerNorm:
    """Return the norm of a block."""
    return (LayerNorm if block.layer_norm else RMSNorm)(features, block.epsilon)


class SelfAttention(nnx.Module):
    """O · attend(QKV · x): grouped queries, one fused projection of ``inputs`` features (default: the width)."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs, inputs: int | None = None):
        c, a, inputs = config, config.attention, inputs or config.width
        slots, inner = c.num_heads // c.num_kv_heads + 2, c.num_heads * c.head_size
        self.qkv = weight(rngs, (c.num_kv_heads, slots, c.head_size, inputs), inputs)
        self.qkv_bias = bias((c.num_kv_heads, slots, c.head_size), a.qkv_bias)
        self.out = weight(rngs, (c.width, inner), inner, (2 * c.num_layers) ** -0.5)
        self.out_bias = bias((c.width,), a.out_bias)
        self.sinks = bias((c.num_kv_heads, c.num_heads // c.num_kv_heads), a.scores.sinks)
        self.together = a.norm_heads == "together"
        sizes = (inner, c.num_kv_heads * c.head_size) if self.together else (c.head_size,) * 2
        norms = [RMSNorm(size, c.block.epsilon) if a.norm_heads else None for size in sizes]
        self.query_norm, self.key_norm = norms

    def heads(self, x: Array, turn: Callable[[Array], Array]) -> tuple[Array, Array, Array]:
        """Return queries, keys and values of x [D, B, T] for ``attend``; ``turn`` applies rotary positions to heads."""
        qkv = project("gqhd,dbt->gqhbt", self.qkv, x, self.qkv_bias)
        if self.query_norm is None or self.key_norm is None:
            turned, values = turn(_heads(qkv[:, :-1])), _heads(qkv[:, -1:])
            queries, keys = turned[:, :, :-1], turned[:, :, -1:]
        else:
            normed = _normed_together if self.together else _normed
            queries, keys = normed(self.query_norm, qkv[:, :-2]), normed(self.key_norm, qkv[:, -2:-1])
            queries, keys, values = turn(_heads(queries)), turn(_heads(keys)), _heads(qkv[:, -1:])
        return queries, keys[:, :, 0], values[:, :, 0]

    def with_sinks(self, scores: Scores) -> Scores:
        """Return attention weights with this layer's sinks, if it has any."""
        if self.sinks is None:
            return scores
        return SinkScores(scores.scale, scores.softcap, scores.window, scores.sinks, self.sinks[...])

    def output(self, context: Array) -> Array:
        """Return the block's output [D, B, T] for a context [B, G, Q, T, head_size]."""
        context = jnp.transpose(context, (1, 2, 4, 0, 3)).reshape(-1, context.shape[0], context.shape[3])
        return project("dc,cbt->dbt", self.out, context, self.out_bias)


def _heads(x: Array) -> Array:
    """Transpose [G, Q, head_size, B, T] to [B, G, Q, T, head_size]."""
    return jnp.transpose(x, (3, 0, 1, 4, 2))


def _normed(head_norm: RMSNorm, x: Array) -> Array:
    """Normalise heads x [G, Q, head_size, B, T], each over its features."""
    return jnp.moveaxis(head_norm(jnp.moveaxis(x, 2, 0)), 0, 2)


def gating(block: Block) -> Callable[[Array], Array]:
    """Return the function of gate and up [2, F, ...], or of up [1, F, ...], whose result the output projection reads.

    Raises:
        ValueError: an activation that is not known.
    """
    if block.activation not in ACTIVATIONS:
        raise ValueError(f"expected an activation out of {', '.join(ACTIVATIONS)}, got {block.activation!r}")
    activation, clamped = ACTIVATIONS[block.activation], block.clamped

    def inner(parts: Array) -> Array:
        first, *up = parts
        return activation(first) * up[0] if up else activation(first)

    def within_limits(parts: Array) -> Array:
        limit, slope = (jnp.asarray(each, parts.dtype) for each in (clamped.limit, clamped.slope))  # type: ignore[union-attr]
        gate, up = jnp.minimum(parts[0], limit), jnp.clip(parts[1], -limit, limit)
        return gate * jax.nn.sigmoid(slope * gate) * (up + 1)

    return inner if clamped is None else within_limits


def _normed_together(all_norm: RMSNorm, x: Array) -> Array:
    """Normalise heads x [G, Q, head_size, B, T] over the features of all of them."""
    return all_norm(x.reshape(-1, *x.shape[3:])).reshape(x.shape)


class FeedForward(nnx.Module):
    """down · (activation(gate · x) · (up · x)), or without a gate down · activation(up · x).

    Args:
        config: of the decoder.
        rngs: of the random weights.
        hidden: features inside the block; default: the configuration's.
    """

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs, hidden: int | None = None):
        c, parts, hidden = config, 2 if config.block.gated else 1, hidden or config.hidden
        self.gate_up = weight(rngs, (parts, hidden, c.width), c.width)
        self.gate_up_bias = bias((parts, hidden), c.block.bias)
        self.down = weight(rngs, (c.width, hidden), hidden, (2 * c.num_layers) ** -0.5)
        self.down_bias = bias((c.width,), c.block.bias)
        self.inner = gating(c.block)

    def __call__(self, x: Array) -> Array:
        """Return the block's output for x [D, B, T]."""
        inner = self.inner(project("gfd,dbt->gfbt", self.gate_up, x, self.gate_up_bias))
        return project("df,fbt->dbt", self.down, inner, self.down_bias)


class Layer(nnx.Module):
    """Attention and feed-forward, each with its norms and its residual connection.

    Args:
        config: of the decoder.
        rngs: of the random weights.
        inputs: features that attention reads; default: the width.
        mlp: the feed-forward block; default: an ordinary one.
    """

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs, inputs: int | None = None, mlp: Any = None):
        norms, make = config.block.norms, partial(norm, config.width, config.block)
        own, post = norms != "output", norms in ("around", "output")
        self.attention_norm: Any = make() if own else None
        self.mlp_norm: Any = make() if own else None
        self.attention_post_norm = make() if post else None
        self.mlp_post_norm = make() if post else None
        self.attention = SelfAttention(config, rngs, inputs)
        self.mlp = FeedForward(config, rngs) if mlp is None else mlp
        self.after, self.residual_scale = norms == "after", config.block.residual_scale
        self.parallel = config.block.parallel

    def __call__(
        self, x: Array, turn: Callable[[Array], Array], attend: Attend, rows: Any, scores: Scores
    ) -> tuple[Array, Any]:
        """Run the layer on x [D, B, T]; ``turn`` applies rotary positions, ``rows`` are its cache."""
        context, rows = attend(*self.heads(x, turn), rows, self.attention.with_sinks(scores))
        return self.after_attention(x, context), rows

    def heads(self, x: Array, turn: Callable[[Array], Array]) -> tuple[Array, Array, Array]:
        """Run the layer up to attention: queries, keys, values."""
        return self.attention.heads(self._read(x, self.attention_norm), turn)

    def after_attention(self, x: Array, context: Array) -> Array:
        """Run the layer from attention on, for its input x [D, B, T] and the context."""
        between = self._joined(x, self.attention.output(context), self.attention_norm, self.attention_post_norm)
        branch = self.mlp(self._read(x if self.parallel else between, self.mlp_norm))
        return self._joined(between, branch, self.mlp_norm, self.mlp_post_norm)

    def _read(self, x: Array, own: Callable | None) -> Array:
        """Return what a block reads."""
        return x if self.after or own is None else own(x)

    def _joined(self, x: Array, branch: Array, own: Any, post: Callable | None) -> Array:
        if self.residual_scale is not None:
            branch = branch * jnp.asarray(self.residual_scale, branch.dtype)
        if self.after:
            return own(x + branch)
        return x + (branch if post is None else post(branch))


def turning(rotary: Rotary | None, positions: Array, head_size: int) -> Callable[[Array], Array]:
    """Build the rotation of heads [B, G, Q, T, head_size] at ``positions`` [B, T]; the identity if rotary is None."""
    if rotary is None:
        return lambda heads: heads
    return partial(rotate, tables=rotary_tables(positions, rotary, head_size))


def rotary_tables(positions: Array, rotary: Rotary, head_size: int) -> tuple[Array, Array]:
    """Return cos and sin of position · frequency, times the scaling's factor: each [B, T, rotated features / 2]."""
    angles = positions.astype(jnp.float32)[..., None] * rotary.frequencies(head_size)[None, None]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    # XLA:CPU considers cosines cheap and would recompute both in every layer for every head; divisions prevent that.
    one = (cos * cos + sin * sin) / rotary.attention_factor
    return cos / one, sin / one


def rotate(x: Array, tables: tuple[Array, Array]) -> Array:
    """Rotate the halves of every head of x [B, G, Q, T, head_size] by the angles of ``rotary_tables``.

    Features behind those that are rotated stay as they are.
    """
    cos, sin = (table[:, None, None].astype(x.dtype) for table in tables)
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    turned = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate([*turned, rest] if rest.shape[-1] else turned, axis=-1)
