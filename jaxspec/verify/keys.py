"""Random noise of decoding: every number depends on the seed, the position and the purpose, and on nothing else.

So what is drawn depends on no neighbour in the batch, no padding, no mesh and no earlier step.
"""

import jax
import jax.numpy as jnp

from jaxspec.models.base import Array

#: Purposes of noise at one position: the token, the acceptance test, the residual draw, the draft's draw.
TOKEN, TEST, RESIDUAL, DRAFT = range(4)


def noise_keys(seed: Array, positions: Array, purpose: int) -> Array:
    """Return one key per position: seed [B], positions [B, T] below 2³⁰ → typed keys [B, T].

    Threefry's key is two words: the seed, and position and purpose. No key is derived from another. Threefry scatters
    keys that differ in one bit as well as any (Salmon et al., SC 2011), and jax's defaults change nothing.
    """
    word = (positions.astype(jnp.uint32) << 2) | jnp.uint32(purpose)
    words = jnp.stack([jnp.broadcast_to(seed[:, None].astype(jnp.uint32), word.shape), word], axis=-1)
    return jax.random.wrap_key_data(words, impl="threefry2x32")


def gumbel(seed: Array, positions: Array, count: int, purpose: int = TOKEN) -> Array:
    """Draw Gumbel noise at every position, indexed by token id: [count, B, T]."""
    draw = jax.vmap(jax.vmap(lambda key: jax.random.gumbel(key, (count,))))
    return jnp.moveaxis(draw(noise_keys(seed, positions, purpose)), -1, 0)


def uniform(seed: Array, positions: Array) -> Array:
    """Draw one number in [0, 1) at every position, for the acceptance test: [B, T]."""
    return jax.vmap(jax.vmap(jax.random.uniform))(noise_keys(seed, positions, TEST))
