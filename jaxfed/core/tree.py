"""Pytree algebra that is neither in `jax.tree` nor in `optax.tree`."""

import functools
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, PyTree

from jaxfed.core import keys
from jaxfed.core.types import Key, Scalar

Tree = TypeVar("Tree", bound=PyTree)


def add_present(*terms: Tree | None) -> Tree:
    """Sum the terms that are not None; None is a term that the algorithm leaves out."""
    present = [term for term in terms if term is not None]
    return functools.reduce(lambda a, b: jax.tree.map(jnp.add, a, b), present)


def scale(factor: Scalar | float, tree: Tree) -> Tree:
    """Return factor · tree, leaf by leaf in the leaf's dtype: a float32 factor does not widen bfloat16 leaves."""
    return jax.tree.map(lambda leaf: jnp.asarray(factor, leaf.dtype) * leaf, tree)


def where(condition: Array, chosen: Tree, otherwise: Tree) -> Tree:
    """Select whole subtrees: `condition` [] or [C] picks along the leading axes of every leaf [C, ...]."""

    def select(a: Array, b: Array) -> Array:
        return jnp.where(jnp.expand_dims(condition, range(condition.ndim, a.ndim)), a, b)

    return jax.tree.map(select, chosen, otherwise)


def norm(tree: PyTree) -> Scalar:
    """Return ‖tree‖₂ over all leaves together, accumulated in float32 or wider."""
    leaves = jax.tree.leaves(tree)
    dtype = max([jnp.dtype("float32"), *(leaf.dtype for leaf in leaves)], key=lambda each: each.itemsize)
    return jnp.sqrt(sum((jnp.sum(jnp.square(leaf.astype(dtype))) for leaf in leaves), start=jnp.zeros((), dtype)))


def clip(tree: Tree, max_norm: float | None) -> Tree:
    """Return tree · min(1, max_norm / (‖tree‖₂ + 1e-6)); with `max_norm=None` the tree itself."""
    if max_norm is None:
        return tree
    return scale(jnp.minimum(1.0, max_norm / (norm(tree) + 1e-6)), tree)


def all_finite(tree: PyTree) -> Array:
    """Return whether no floating-point leaf has a NaN or an infinity: bool []."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return functools.reduce(jnp.logical_and, [jnp.all(jnp.isfinite(leaf)) for leaf in leaves], jnp.array(True))


def scale_rows(factors: Array, tree: Tree) -> Tree:
    """Return factorsᵢ · treeᵢ for leaves [C, ...] and factors [C], in each leaf's own dtype."""
    return jax.tree.map(lambda leaf: jnp.expand_dims(factors.astype(leaf.dtype), range(1, leaf.ndim)) * leaf, tree)


def wide(dtype: DTypeLike) -> jnp.dtype:
    """Return the dtype for sums of `dtype`: float32 for narrower floating-point types, else the same."""
    narrow = jnp.issubdtype(dtype, jnp.inexact) and jnp.dtype(dtype).itemsize < 4
    return jnp.dtype(jnp.float32 if narrow else dtype)


def widened(values: Tree) -> Tree:
    """Cast `values` to the dtypes in which they are summed (`wide`)."""
    return jax.tree.map(lambda leaf: leaf.astype(wide(leaf.dtype)), values)


def masked_sum(values: Tree, mask: Array) -> Tree:
    """Sum `values`, leaves [C, ...], over the entries where `mask` [C] is True; the others may have any value.

    Sums are in float32 or wider, because a long sum in a narrow type stops growing.
    """

    def add(leaf: Array) -> Array:
        return jnp.sum(leaf, axis=0, dtype=wide(leaf.dtype), where=jnp.expand_dims(mask, range(1, leaf.ndim)))

    return jax.tree.map(add, values)


def masked_mean(values: Tree, mask: Array) -> Tree:
    """Average `values` over the entries where `mask` is True; zero if there are none.

    Args:
        values: one array [*mask.shape, ...] or a pytree of them; integers and booleans are averaged as float32.
        mask: bool, the axes to average over, for instance [B] for samples or [B, T] for tokens.

    Returns:
        The mean with the axes of the mask removed, in the dtype of the values, computed in float32 or wider. Absent
        entries may hold anything, NaN included.
    """
    axes = tuple(range(mask.ndim))

    def mean(leaf: Array) -> Array:
        leaf = leaf if jnp.issubdtype(leaf.dtype, jnp.inexact) else leaf.astype(jnp.float32)
        present = jnp.where(jnp.expand_dims(mask, range(mask.ndim, leaf.ndim)), leaf, jnp.zeros((), leaf.dtype))
        added = jnp.sum(present, axis=axes, dtype=wide(leaf.dtype))
        return (added / jnp.maximum(jnp.sum(mask), 1).astype(added.dtype)).astype(leaf.dtype)

    return jax.tree.map(mean, values)


def cast(values: Tree, dtype: DTypeLike | None) -> Tree:
    """Cast floating-point leaves to `dtype`; None casts nothing."""
    if dtype is None:
        return values
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, values)


def map_with_keys(function: Callable[[Array, Key], Array], values: Tree, key: Key) -> Tree:
    """Apply `function(leaf, key)` to every leaf, each with its own key."""
    leaves, structure = jax.tree.flatten(values)
    changed = [function(leaf, keys.numbered_key(key, at)) for at, leaf in enumerate(leaves)]
    return jax.tree.unflatten(structure, changed)


def noised(values: Tree, deviation: float, key: Key) -> Tree:
    """Add independent Gaussian noise of this standard deviation, in float32 or wider."""

    def add(leaf: Array, leaf_key: Key) -> Array:
        noise = deviation * jax.random.normal(leaf_key, leaf.shape, wide(leaf.dtype))
        return (leaf.astype(noise.dtype) + noise).astype(leaf.dtype)

    return map_with_keys(add, values, key)
