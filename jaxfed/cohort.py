"""Cohorts: who is drawn, where the clients' rows are held, and the one `vmap` over clients."""

import dataclasses
import math
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from jaxfed import tree
from jaxfed.algorithm import ClientFn, ClientRow, ClientUpdate, Cohort, CohortResult
from jaxfed.checks import check_range
from jaxfed.types import Key


@dataclasses.dataclass(frozen=True)
class Vmap:
    """Plan: all clients of the cohort at once, as one batched computation."""

    def __call__(self, client: ClientFn, cohort: Cohort, key: Key, /) -> CohortResult:
        """Run `client` on every slot of the cohort and reduce."""
        return reduce(cohort, jax.vmap(client)(cohort, client_keys(key, cohort.ids)))


def vmap() -> Vmap:
    """Plan that trains all clients of a cohort at once: memory grows with the cohort, there is no loop."""
    return Vmap()


def client_keys(key: Key, ids: Array) -> Key:
    """One key [C] for every client, by its id: a client's randomness depends on no slot, chunk or device."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, ids)


def reduce(cohort: Cohort, updates: ClientUpdate) -> CohortResult:
    """Unweighted mean of the messages [C, ...] over the clients present and finite; the others keep their row."""
    present = cohort.ids >= 0
    finite = jax.vmap(tree.all_finite)((updates.message, updates.row))
    used = present & finite
    return CohortResult(
        message=tree.masked_mean(updates.message, used),
        rows=tree.where(used, updates.row, cohort.rows),
        client=tree.masked_mean(updates.info, used),
        num_used=jnp.sum(used, dtype=jnp.int32),
        excluded=present & ~finite,
    )


class Sampler(Protocol):
    """Draws cohorts: a static value with a fixed number of slots."""

    def num_slots(self, num_clients: int) -> int:
        """Slots C of a cohort out of `num_clients`; raises ValueError where that cannot be."""
        ...

    def draw(self, seed: int, round_number: int, num_clients: int) -> np.ndarray:
        """Client ids of a round, int32 [C], −1 in empty slots; depends on its arguments only."""
        ...


@dataclasses.dataclass(frozen=True)
class FixedSize:
    """A cohort of `cohort_size` different clients, every set of that size equally likely."""

    cohort_size: int

    def __post_init__(self) -> None:
        check_range("cohort_size", self.cohort_size, least=1)

    def num_slots(self, num_clients: int) -> int:
        """The cohort's size; raises ValueError if there are fewer clients."""
        if self.cohort_size > num_clients:
            raise ValueError(
                f"cohort_size {self.cohort_size} is larger than the population of {num_clients} clients; "
                f"draw at most {num_clients}"
            )
        return self.cohort_size

    def draw(self, seed: int, round_number: int, num_clients: int) -> np.ndarray:
        """Sorted ids without replacement, int32 [C]."""
        generator = np.random.default_rng([seed, round_number])
        return np.sort(generator.choice(num_clients, self.num_slots(num_clients), replace=False)).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class CoinFlips:
    """Every client flips a coin of its own: active iff u[i] ≤ P, u = RandomState(seed + t).uniform(size=N).

    If nobody is active, the seed is raised by one until somebody is. This is the rule of the FedSpeed authors' code.

    Attributes:
      participation: P in (0, 1].
      capacity: slots of a cohort; by default P·N and six standard deviations, at most N.
    """

    participation: float
    capacity: int | None = None

    def __post_init__(self) -> None:
        check_range("participation", self.participation, above=0.0, most=1.0)
        if self.capacity is not None:
            check_range("capacity", self.capacity, least=1)

    def num_slots(self, num_clients: int) -> int:
        """Slots that all rounds of any run share, so that a round is compiled once."""
        expected = self.participation * num_clients
        spread = math.sqrt(expected * (1.0 - self.participation))
        return min(num_clients, self.capacity or math.ceil(expected + 6.0 * spread + 1.0))

    def draw(self, seed: int, round_number: int, num_clients: int) -> np.ndarray:
        """Ids of the active clients in rising order, then −1: int32 [C]. Raises ValueError if they exceed the slots."""
        ids = active_clients(seed + round_number, num_clients, self.participation)
        slots = self.num_slots(num_clients)
        if len(ids) > slots:
            raise ValueError(
                f"round {round_number}: {len(ids)} active clients exceed {slots} slots; "
                f"pass CoinFlips({self.participation}, capacity={len(ids)}) or more"
            )
        return np.pad(ids, (0, slots - len(ids)), constant_values=-1).astype(np.int32)


def active_clients(seed: int, num_clients: int, participation: float) -> np.ndarray:
    """Ids with u ≤ P of the first seed from `seed` on that has any."""
    ids = np.flatnonzero(np.random.RandomState(seed).uniform(size=num_clients) <= participation)
    return ids if len(ids) else active_clients(seed + 1, num_clients, participation)


class Store(Protocol):
    """Holds every client's row: a static value; its state is a pytree, traced within the compiled round."""

    def init(self, row: ClientRow, num_clients: int) -> PyTree:
        """State of a store in which every client holds `row`."""
        ...

    def gather(self, state: PyTree, ids: Array) -> ClientRow:
        """Rows [C, ...] of the clients `ids`; whatever is finite for an empty slot."""
        ...

    def scatter(self, state: PyTree, ids: Array, rows: ClientRow) -> PyTree:
        """State in which the clients `ids` hold `rows`, everybody else what they held; empty slots are dropped."""
        ...


@dataclasses.dataclass(frozen=True)
class DeviceStore:
    """Rows of all clients on the device, leaves [N, ...]."""

    def init(self, row: ClientRow, num_clients: int) -> ClientRow:
        """N copies of `row`."""
        return jax.tree.map(lambda leaf: jnp.repeat(leaf[None], num_clients, axis=0), row)

    def gather(self, state: ClientRow, ids: Array) -> ClientRow:
        """Rows [C, ...]; an empty slot gets client 0's."""
        return jax.tree.map(lambda leaf: leaf[jnp.maximum(ids, 0)], state)

    def scatter(self, state: ClientRow, ids: Array, rows: ClientRow) -> ClientRow:
        """Write rows in place where the state is donated."""

        def write(leaf: Array, new: Array) -> Array:
            beyond = leaf.shape[0]
            return leaf.at[jnp.where(ids >= 0, ids, beyond)].set(new, mode="drop")

        return jax.tree.map(write, state, rows)
