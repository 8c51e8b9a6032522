"""Samplers: who takes part in a round. They draw on the host, from (seed, round) alone."""

import dataclasses
import math
from typing import Protocol

import numpy as np

from jaxfed.checks import check_range


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
