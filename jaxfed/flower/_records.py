"""Trees on the wire: arrays named by their paths, checked on receipt. Nothing is pickled."""

from typing import Any, TypeVar

import jax
import numpy as np
from flwr.app import Array, ArrayRecord
from jaxtyping import PyTree

from jaxfed.flower import _codec as codec

Tree = TypeVar("Tree", bound=PyTree)


class RefusedError(ValueError):
    """What came over the wire is not what was expected; the message says what was, what came, and the remedy."""


def names_of(tree: PyTree) -> list[str]:
    """The path of every leaf, such as "params/layers/0/kernel", in the order of the leaves.

    Raises:
        ValueError: two leaves of one name.
    """
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path in paths]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f'expected leaves of different names, got {twice} twice; rename keys that hold a "/"')
    return names


def pack(tree: PyTree, *, zeros: bool = True, deflate: bool = False) -> ArrayRecord:
    """Arrays by path.

    Args:
        tree: of arrays.
        zeros: False leaves out arrays that hold nothing but zeros.
        deflate: write arrays whose entries repeat themselves, such as quantised ones, in fewer bytes (`codec`).
    """
    named = zip(names_of(tree), map(np.asarray, jax.tree.leaves(tree)), strict=True)
    return ArrayRecord({name: _wire(leaf, deflate) for name, leaf in named if zeros or leaf.any()})


def unpack(record: ArrayRecord, like: Tree, *, what: str = "tree", zeros: bool = True) -> Tree:
    """The tree that `pack` wrote, with NumPy leaves.

    Args:
        record: what came.
        like: a tree of arrays or `jax.ShapeDtypeStruct`: names, shapes and dtypes must be its own.
        what: the tree's name, for messages.
        zeros: as given to `pack`; with False, zeros stand for the arrays that are not there.

    Raises:
        RefusedError: names, shapes or dtypes that differ, or bytes that are no array; every difference is named.
    """
    wanted = dict(zip(names_of(like), jax.tree.leaves(like), strict=True))
    wrong = [f"  {name}: expected nothing, got an array" for name in record if name not in wanted]
    found: list[np.ndarray] = []
    for name, leaf in wanted.items():
        expected = f"{np.dtype(leaf.dtype)}{list(leaf.shape)}"
        if name not in record:
            found.append(np.zeros(leaf.shape, leaf.dtype))
            wrong += [f"  {name}: expected {expected}, got nothing"] if zeros else []
            continue
        try:
            found.append(_array(record[name], np.dtype(leaf.dtype), leaf.shape))
        except RefusedError as error:
            wrong.append(f"  {name}: expected {expected}, got {error}")
    if wrong:
        remedy = "deploy the same algorithm, parameters and jaxfed to server and clients"
        raise RefusedError("\n".join([f"{what} is not as expected:", *wrong, remedy]))
    return jax.tree.unflatten(jax.tree.structure(like), found)


def _wire(leaf: np.ndarray, deflate: bool) -> Array:
    """One array as Flower sends it; types that the NPY format lacks, such as bfloat16, go as integers of their size."""
    if deflate and codec.worthwhile(leaf):
        return Array(str(leaf.dtype), leaf.shape, codec.FORM, codec.encode(leaf))
    if leaf.dtype.kind != "V":
        return Array(np.ascontiguousarray(leaf).reshape(leaf.shape))
    bits = Array(np.ascontiguousarray(leaf).reshape(leaf.shape).view(codec.unsigned(leaf.dtype)))
    return Array(str(leaf.dtype), leaf.shape, bits.stype, bits.data)


def _array(array: Array, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """The array's numbers. Raises RefusedError, saying what it is, for another dtype or shape."""
    if (array.dtype, tuple(array.shape)) != (str(dtype), tuple(shape)):
        raise RefusedError(f"{array.dtype}{list(array.shape)}")
    try:
        if array.stype == codec.FORM:
            return codec.decode(array.data, dtype, shape)
        numbers: Any = array.numpy()
    except Exception as error:  # whatever NumPy makes of bytes that came from elsewhere
        raise RefusedError(f"bytes that are no array ({type(error).__name__})") from error
    if (numbers.dtype, numbers.shape) != (dtype if dtype.kind != "V" else codec.unsigned(dtype), tuple(shape)):
        raise RefusedError(f"{numbers.dtype}{list(numbers.shape)} under a false name")
    return numbers if dtype.kind != "V" else numbers.view(dtype)
