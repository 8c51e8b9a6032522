"""Flat resident data of all clients, and what is drawn of it for a round, on the device."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpy.typing import ArrayLike

from jaxfed.core import keys
from jaxfed.core.checks import check_range
from jaxfed.core.types import Batch, Key
from jaxfed.data import _casts as casts
from jaxfed.data.batching import Batching, own_steps
from jaxfed.data.tables import ColumnTable, Rows, from_dataset, is_table


class ClientData(NamedTuple):
    """Samples of all clients: sample j of client i is `arrays[name][order[offsets[i] + j]]`.

    Attributes:
        arrays: named arrays [n, ...], the samples of all N clients together.
        offsets: first position of every client in `order`, int32 [N].
        lengths: number of samples of every client, int32 [N]; at least 1 each to train on, 0 only to evaluate on.
        order: sample at every position, int32 [M], or None if samples are stored client after client: order = 0 … n−1.
            A sample may belong to several clients, or to none.
    """

    arrays: Mapping[str, Array]
    offsets: Array
    lengths: Array
    order: Array | None = None


def client_data(
    clients: Sequence[Mapping[str, ArrayLike] | ColumnTable | Rows], *, allow_empty: bool = False
) -> ClientData:
    """Lay the samples of all clients into one array per name.

    Args:
        clients: for every client its named arrays [nᵢ, ...], or what else `from_dataset` reads; names, sample shapes
            and dtypes are those of client 0.
        allow_empty: accept clients without samples, which keep their ids; for data to evaluate on.

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
        _check_client(index, client, arrays[0], allow_empty)
    lengths = np.array([len(next(iter(client.values()))) for client in arrays])
    flat = {name: _resident(name, np.concatenate([client[name] for client in arrays])) for name in arrays[0]}
    return ClientData(flat, *_layout(lengths))


def partitioned(
    arrays: Mapping[str, ArrayLike] | ColumnTable | Rows, parts: Sequence[ArrayLike], *, allow_empty: bool = False
) -> ClientData:
    """Split one dataset among clients without copying a sample.

    Args:
        arrays: named arrays [n, ...] of one length, or what else `from_dataset` reads; they stay as they are, on the
            device once.
        parts: for every client the integers 0 ≤ j < n of its samples, [nᵢ], as `jaxfed.data.dirichlet` and the other
            partitioners return them. Clients may share samples, and a client may have one twice.
        allow_empty: accept clients without samples, which keep their ids; for data to evaluate on.

    Raises:
        ValueError: no array or no client, arrays of different length, an array called "mask", a client without samples,
            or one with an index that is no sample, which is named; numbers that jax would change.
    """
    arrays = arrays if isinstance(arrays, Mapping) else from_dataset(arrays)
    made = parted(arrays, parts, allow_empty)
    return made._replace(arrays={name: _resident(name, array) for name, array in arrays.items()})


def parted(arrays: Mapping[str, Any], parts: Sequence[ArrayLike], allow_empty: bool) -> ClientData:
    """Split named arrays among clients as they are; arguments and errors as of `partitioned`."""
    size = _check_arrays({name: _shape(array) for name, array in arrays.items()})
    if size >= 2**31:
        raise ValueError(f"expected fewer than 2³¹ samples, got {size}; positions are int32")
    if len(parts) == 0:
        raise ValueError("expected at least one client, got none")
    lengths = np.fromiter(map(_length, parts), np.int64, len(parts))
    if (lengths == 0).any() and not allow_empty:
        client = int((lengths == 0).argmax())
        raise ValueError(f"client {client}: expected at least one sample, got none; leave empty clients out")
    order = _flat(parts, lengths)
    invalid = (order < 0) | (order >= size)
    if invalid.any():
        at = int(invalid.argmax())
        client = int(np.searchsorted(np.cumsum(lengths), at, side="right"))
        raise ValueError(f"client {client}: expected samples 0 to {size - 1}, got {order[at]}; partition these")
    return ClientData(dict(arrays), *_layout(lengths), jnp.asarray(order, jnp.int32))


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


def _shape(array: Any) -> tuple[int, ...]:
    shape: tuple[int, ...] = tuple(array.shape) if hasattr(array, "shape") else np.shape(array)
    return shape


def _length(part: Any) -> int:
    return len(part) if np.ndim(part) == 1 else -1


def _flat(parts: Sequence[ArrayLike], lengths: np.ndarray) -> np.ndarray:
    """Concatenate all clients' indices; raise ValueError for the first that are no integers [nᵢ]."""
    if (lengths >= 0).all():
        arrays = [np.asarray(part) for part in parts if np.size(part)] or [np.zeros(0, np.int64)]
        flat = np.concatenate(arrays)
        if flat.dtype.kind in "iu" and all(array.dtype.kind in "iu" for array in arrays):
            return flat
    for client, part in enumerate(parts):
        array = np.asarray(part)
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise ValueError(f"client {client}: expected integers [nᵢ], got {array.dtype}{list(array.shape)}")
    raise ValueError("expected the indices of all clients to be of one integer type; int64 and uint64 do not mix")


def train_test(data: ClientData, fraction: float = 0.2, seed: int = 0) -> tuple[ClientData, ClientData]:
    """Split every client's own samples at random into a part to train on and one to evaluate on; no sample is copied.

    Args:
        data: N clients.
        fraction: f; of n samples ⌊f·n⌋ are for evaluation, at most n − 1. A client with too few keeps its id and has
            none to evaluate on.
        seed: of the generator.

    Returns:
        (train, test), both with N clients.

    Raises:
        ValueError: a fraction outside [0, 1].
    """
    check_range("fraction", fraction, least=0.0, most=1.0)
    generator = np.random.default_rng(seed)
    offsets, lengths = np.asarray(data.offsets), np.asarray(data.lengths)
    parts: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for offset, length in zip(offsets, lengths, strict=True):
        places = offset + generator.permutation(length)
        held_out = max(0, min(int(fraction * length), length - 1))
        parts[1].append(np.sort(places[:held_out]))
        parts[0].append(np.sort(places[held_out:]))
    return _taken(data, parts[0]), _taken(data, parts[1])


def _taken(data: ClientData, places: Sequence[np.ndarray]) -> ClientData:
    """Return the samples at `places` of `data.order`, for every client."""
    flat = np.concatenate(places)
    order = flat if data.order is None else np.asarray(data.order)[flat]
    return ClientData(data.arrays, *_layout(np.array([len(each) for each in places])), jnp.asarray(order, jnp.int32))


def _check_client(
    index: int, client: Mapping[str, np.ndarray], first: Mapping[str, np.ndarray], allow_empty: bool
) -> None:
    if not client or client.keys() != first.keys():
        raise ValueError(f"client {index}: expected the arrays {sorted(first) or 'x, y, ...'}, got {sorted(client)}")
    if "mask" in client:
        raise ValueError(f'client {index}: "mask" is added by the batching; rename this array')
    lengths = {name: array.shape[0] if array.ndim else None for name, array in client.items()}
    if len(set(lengths.values())) > 1 or None in lengths.values():
        raise ValueError(f"client {index}: expected arrays [nᵢ, ...] of one length, got lengths {lengths}")
    if 0 in lengths.values() and not allow_empty:
        raise ValueError(f"client {index}: expected at least one sample, got none; leave empty clients out")
    for name, array in client.items():
        expected, got = (first[name].dtype, first[name].shape[1:]), (array.dtype, array.shape[1:])
        if expected != got:
            raise ValueError(
                f"client {index}: samples of {name!r} must be {expected[0]}{list(expected[1])} as client 0's are, "
                f"got {got[0]}{list(got[1])}"
            )


def draw_indices(data: ClientData, ids: Array, key: Key, batching: Batching, longest: int) -> tuple[Array, Array]:
    """Draw the sample indices of the batches of one round's cohort.

    Args:
        data: samples of all clients.
        ids: clients int32 [C], −1 in empty slots.
        key: the round's key; a client's batches depend on it and on the client's id only.
        batching: `Steps`, `Epochs` or another.
        longest: number of samples of the longest client. It determines K of `Epochs`; no client's batches depend on it.

    Returns:
        (index, mask): rows of `data.arrays`, int32 [C, K, B], some sample of the client's where nothing is drawn; and
        bool [C, K, B], all False in an empty slot.
    """
    present = ids >= 0
    clients = jnp.maximum(ids, 0)
    draw = jax.vmap(lambda each, length: batching.slots(each, length, longest))
    index, mask = draw(keys.client_keys(key, ids), data.lengths[clients])
    if (most := own_steps(batching, clients, len(data.lengths))) is not None:
        step = jnp.expand_dims(jnp.arange(mask.shape[1], dtype=jnp.int32), (0, 2))
        mask &= step < jnp.expand_dims(most, (1, 2))
    position = index + jnp.expand_dims(data.offsets[clients], (1, 2))
    return position if data.order is None else data.order[position], mask & jnp.expand_dims(present, (1, 2))


def draw_batches(data: ClientData, ids: Array, key: Key, batching: Batching, longest: int) -> Batch:
    """Draw the batches of one round's cohort, gathered on the device; arguments as of `draw_indices`.

    Returns:
        Named arrays [C, K, B, ...] and "mask" bool [C, K, B], all False in an empty slot.
    """
    index, mask = draw_indices(data, ids, key, batching, longest)
    return {**{name: array[index] for name, array in data.arrays.items()}, "mask": mask}
