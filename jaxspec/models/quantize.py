"""Weights in eight bits, with one scale for every output feature."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.models.base import Array, Params

#: Leaves that are quantised: the matrices of the layers. Embedding, head, routers, norms and biases are not.
QUANTIZED = ("qkv", "out", "gate_up", "down", "expert_gate_up", "expert_down")


class Int8(NamedTuple):
    """W ≈ values · scale, per output feature.

    Attributes:
        values: int8 [..., K].
        scale: [...], the largest magnitude of a row divided by 127.
    """

    values: Array
    scale: Array


def is_int8(node: Any) -> bool:
    """Return whether a node of the parameters is a matrix in eight bits."""
    return isinstance(node, Int8)


def quantized_matrix(matrix: np.ndarray | Array) -> Int8:
    """Round a matrix [..., K] to 255 levels for each row."""
    library = np if isinstance(matrix, np.ndarray) else jnp
    wide = matrix.astype(np.float32)
    scale = library.maximum(library.max(library.abs(wide), axis=-1), np.float32(1e-30)) / np.float32(127)
    values = library.round(wide / scale[..., None]).astype(np.int8)
    return Int8(values, scale)


def is_quantized(path: tuple) -> bool:
    """Return whether ``quantized`` rounds the leaf at this path."""
    return bool(path) and str(getattr(path[-1], "key", "")) in QUANTIZED


def quantized(params: Params) -> Params:
    """Round the layers' matrices to eight bits; matrices that are already quantised are unchanged."""
    return jax.tree_util.tree_map_with_path(
        lambda path, node: quantized_matrix(node) if is_quantized(path) and not is_int8(node) else node,
        params,
        is_leaf=is_int8,
    )
