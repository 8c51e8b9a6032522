"""Transforms that make messages smaller."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from jaxfed.core import tree
from jaxfed.core.checks import check_range
from jaxfed.core.protocol import ClientMessage
from jaxfed.core.types import Key
from jaxfed.messages._uplink import Coding, Transform, error_feedback, index_bits


def quantise(bits: int = 8) -> Transform:
    """Round stochastically to whole multiples of a scale, one scale per array: unbiased, E[m̂] = m.

    s = max|m| / (2^(bits−1) − 1), m̂ = s·⌊m/s + u⌋ with u uniform in [0, 1) for every entry.

    Args:
        bits: of an entry, 2 to 16; an array costs bits · entries + 32.

    Raises:
        ValueError: `bits` out of range.

    Source: Alistarh et al., QSGD, NeurIPS 2017 (arXiv 1610.02132), with the largest entry as the norm.
    """
    check_range("bits", bits, least=2, most=16, whole=True)
    levels = 2 ** (int(bits) - 1) - 1

    def rounded(leaf: Array, key: Key) -> Array:
        scale = jnp.max(jnp.abs(leaf.astype(jnp.float32)), initial=0.0) / levels
        steps = leaf.astype(jnp.float32) / jnp.where(scale > 0, scale, 1.0)
        whole = jnp.clip(jnp.floor(steps + jax.random.uniform(key, leaf.shape)), -levels, levels)
        return (scale * whole).astype(leaf.dtype)

    def apply(message: ClientMessage, state: PyTree, key: Key) -> tuple[ClientMessage, PyTree]:
        return tree.map_with_keys(rounded, message, key), state

    def coding(before: Coding) -> Coding:
        return Coding(before.values, int(bits), before.extra + 32 * (before.size > 0), before.size)

    return Transform(None, apply, coding, f"quantise(bits={bits})")


def top_k(fraction: float, *, feedback: bool = True) -> Transform:
    """Send only the k = ⌈fraction · entries⌉ largest entries of every array, by magnitude, and zeros for the others.

    Args:
        fraction: of the entries, in (0, 1]. An entry costs its own bits and ⌈log₂ entries⌉ for its index.
        feedback: add the entries left out to the next message (`jaxfed.messages.error_feedback`); the residual is a
            part of the row, as large as a message.

    Raises:
        ValueError: `fraction` out of range.

    Source: Stich et al., Sparsified SGD with Memory, NeurIPS 2018 (arXiv 1809.07599).
    """
    check_range("fraction", fraction, above=0.0, most=1.0)

    def largest(leaf: Array) -> Array:
        flat = leaf.reshape(-1)
        _, indices = jax.lax.top_k(jnp.abs(flat), _count(fraction, leaf.size))
        return jnp.zeros_like(flat).at[indices].set(flat[indices]).reshape(leaf.shape)

    def apply(message: ClientMessage, state: PyTree, key: Key) -> tuple[ClientMessage, PyTree]:
        return jax.tree.map(largest, message), state

    def coding(before: Coding) -> Coding:
        count = min(_count(fraction, before.size), before.values)
        return Coding(count, before.bits, before.extra + count * index_bits(before.size), before.size)

    sparse = Transform(None, apply, coding, f"top_k({fraction})")
    return error_feedback(sparse) if feedback else sparse


def _count(fraction: float, entries: int) -> int:
    """Return ⌈fraction · entries⌉, at least 1; 0.1 of 10 is 1 despite rounding errors."""
    return min(entries, max(1, math.ceil(round(fraction * entries, 6))))
