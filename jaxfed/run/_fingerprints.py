"""Short digests of traced functions and of arrays: equal in every process that traces the same function."""

import hashlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Var
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding
from jaxtyping import Array, PyTree

UNNAMED = {"name", "debug_info", "name_and_src_info", "source_info"}
"""Parameters of equations that name the source of a function, not what it computes."""

ADDRESS = re.compile(r" at 0x[0-9a-f]+|0x[0-9a-f]{6,}")

WHOLE = 64 * 2**20
"""Bytes up to which a closed-over array is digested whole; of a larger one, evenly spaced entries are."""


def of_function(function: Callable[..., Any], *like: PyTree) -> str:
    """Return a digest of what `function` computes for these shapes and dtypes, closed-over arrays included.

    Names of functions, source lines and addresses do not count.
    """
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), like)
    return _short(str(_program(jax.make_jaxpr(function)(*shapes))))


def of_bytes(array: np.ndarray) -> str:
    """Return a digest of an array's bytes."""
    return _short(np.ascontiguousarray(array).tobytes())


def without_address(text: str) -> str:
    """Return `text`, such as a `repr`, without addresses of objects."""
    return ADDRESS.sub("", text)


def _short(text: str | bytes) -> str:
    return hashlib.sha256(text.encode() if isinstance(text, str) else text).hexdigest()[:16]


def _program(traced: ClosedJaxpr | Jaxpr) -> tuple[Any, ...]:
    """Return a jaxpr as nested tuples of Python values, its variables numbered in order of appearance."""
    jaxpr = getattr(traced, "jaxpr", traced)  # one class for both in later versions of jax
    numbers: dict[Any, int] = {}

    def atom(each: Any) -> tuple[Any, ...]:
        if isinstance(each, Literal):
            return "literal", str(each.aval), _constant(each.val)
        return numbers.setdefault(each, len(numbers)), str(each.aval)

    first = [atom(each) for each in (*jaxpr.constvars, *jaxpr.invars)]
    body = [
        (
            equation.primitive.name,
            [atom(each) for each in equation.invars],
            {name: _plain(value) for name, value in sorted(equation.params.items()) if name not in UNNAMED},
            [atom(each) if isinstance(each, Var) else str(each) for each in equation.outvars],
        )
        for equation in jaxpr.eqns
    ]
    return first, body, [atom(each) for each in jaxpr.outvars], tuple(map(_constant, getattr(traced, "consts", ())))


def _plain(value: Any) -> Any:
    """Return a parameter of an equation without what differs between processes, devices and source lines."""
    match value:
        case ClosedJaxpr() | Jaxpr():
            return _program(value)
        case Mesh() | Sharding():
            return type(value).__name__
        case jax.Array() | np.ndarray() | np.generic() | bool() | int() | float() | complex():
            return _constant(value)
        case str() | None:
            return value
        case Mapping():
            return sorted((str(name), _plain(each)) for name, each in value.items())
        case set() | frozenset():
            return sorted(repr(_plain(each)) for each in value)
        case tuple() | list():
            return type(value).__name__, [_plain(each) for each in value]
    if callable(value) and not isinstance(value, type | np.dtype):
        return type(value).__name__
    return without_address(repr(value))


def _constant(value: Any) -> Any:
    """Return a number, or dtype, shape and digest of an array."""
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    if isinstance(value, jax.Array) and not value.is_fully_addressable:
        return str(value.dtype), value.shape
    if np.ndim(value) == 0:
        return np.asarray(value).item() if np.asarray(value).dtype.kind in "biufc" else repr(np.asarray(value).item())
    stride = max(1, -(-value.nbytes // WHOLE))
    entries = value if stride == 1 else value.reshape(-1)[::stride]
    return str(value.dtype), tuple(value.shape), of_bytes(np.asarray(entries))


def of_rows(array: Array) -> np.ndarray:
    """Return a hash of every row of an array [n, ...]: uint32 [n, 2], of all bits, equal on any devices."""
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    sharding = getattr(array, "sharding", None)
    everywhere = NamedSharding(sharding.mesh, PartitionSpec()) if isinstance(sharding, NamedSharding) else None
    return np.asarray(jax.jit(_row_hashes, out_shardings=everywhere)(array))


def _row_hashes(array: Array) -> Array:
    words, position = _words(array), jnp.uint32(0)
    for axis, size in list(enumerate(words.shape))[1:]:
        position = position * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    rest = tuple(range(1, words.ndim))
    hashed = [
        jnp.sum(_mixed(words ^ _mixed(position + jnp.uint32(salt))), axis=rest, dtype=jnp.uint32) for salt in (1, 2)
    ]
    return jnp.stack(hashed, axis=1)


def _words(array: Array) -> Array:
    """Return the bits of an array as uint32, with one more axis where an entry has eight bytes."""
    if jnp.iscomplexobj(array):
        return jnp.stack([_words(array.real), _words(array.imag)], axis=-1)
    if array.dtype == jnp.bool_:
        return array.astype(jnp.uint32)
    size = min(array.dtype.itemsize, 4)
    return jax.lax.bitcast_convert_type(array, jnp.dtype(f"uint{8 * size}")).astype(jnp.uint32)


def _mixed(words: Array) -> Array:
    """Return the finaliser of MurmurHash3: every bit of the result depends on every bit of the word."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        words = (words ^ (words >> shift)) * jnp.uint32(factor)
    return words ^ (words >> 16)
