"""How a client's samples become batches: steps, epochs, and clients that stop early or are slow."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxfed.core import keys
from jaxfed.core.checks import check_range, python_fields
from jaxfed.core.types import Key


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


@dataclasses.dataclass(frozen=True)
class Stragglers:
    """Clients that do not finish: each, with probability `share` in every round, stops after k of its steps.

    k is uniform from `least` to the client's number of steps; the other steps are empty. Such clients send what they
    have, as in FedProx and FedNova, instead of being left out.

    Attributes:
        batching: of all clients.
        share: probability of stopping early.
        least: steps that every client does.

    Source: Li et al., Federated Optimization in Heterogeneous Networks (FedProx), MLSys 2020, section 5.2.
    """

    batching: Batching
    share: float = 0.5
    least: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.batching, OwnSteps):
            raise ValueError("expected OwnSteps around Stragglers, got it inside; turn them round")
        check_range("share", self.share, least=0.0, most=1.0)
        check_range("least", self.least, least=1, whole=True)
        python_fields(self)

    def num_steps(self, longest: int) -> int:
        """Return K of the batching."""
        return self.batching.num_steps(longest)

    def slots(self, key: Key, length: Array, longest: int) -> tuple[Array, Array]:
        """Return the batching's slots; those from step k on are empty."""
        index, mask = self.batching.slots(key, length, longest)
        full = jnp.sum(jnp.any(mask, axis=1), dtype=jnp.int32)
        stops, place = jax.random.uniform(keys.straggler_key(key), (2,))
        choices = (full - self.least + 1).astype(place.dtype)
        early = jnp.minimum(self.least + jnp.floor(place * choices).astype(jnp.int32), full)
        kept = jnp.where(stops < self.share, early, full)
        return index, mask & jnp.expand_dims(jnp.arange(len(mask), dtype=jnp.int32) < kept, 1)


@dataclasses.dataclass(frozen=True)
class OwnSteps:
    """Clients of different speed: client i does at most `most[i]` of its steps in every round; the rest are empty.

    It goes around other batchings, `Stragglers` among them.

    Attributes:
        batching: of all clients.
        most: positive integers, one for every client.

    Raises:
        ValueError: no whole numbers, or one below 1.
    """

    batching: Batching
    most: Sequence[int]

    def __post_init__(self) -> None:
        most = np.asarray(self.most)
        if most.ndim != 1 or not most.size or most.dtype.kind not in "iu":
            raise ValueError(f"most: expected a whole number of steps for every client, got {self.most!r}")
        object.__setattr__(self, "most", tuple(most.tolist()))
        check_range(f"most[{most.argmin()}]", int(most.min()), least=1, whole=True)

    def num_steps(self, longest: int) -> int:
        """Return K of the batching; where the largest of `most` is smaller, that."""
        return min(self.batching.num_steps(longest), max(self.most))

    def slots(self, key: Key, length: Array, longest: int) -> tuple[Array, Array]:
        """Return the first K of the batching's slots."""
        index, mask = self.batching.slots(key, length, longest)
        steps = self.num_steps(longest)
        return index[:steps], mask[:steps]


def own_steps(batching: Batching, clients: Array, num_clients: int) -> Array | None:
    """Return the most steps int32 [C] of clients int32 [C] under `OwnSteps`; None where no client has its own.

    Raises:
        ValueError: `OwnSteps` for another number of clients.
    """
    if not isinstance(batching, OwnSteps):
        return None
    if len(batching.most) != num_clients:
        raise ValueError(f"most: expected a number for each of {num_clients} clients, got {len(batching.most)}")
    return jnp.asarray(batching.most, jnp.int32)[clients]


def _shuffled(key: Key, length: Array, longest: int) -> Array:
    """Return a random order of 0 … length−1 in the first `length` of `longest` positions, int32 [longest].

    One fold of the key per position: the draw of a position depends on no array's size, for any generator of jax.
    """
    position = jnp.arange(longest, dtype=jnp.int32)
    draws = jax.random.key_data(keys.numbered_keys(key, longest))[:, 0]
    return jnp.argsort(jnp.where(position < length, draws >> 1, jnp.uint32(2**32 - 1))).astype(jnp.int32)
