"""Flat resident data of all clients, and the index tensors that batches are gathered by, on the device."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpy.typing import ArrayLike

from jaxfed.core import keys
from jaxfed.core.checks import check_range, python_fields
from jaxfed.core.types import Batch, Key
from jaxfed.data import _casts as casts
from jaxfed.data.tables import ColumnTable, Rows, from_dataset, is_table


class ClientData(NamedTuple):
    """Samples of all clients: sample j of client i is `arrays[name][order[offsets[i] + j]]`.

    Attributes:
        arrays: named arrays [n, ...], the samples of all N clients together.
        offsets: first position of every client in `order`, int32 [N].
        lengths: number of samples of every client, int32 [N], at least 1 each.
        order: sample at every position, int32 [M], or None if samples are stored client after client: order = 0 … n−1.
            A sample may belong to several clients, or to none.
    """

    arrays: Mapping[str, Array]
    offsets: Array
    lengths: Array
    order: Array | None = None


def client_data(clients: Sequence[Mapping[str, ArrayLike] | ColumnTable | Rows]) -> ClientData:
    """Lay the samples of all clients into one array per name.

    Args:
        clients: for every client its named arrays [nᵢ, ...], or what else `from_dataset` reads; names, sample shapes
            and dtypes are those of client 0.

    Raises:
        ValueError: no client, an empty client, arrays of different length within a client, or names, shapes or dtypes
            that differ between clients, and numbers that jax would change (`jaxfed.data._casts`); the message names the
            client, or the array.
    """
    if isinstance(clients, Mapping) or is_table(clients):
        raise ValueError("expected one dataset for every client, got a single one; split it with partitioned(...)")
    clients = list(clients)
    if not clients:
        raise ValueError("expected at least one client, got none")
    arrays = [from_dataset(client) for client in clients]
    for index, client in enumerate(arrays):
        _check_client(index, client, arrays[0])
    lengths = np.array([len(next(iter(client.values()))) for client in arrays])
    flat = {name: _resident(name, np.concatenate([client[name] for client in arrays])) for name in arrays[0]}
    return ClientData(flat, *_layout(lengths))


def partitioned(arrays: Mapping[str, ArrayLike] | ColumnTable | Rows, parts: Sequence[ArrayLike]) -> ClientData:
    """Split one dataset among clients without copying a sample.

    Args:
        arrays: named arrays [n, ...] of one length, or what else `from_dataset` reads; they stay as they are, on the
            device once.
        parts: for every client the integers 0 ≤ j < n of its samples, [nᵢ], as `jaxfed.data.dirichlet` and the other
            partitioners return them. Clients may share samples, and a client may have one twice.

    Raises:
        ValueError: no array or no client, arrays of different length, an array called "mask", a client without samples,
            or one with an index that is no sample, which is named; numbers that jax would change.
    """
    arrays = arrays if isinstance(arrays, Mapping) else from_dataset(arrays)
    size = _check_arrays({name: np.shape(array) for name, array in arrays.items()})
    if size >= 2**31:
        raise ValueError(f"expected fewer than 2³¹ samples, got {size}; positions are int32")
    if len(parts) == 0:
        raise ValueError("expected at least one client, got none")
    lengths = np.fromiter(map(_length, parts), np.int64, len(parts))
    if (lengths == 0).any():
        client = int((lengths == 0).argmax())
        raise ValueError(f"client {client}: expected at least one sample, got none; leave empty clients out")
    order = _flat(parts, lengths)
    invalid = (order < 0) | (order >= size)
    if invalid.any():
        at = int(invalid.argmax())
        client = int(np.searchsorted(np.cumsum(lengths), at, side="right"))
        raise ValueError(f"client {client}: expected samples 0 to {size - 1}, got {order[at]}; partition these")
    resident = {name: _resident(name, array) for name, array in arrays.items()}
    return ClientData(resident, *_layout(lengths), jnp.asarray(order, jnp.int32))


def _resident(name: str, array: Any) -> Array:
    return jnp.asarray(casts.resident(array, f"array {name!r}"))


def _layout(lengths: np.ndarray) -> tuple[Array, Array]:
    """Return (offsets, lengths), int32 [N] each."""
    if lengths.sum() >= 2**31:
        raise ValueError(f"expected fewer than 2³¹ samples, got {lengths.sum()}; positions are int32")
    offsets = np.cumsum(lengths) - lengths
    return jnp.asarray(offsets, jnp.int32), jnp.asarray(lengths, jnp.int32)


def _check_arrays(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Return the one length of all arrays."""
    if "mask" in shapes:
        raise ValueError('"mask" is added by the batching; rename this array')
    lengths = {name: shape[0] if shape else None for name, shape in shapes.items()}
    if len(set(lengths.values())) != 1 or None in lengths.values():
        raise ValueError(f"expected named arrays [n, ...] of one length, got lengths {lengths}")
    return int(next(iter(shapes.values()))[0])


def _length(part: Any) -> int:
    return len(part) if np.ndim(part) == 1 else -1


def _flat(parts: Sequence[ArrayLike], lengths: np.ndarray) -> np.ndarray:
    """Concatenate all clients' indices; raise ValueError for the first that are no integers [nᵢ]."""
    if (lengths >= 0).all():
        arrays = [np.asarray(part) for part in parts]
        flat = np.concatenate(arrays)
        if flat.dtype.kind in "iu" and all(array.dtype.kind in "iu" for array in arrays):
            return flat
    for client, part in enumerate(parts):
        array = np.asarray(part)
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise ValueError(f"client {client}: expected integers [nᵢ], got {array.dtype}{list(array.shape)}")
    raise ValueError("expected the indices of all clients to be of one integer type; int64 and uint64 do not mix")


def _check_client(index: int, client: Mapping[str, np.ndarray], first: Mapping[str, np.ndarray]) -> None:
    if not client or client.keys() != first.keys():
        raise ValueError(f"client {index}: expected the arrays {sorted(first) or 'x, y, ...'}, got {sorted(client)}")
    if "mask" in client:
        raise ValueError(f'client {index}: "mask" is added by the batching; rename this array')
    lengths = {name: array.shape[0] if array.ndim else None for name, array in client.items()}
    if len(set(lengths.values())) > 1 or None in lengths.values():
        raise ValueError(f"client {index}: expected arrays [nᵢ, ...] of one length, got lengths {lengths}")
    if 0 in lengths.values():
        raise ValueError(f"client {index}: expected at least one sample, got none; leave empty clients out")
    for name, array in client.items():
        expected, got = (first[name].dtype, first[name].shape[1:]), (array.dtype, array.shape[1:])
        if expected != got:
            raise ValueError(
                f"client {index}: samples of {name!r} must be {expected[0]}{list(expected[1])} as client 0's are, "
                f"got {got[0]}{list(got[1])}"
            )


class Batching(Protocol):
    """How a client's samples become K batches: a static value."""

    def num_steps(self, longest: int) -> int:
        """Return K, from the number of samples of the largest client."""
        ...

    def slots(self, key: Key, length: Array, longest: int) -> tuple[Array, Array]:
        """Draw the samples of one client by position: index int32 [K, B] below `length`, mask bool [K, B]."""
        ...


@dataclasses.dataclass(frozen=True)
class Steps:
    """K = `local_steps` batches for every client: shuffled anew every round, repeated as often as needed.

    A client with fewer samples than `batch_size` has them all in every batch, once.
    """

    local_steps: int
    batch_size: int

    def __post_init__(self) -> None:
        check_range("local_steps", self.local_steps, least=1, whole=True)
        check_range("batch_size", self.batch_size, least=1, whole=True)
        python_fields(self)

    def num_steps(self, longest: int) -> int:
        """Return K, independent of the clients."""
        del longest
        return self.local_steps

    def slots(self, key: Key, length: Array, longest: int) -> tuple[Array, Array]:
        """Return position k·B + j of the shuffled samples, modulo the client's length."""
        step, slot = jnp.indices((self.local_steps, self.batch_size), dtype=jnp.int32)
        stride = jnp.minimum(length, self.batch_size)
        position = (step * stride + slot) % length
        return _shuffled(key, length, longest)[position], slot < length


@dataclasses.dataclass(frozen=True)
class Epochs:
    """`local_epochs` passes over a client's samples, each shuffled anew; the last batch of a pass may be short.

    K is that of the longest client; a client with fewer samples has empty steps, all at the end, which change nothing.
    """

    local_epochs: int
    batch_size: int

    def __post_init__(self) -> None:
        check_range("local_epochs", self.local_epochs, least=1, whole=True)
        check_range("batch_size", self.batch_size, least=1, whole=True)
        python_fields(self)

    def num_steps(self, longest: int) -> int:
        """Return K = epochs · ⌈longest / B⌉."""
        return self.local_epochs * math.ceil(longest / self.batch_size)

    def slots(self, key: Key, length: Array, longest: int) -> tuple[Array, Array]:
        """Return every sample once per pass: batch k mod ⌈length/B⌉ of pass k div ⌈length/B⌉."""
        order = jax.vmap(lambda each: _shuffled(each, length, longest))(keys.numbered_keys(key, self.local_epochs))
        step, slot = jnp.indices((self.num_steps(longest), self.batch_size), dtype=jnp.int32)
        per_epoch = (length + self.batch_size - 1) // self.batch_size
        epoch, position = step // per_epoch, step % per_epoch * self.batch_size + slot
        mask = (epoch < self.local_epochs) & (position < length)
        return jnp.where(mask, order[jnp.where(mask, epoch, 0), jnp.where(mask, position, 0)], 0), mask


def _shuffled(key: Key, length: Array, longest: int) -> Array:
    """Return a random order of 0 … length−1 in the first `length` of `longest` positions, int32 [longest].

    One fold of the key per position: the draw of a position depends on no array's size, for any generator of jax.
    """
    position = jnp.arange(longest, dtype=jnp.int32)
    draws = jax.random.key_data(keys.numbered_keys(key, longest))[:, 0]
    return jnp.argsort(jnp.where(position < length, draws >> 1, jnp.uint32(2**32 - 1))).astype(jnp.int32)


def draw_indices(data: ClientData, ids: Array, key: Key, batching: Batching, longest: int) -> tuple[Array, Array]:
    """Draw the sample indices of the batches of one round's cohort.

    Args:
        data: samples of all clients.
        ids: clients int32 [C], −1 in empty slots.
        key: the round's key; a client's batches depend on it and on the client's id only.
        batching: `Steps` or `Epochs`.
        longest: number of samples of the longest client. It determines K of `Epochs`; no client's batches depend on it.

    Returns:
        (index, mask): rows of `data.arrays`, int32 [C, K, B], some sample of the client's where nothing is drawn; and
        bool [C, K, B], all False in an empty slot.
    """
    present = ids >= 0
    clients = jnp.maximum(ids, 0)
    draw = jax.vmap(lambda each, length: batching.slots(each, length, longest))
    index, mask = draw(keys.client_keys(key, ids), data.lengths[clients])
    position = index + jnp.expand_dims(data.offsets[clients], (1, 2))
    return position if data.order is None else data.order[position], mask & jnp.expand_dims(present, (1, 2))


def draw_batches(data: ClientData, ids: Array, key: Key, batching: Batching, longest: int) -> Batch:
    """Draw the batches of one round's cohort, gathered on the device; arguments as of `draw_indices`.

    Returns:
        Named arrays [C, K, B, ...] and "mask" bool [C, K, B], all False in an empty slot.
    """
    index, mask = draw_indices(data, ids, key, batching, longest)
    return {**{name: array[index] for name, array in data.arrays.items()}, "mask": mask}
