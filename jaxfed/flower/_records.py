"""Pytrees as Flower records: arrays named by their paths, checked on receipt. Nothing is pickled."""

from typing import Any, TypeVar

import jax
import numpy as np
from flwr.app import Array, ArrayRecord
from jaxtyping import PyTree

from jaxfed.flower import _codec as codec

Tree = TypeVar("Tree", bound=PyTree)


class RefusedError(ValueError):
    """A received record is not what was expected; the message has expected, got and remedy."""


def names_of(tree: PyTree) -> list[str]:
    """Return the path of every leaf, such as "params/layers/0/kernel", in the order of the leaves.

    Raises:
        ValueError: two leaves with the same name.
    """
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path in paths]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f'expected leaves of different names, got {twice} twice; rename keys that hold a "/"')
    return names


def pack(tree: PyTree, *, zeros: bool = True, deflate: bool = False) -> ArrayRecord:
    """Return arrays by path.

    Args:
        tree: of arrays.
        zeros: False leaves out arrays of zeros.
        deflate: write arrays whose entries repeat themselves, such as quantised ones, in fewer bytes (`codec`).
    """
    named = zip(names_of(tree), map(np.asarray, jax.tree.leaves(tree)), strict=True)
    return ArrayRecord({name: _wire(leaf, deflate) for name, leaf in named if zeros or leaf.any()})


def unpack(record: ArrayRecord, like: Tree, *, what: str = "tree", zeros: bool = True) -> Tree:
    """Return the tree that `pack` wrote, with NumPy leaves.

    Args:
        record: the received record.
        like: a tree of arrays or `jax.ShapeDtypeStruct`: names, shapes and dtypes must be its own.
        what: the tree's name, for messages.
        zeros: as of `pack`; with False, missing arrays are zeros.

    Raises:
        RefusedError: names, shapes or dtypes that differ, or bytes that are no array; every difference is named.
    """
    wanted = dict(zip(names_of(like), jax.tree.leaves(like), strict=True))
    wrong = [f"  {name}: expected nothing, got an array" for name in record if name not in wanted]
    leaves: list[np.ndarray] = []
    for name, leaf in wanted.items():
        expected = f"{np.dtype(leaf.dtype)}{list(leaf.shape)}"
        if name not in record:
            leaves.append(np.zeros(leaf.shape, leaf.dtype))
            wrong += [f"  {name}: expected {expected}, got nothing"] if zeros else []
            continue
        try:
            leaves.append(_array(record[name], np.dtype(leaf.dtype), leaf.shape))
        except RefusedError as error:
            wrong.append(f"  {name}: expected {expected}, got {error}")
    if wrong:
        remedy = "deploy the same algorithm, parameters and jaxfed to server and clients"
        raise RefusedError("\n".join([f"{what} is not as expected:", *wrong, remedy]))
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _wire(leaf: np.ndarray, deflate: bool) -> Array:
    """Return one array as Flower sends it; dtypes unknown to the NPY format, such as bfloat16, as integers."""
    if deflate and codec.worthwhile(leaf):
        return Array(str(leaf.dtype), leaf.shape, codec.FORM, codec.encode(leaf))
    if leaf.dtype.kind != "V":
        return Array(np.ascontiguousarray(leaf).reshape(leaf.shape))
    bits = Array(np.ascontiguousarray(leaf).reshape(leaf.shape).view(codec.unsigned(leaf.dtype)))
    return Array(str(leaf.dtype), leaf.shape, bits.stype, bits.data)


def _array(array: Array, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """Return the array's values. Raises RefusedError for another dtype or shape."""
    if (array.dtype, tuple(array.shape)) != (str(dtype), tuple(shape)):
        raise RefusedError(f"{array.dtype}{list(array.shape)}")
    try:
        if array.stype == codec.FORM:
            return codec.decode(array.data, dtype, shape)
        numbers: Any = array.numpy()
    except Exception as error:  # whatever NumPy raises for foreign bytes
        raise RefusedError(f"bytes that are no array ({type(error).__name__})") from error
    if (numbers.dtype, numbers.shape) != (dtype if dtype.kind != "V" else codec.unsigned(dtype), tuple(shape)):
        raise RefusedError(f"{numbers.dtype}{list(numbers.shape)} under a false name")
    return numbers if dtype.kind != "V" else numbers.view(dtype)
