"""Flat resident data of all clients, and the index tensors that batches are gathered by, on the device."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpy.typing import ArrayLike

from jaxfed.checks import check_range
from jaxfed.plans import client_keys
from jaxfed.types import Batch, Key


class ClientData(NamedTuple):
    """Samples of all clients, one client after the other.

    Attributes:
      arrays: named arrays [n, ...], n samples of N clients together.
      offsets: first sample of every client, int32 [N].
      lengths: number of samples of every client, int32 [N], at least 1 each.
    """

    arrays: Mapping[str, Array]
    offsets: Array
    lengths: Array


def client_data(clients: Sequence[Mapping[str, ArrayLike]]) -> ClientData:
    """Lay the samples of all clients into one array per name.

    Args:
      clients: for every client its named arrays [nᵢ, ...]; names, sample shapes and dtypes are those of client 0.

    Raises:
      ValueError: no client, an empty client, arrays of different length within a client, or names, shapes or dtypes
        that differ between clients; the message names the client.
    """
    if not clients:
        raise ValueError("expected at least one client, got none")
    arrays = [{name: np.asarray(array) for name, array in client.items()} for client in clients]
    for index, client in enumerate(arrays):
        _check_client(index, client, arrays[0])
    lengths = np.array([len(next(iter(client.values()))) for client in arrays])
    flat = {name: jnp.asarray(np.concatenate([client[name] for client in arrays])) for name in arrays[0]}
    offsets = np.cumsum(lengths) - lengths
    return ClientData(flat, jnp.asarray(offsets, jnp.int32), jnp.asarray(lengths, jnp.int32))


def _check_client(index: int, client: Mapping[str, np.ndarray], first: Mapping[str, np.ndarray]) -> None:
    if not client or client.keys() != first.keys():
        raise ValueError(f"client {index}: expected the arrays {sorted(first) or 'x, y, ...'}, got {sorted(client)}")
    if "mask" in client:
        raise ValueError(f'client {index}: "mask" is made by the batching; rename this array')
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
        """K, given the number of samples of the longest client."""
        ...

    def slots(self, key: Key, length: Array, longest: int) -> tuple[Array, Array]:
        """Samples of one client by position: index int32 [K, B] below `length`, mask bool [K, B]."""
        ...


@dataclasses.dataclass(frozen=True)
class Steps:
    """K = `local_steps` batches for every client: one fresh shuffle a round, walked through again and again.

    A client with fewer samples than `batch_size` has them all in every batch, once.
    """

    local_steps: int
    batch_size: int

    def __post_init__(self) -> None:
        check_range("local_steps", self.local_steps, least=1)
        check_range("batch_size", self.batch_size, least=1)

    def num_steps(self, longest: int) -> int:
        """K, whatever the clients hold."""
        del longest
        return self.local_steps

    def slots(self, key: Key, length: Array, longest: int) -> tuple[Array, Array]:
        """Position k·B + j of the walk, modulo the client's length."""
        step, place = jnp.indices((self.local_steps, self.batch_size), dtype=jnp.int32)
        stride = jnp.minimum(length, self.batch_size)
        position = (step * stride + place) % length
        return _shuffled(key, length, longest)[position], place < length


@dataclasses.dataclass(frozen=True)
class Epochs:
    """`local_epochs` passes over a client's samples, each shuffled anew; the last batch of a pass may be short.

    K is that of the longest client; a client with fewer samples has empty steps, which change nothing.
    """

    local_epochs: int
    batch_size: int

    def __post_init__(self) -> None:
        check_range("local_epochs", self.local_epochs, least=1)
        check_range("batch_size", self.batch_size, least=1)

    def num_steps(self, longest: int) -> int:
        """K = epochs · ⌈longest / B⌉."""
        return self.local_epochs * math.ceil(longest / self.batch_size)

    def slots(self, key: Key, length: Array, longest: int) -> tuple[Array, Array]:
        """Every sample once a pass."""
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(self.local_epochs))
        order = jax.vmap(lambda each: _shuffled(each, length, longest))(keys)
        per_epoch = math.ceil(longest / self.batch_size)
        position = jnp.arange(per_epoch * self.batch_size, dtype=jnp.int32)
        index = order[:, jnp.minimum(position, longest - 1)].reshape(-1, self.batch_size)
        mask = jnp.tile(position < length, self.local_epochs).reshape(-1, self.batch_size)
        return jnp.where(mask, index, 0), mask


def _shuffled(key: Key, length: Array, longest: int) -> Array:
    """A random order of 0 … length−1 in the first `length` of `longest` places, int32 [longest]."""
    position = jnp.arange(longest, dtype=jnp.int32)
    draw = jnp.where(position < length, jax.random.uniform(key, (longest,), jnp.float32), 2.0)
    return jnp.argsort(draw).astype(jnp.int32)


def draw_batches(data: ClientData, ids: Array, key: Key, batching: Batching, longest: int) -> Batch:
    """Batches of one round's cohort, gathered on the device.

    Args:
      data: samples of all clients.
      ids: clients int32 [C], −1 in empty slots.
      key: the round's key; a client's batches depend on it and on the client's id only.
      batching: `Steps` or `Epochs`.
      longest: number of samples of the longest client.

    Returns:
      Named arrays [C, K, B, ...] and "mask" bool [C, K, B], all False in an empty slot.
    """
    present = ids >= 0
    clients = jnp.maximum(ids, 0)
    draw = jax.vmap(lambda each, length: batching.slots(each, length, longest))
    index, mask = draw(client_keys(key, ids), data.lengths[clients])
    flat = index + jnp.expand_dims(data.offsets[clients], (1, 2))
    mask = mask & jnp.expand_dims(present, (1, 2))
    return {**{name: array[flat] for name, array in data.arrays.items()}, "mask": mask}
