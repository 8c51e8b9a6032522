"""The token channel between two meshes: a few hundred bytes each way, in one array, without waiting for them."""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.sharding import Home
from jaxspec.types import Array

Tree = TypeVar("Tree")


def send(tree: Any, home: Home) -> Any:
    """Puts arrays onto another mesh of this process; returns at once, before they are there or even computed."""
    return jax.device_put(tree, home)


def pack(tree: Any) -> Array:
    """Leaves [B, ...] of 32 bits, side by side in one array [B, n] int32: one transfer instead of one a leaf."""
    leaves = [jax.lax.bitcast_convert_type(leaf, jnp.int32) for leaf in jax.tree.leaves(tree)]
    return jnp.concatenate([leaf.reshape(leaf.shape[0], -1) for leaf in leaves], axis=1)


def unpack(packed: Array, like: Tree) -> Tree:
    """The tree that was packed, shaped as ``like`` (arrays or shape structs)."""
    leaves, structure = jax.tree.flatten(like)
    cuts = np.cumsum([np.prod(leaf.shape[1:], dtype=int) for leaf in leaves])[:-1].tolist()
    parts = zip(jnp.split(packed, cuts, axis=1), leaves, strict=True)
    return jax.tree.unflatten(
        structure, [jax.lax.bitcast_convert_type(part, leaf.dtype).reshape(leaf.shape) for part, leaf in parts]
    )
