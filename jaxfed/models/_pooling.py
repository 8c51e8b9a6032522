"""Max-pooling without `reduce_window`, whose gradient is slow on CPUs."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxfed.models._convolution import Axis


def _corners(x: Array) -> list[Array]:
    batch, height, width, channels = x.shape
    tiles = x[:, : height // 2 * 2, : width // 2 * 2].reshape(batch, height // 2, 2, width // 2, 2, channels)
    return [tiles[:, :, row, :, column] for row in (0, 1) for column in (0, 1)]


def _winner(x: Array) -> tuple[Array, Array]:
    """Return the largest of each 2×2 tile, and its index 0…3 in reading order as int8, the first of equals."""
    first, second, third, fourth = _corners(x)
    top, bottom = jnp.maximum(first, second), jnp.maximum(third, fourth)
    zero, one, two, three = (jnp.int8(index) for index in range(4))
    above = jnp.where(first >= second, zero, one)
    return jnp.maximum(top, bottom), jnp.where(top >= bottom, above, jnp.where(third >= fourth, two, three))


@jax.custom_jvp
def max_pool(x: Array) -> Array:
    """Return maxima of 2×2 tiles of x [B, H, W, C]: [B, ⌊H/2⌋, ⌊W/2⌋, C]; the first of equals gets the gradient.

    The backward pass keeps only the winner's index, one byte per tile.
    """
    return _winner(x)[0]


@max_pool.defjvp
def _max_pool_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    ((x,), (tangent,)) = primals, tangents
    y, winner = _winner(x)
    batch, height, width, channels = y.shape
    indices = jnp.arange(4, dtype=jnp.int8).reshape(1, 1, 2, 1, 2, 1)
    chosen = winner[:, :, None, :, None] == indices
    tiles = tangent[:, : height * 2, : width * 2].reshape(batch, height, 2, width, 2, channels)
    return y, jnp.sum(jnp.where(chosen, tiles, jnp.zeros((), x.dtype)), axis=(2, 4))


def relu_max_pool(x: Array, bias: Array | None = None) -> Array:
    """Return relu(maxpool₂ₓ₂(x) + b), x [B, H, W, C], b [C]: maxpool₂ₓ₂(relu(x + b)) at a quarter of the work."""
    pooled = max_pool(x)
    return jax.nn.relu(pooled if bias is None else pooled + bias.reshape(1, 1, 1, -1))


def max_pool_overlapping(x: Array) -> Array:
    """Return the maximum over 3×3 windows with stride 2 and padding 1: x [B, H, W, C] to [B, ⌈H/2⌉, ⌈W/2⌉, C]."""
    for axis in (1, 2):
        windows = Axis(x.shape[axis], 3, 2, 1, 1).windows(x, axis, -jnp.inf)
        x = functools.reduce(jnp.maximum, windows)
    return x
