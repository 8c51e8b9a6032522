"""Leaves of a tree, described by name, form, dtype and shape: encoded, compared, nested again."""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import tree_util

from jaxfed.checkpoint._errors import CheckpointError, MismatchError

Tree = Any
Entries = tuple[str | int, ...]


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One leaf of a saved tree; `str(leaf)` is what is compared, such as "float32[2,3]", "int" or "None".

    Attributes:
        path: names and positions from the root.
        form: "jax", "numpy", "scalar" (of NumPy), "key" (typed PRNG key), "value" (of Python) or "empty" (None, (), …).
        dtype: as NumPy and JAX write it.
        shape: of an array; None for values and empty containers.
        array: its folder below `arrays/`; None where the manifest holds everything.
        value: the Python value, or the name of a typed key's implementation.
    """

    path: Entries
    form: str
    dtype: str
    shape: tuple[int, ...] | None = None
    array: str | None = None
    value: Any = None

    def __str__(self) -> str:
        return self.dtype if self.shape is None else f"{self.dtype}[{','.join(map(str, self.shape))}]"


def name_of(path: Entries) -> str:
    """Return a path with dots, as in messages and `part`."""
    return ".".join(map(str, path)) or "(root)"


def _entry(key: Any) -> str | int:
    entry = getattr(key, "key", getattr(key, "idx", getattr(key, "name", None)))
    return entry if isinstance(entry, str | int) else str(key)


def is_empty(node: Any) -> bool:
    """Return whether a node of a tree is a container without children; None is one."""
    level = tree_util.default_registry.flatten_one_level(node)
    return level is not None and not tuple(level[0])


def flatten(tree: Tree) -> tuple[list[tuple[Entries, Any]], Any]:
    """Flatten with paths; None and empty containers count as leaves, so that they are compared as well."""
    leaves, treedef = tree_util.tree_flatten_with_path(tree, is_leaf=is_empty)
    return [(tuple(map(_entry, path)), leaf) for path, leaf in leaves], treedef


def describe(path: Entries, leaf: Any) -> Leaf:
    """Return the description of one leaf of a tree, or of a `like`."""
    if is_empty(leaf):
        return Leaf(path, "empty", "None" if leaf is None else f"empty {type(leaf).__name__}")
    if type(leaf) in (bool, int, float, str):
        return Leaf(path, "value", type(leaf).__name__, value=leaf)
    if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
        form = "key" if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else "jax"
        return Leaf(path, form, str(leaf.dtype), leaf.shape)
    if isinstance(leaf, np.ndarray | np.generic) and (leaf.dtype == bool or jnp.issubdtype(leaf.dtype, np.number)):
        return Leaf(path, "numpy" if isinstance(leaf, np.ndarray) else "scalar", leaf.dtype.name, leaf.shape)
    got = f"{type(leaf).__name__} {getattr(leaf, 'dtype', '')}".strip()
    raise CheckpointError(
        f"{name_of(path)}: expected an array of numbers, a typed PRNG key, bool, int, float, str or None, got {got}; "
        "convert it, or put it into `metadata`"
    )


def encode(tree: Tree) -> tuple[tuple[Leaf, ...], dict[str, Any]]:
    """Split a tree into the leaves of the manifest, and the arrays that orbax writes, by folder."""
    leaves: list[Leaf] = []
    arrays: dict[str, Any] = {}
    for index, (path, value) in enumerate(flatten(tree)[0]):
        leaf = describe(path, value)
        if isinstance(value, jax.ShapeDtypeStruct) or (isinstance(value, jax.Array) and value.is_deleted()):
            raise CheckpointError(
                f"{name_of(path)}: expected an array with data, got {leaf} without; save it before it is donated"
            )
        if leaf.form == "key":
            leaf, value = dataclasses.replace(leaf, value=str(jax.random.key_impl(value))), jax.random.key_data(value)
        # Orbax refuses arrays of size zero; shape and dtype are enough.
        if leaf.shape is not None and 0 not in leaf.shape:
            folder = f"{index:05d}.{re.sub(r'[^0-9A-Za-z_.-]', '_', name_of(path))[:100]}"
            leaf = dataclasses.replace(leaf, array=folder)
            arrays[folder] = np.asarray(value) if leaf.form == "scalar" else value
        leaves.append(leaf)
    return tuple(leaves), arrays


def take_part(leaves: Sequence[Leaf], part: str | None) -> list[Leaf]:
    """Return the leaves at or below `part`, with paths from there; raise MismatchError unless it is one subtree."""
    if part is None:
        return list(leaves)
    inside = [(leaf, n) for leaf in leaves for n in range(len(leaf.path) + 1) if name_of(leaf.path[:n]) == part]
    if len({leaf.path[:n] for leaf, n in inside}) != 1:
        names = sorted({name_of(leaf.path[:1]) for leaf in leaves})
        raise MismatchError(f"expected a part that is or lies below one of {names}, got {part!r}; pass one of these")
    return [dataclasses.replace(leaf, path=leaf.path[n:]) for leaf, n in inside]


def match(leaves: Sequence[Leaf], like: Tree) -> tuple[list[tuple[Leaf, Any]], Any]:
    """Pair every saved leaf, in the form of the result, with its leaf of `like`, in the order of the treedef."""
    targets, treedef = flatten(nest(leaves) if like is None else like)
    saved = {leaf.path: leaf for leaf in leaves}
    wanted = saved if like is None else {path: describe(path, target) for path, target in targets}
    if differences := list(_differences(wanted, saved)):
        raise MismatchError(
            "the checkpoint does not fit `like`:\n" + "\n".join(differences) + "\npass a `like` of what was saved "
            "(`manifest(...).tree` lists it), or like=None to load it as it is"
        )
    return [(dataclasses.replace(saved[path], form=wanted[path].form), target) for path, target in targets], treedef


def _differences(wanted: Mapping[Entries, Leaf], saved: Mapping[Entries, Leaf]) -> Iterator[str]:
    for path in {**wanted, **saved}:
        expected, got = str(wanted.get(path, "nothing")), str(saved.get(path, "nothing"))
        if expected != got:
            yield f"  {name_of(path)}: expected {expected}, got {got}"
        elif wanted[path].form == "jax" and jax.dtypes.canonicalize_dtype(saved[path].dtype) != saved[path].dtype:
            yield f"  {name_of(path)}: expected {expected}, got JAX without 64 bits; switch jax_enable_x64 on"


def nest(leaves: Sequence[Leaf], depth: int = 0) -> Tree:
    """Build nested dicts and lists around the leaves; empty containers are restored."""
    first = leaves[0]
    if len(first.path) == depth:
        empties: dict[str, Any] = {"None": None, "empty list": [], "empty tuple": []}
        return empties.get(first.dtype, {}) if first.form == "empty" else first
    groups: dict[str | int, list[Leaf]] = {}
    for leaf in leaves:
        groups.setdefault(leaf.path[depth], []).append(leaf)
    children = {entry: nest(group, depth + 1) for entry, group in groups.items()}
    return list(children.values()) if list(children) == list(range(len(children))) else children
