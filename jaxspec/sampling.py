"""From logits to tokens."""

import jax.numpy as jnp

from jaxspec.types import Array


def greedy(logits: Array) -> Array:
    """The most likely token of logits [V, B, T]: [B, T] int32; the lowest id among equals."""
    return jnp.argmax(logits, axis=0).astype(jnp.int32)
