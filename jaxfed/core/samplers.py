"""Samplers: which clients participate in a round, drawn on the host from (seed, round)."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Literal, Protocol

import numpy as np
from numpy.typing import ArrayLike

from jaxfed.core import keys
from jaxfed.core.checks import check_choice, check_range, python_fields

DRAWS_KEPT = 64
"""Number of cached cohorts, so that each round is drawn once."""


Weights = Literal["uniform", "samples"] | ArrayLike
"""How much each client counts in the means of a cohort: all the same, by number of samples, or N numbers > 0."""


class Sampler(Protocol):
    """Draws cohorts: a static value with a fixed number of slots.

    A sampler may have an attribute `weights` (`Weights`); without one all clients count the same.
    """

    def num_slots(self, num_clients: int) -> int:
        """Return the slots C of a cohort out of `num_clients`; raises ValueError if that is impossible."""
        ...

    def draw(self, seed: int, round_number: int, num_clients: int) -> np.ndarray:
        """Return the client ids of a round, integers [C], each at most once, −1 in empty slots; a pure function."""
        ...


@dataclasses.dataclass(frozen=True)
class FixedSize:
    """A cohort of `cohort_size` different clients, every set of that size equally likely.

    Attributes:
        cohort_size: C.
        weights: of the clients in the means: "uniform", "samples" (each by its number of samples), or N numbers > 0.
    """

    cohort_size: int
    weights: Weights = dataclasses.field(default="uniform", repr=False)  # checkpoints record it under its own name

    def __post_init__(self) -> None:
        check_range("cohort_size", self.cohort_size, least=1, whole=True)
        object.__setattr__(self, "weights", checked_weights(self.weights))
        python_fields(self)

    def num_slots(self, num_clients: int) -> int:
        """Return the cohort's size; raises ValueError if there are fewer clients."""
        if self.cohort_size > num_clients:
            raise ValueError(
                f"cohort_size {self.cohort_size} is larger than the population of {num_clients} clients; "
                f"draw at most {num_clients}"
            )
        return self.cohort_size

    def draw(self, seed: int, round_number: int, num_clients: int) -> np.ndarray:
        """Return sorted ids without replacement, int32 [C]."""
        generator = keys.round_generator(seed, round_number)
        return np.sort(generator.choice(num_clients, self.num_slots(num_clients), replace=False)).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class CoinFlips:
    """Every client participates with probability P, independently in every round (Poisson sampling).

    A round may be empty: it is counted, and the parameters do not change.

    Attributes:
        participation: P in (0, 1].
        capacity: slots of a cohort; by default P·N and six standard deviations, at most N.
        rule: "independent" uses one generator per (seed, round). "reference" is the rule of the FedSpeed
            authors' code, to replay its runs and those of jaxfed 0.1.0: u = RandomState(seed + t).uniform(size=N),
            client i participates iff u[i] ≤ P, and the seed is increased by one while no client does. It is not
            Poisson sampling: an empty round repeats the next one's cohort, and seed s + 1 is seed s one round later.
        weights: as in `FixedSize`.
    """

    participation: float
    capacity: int | None = None
    rule: Literal["independent", "reference"] = "independent"
    weights: Weights = dataclasses.field(default="uniform", repr=False)

    def __post_init__(self) -> None:
        check_range("participation", self.participation, above=0.0, most=1.0)
        if self.capacity is not None:
            check_range("capacity", self.capacity, least=1, whole=True)
        check_choice("rule", self.rule, ACTIVE)
        object.__setattr__(self, "weights", checked_weights(self.weights))
        python_fields(self)

    def num_slots(self, num_clients: int) -> int:
        """Return the slots of every round of any run, so that a round is compiled once."""
        expected = self.participation * num_clients
        spread = math.sqrt(expected * (1.0 - self.participation))
        return min(num_clients, self.capacity or math.ceil(expected + 6.0 * spread + 1.0))

    def draw(self, seed: int, round_number: int, num_clients: int) -> np.ndarray:
        """Return the sorted active ids, then −1: int32 [C]; raises ValueError if they exceed the slots."""
        ids = ACTIVE[self.rule](seed, round_number, num_clients, self.participation)
        slots = self.num_slots(num_clients)
        if len(ids) > slots:
            rule = "" if self.rule == "independent" else f", rule={self.rule!r}"
            raise ValueError(
                f"round {round_number}: {len(ids)} active clients exceed {slots} slots; "
                f"pass CoinFlips({self.participation}, capacity={len(ids)}{rule}) or more"
            )
        return np.pad(ids, (0, slots - len(ids)), constant_values=-1).astype(np.int32)


def independent_coins(seed: int, round_number: int, num_clients: int, participation: float) -> np.ndarray:
    """Return the ids with u < P, u in [0, 1) from the generator of (seed, round); possibly none."""
    return np.flatnonzero(keys.round_generator(seed, round_number).random(num_clients) < participation)


def reference_coins(seed: int, round_number: int, num_clients: int, participation: float) -> np.ndarray:
    """Return the ids with u ≤ P of the first seed ≥ seed + round that has any."""
    ids, raised = np.zeros(0, np.int64), seed + round_number
    while not len(ids):
        ids = np.flatnonzero(np.random.RandomState(raised % 2**32).uniform(size=num_clients) <= participation)
        raised += 1
    return ids


ACTIVE: dict[str, Callable[[int, int, int, float], np.ndarray]] = {
    "independent": independent_coins,
    "reference": reference_coins,
}
"""The rules of `CoinFlips`: active clients of (seed, round, N, P)."""


def checked_weights(weights: Weights) -> Weights:
    """Return weights that can be compared and hashed: "uniform", "samples", or a tuple of numbers.

    Raises:
        ValueError: other text (nearest choice suggested), or anything but finite numbers [N] > 0.
    """
    if isinstance(weights, str):
        check_choice("weights", weights, ("uniform", "samples"))
        return weights
    numbers = np.asarray(weights, np.float32)
    if numbers.ndim != 1 or not np.all(np.isfinite(numbers) & (numbers > 0)):
        raise ValueError(f"weights must be 'uniform', 'samples' or N finite numbers > 0, got {weights!r:.200}")
    return tuple(numbers.tolist())


def weights_of(sampler: Sampler, lengths: ArrayLike) -> np.ndarray | None:
    """Return the weights of all clients, float32 [N], from their numbers of samples [N]; None where all count the same.

    Raises:
        ValueError: weights of another number of clients.
    """
    weights = checked_weights(getattr(sampler, "weights", "uniform"))
    if isinstance(weights, str):
        return None if weights == "uniform" else np.asarray(lengths, np.float32)
    numbers = np.asarray(weights, np.float32)
    if numbers.shape != np.shape(lengths):
        raise ValueError(f"expected weights for {np.size(lengths)} clients, got {len(numbers)}; give every client one")
    return numbers


def recorded(sampler: Sampler) -> str:
    """Return a sampler's name in checkpoints: its repr, but coin flips by the authors' rule without the rule."""
    if isinstance(sampler, CoinFlips) and sampler.rule == "reference":
        return f"CoinFlips(participation={sampler.participation!r}, capacity={sampler.capacity!r})"
    return repr(sampler)


def cohorts(sampler: Sampler, seed: int, num_clients: int) -> Callable[[int], np.ndarray]:
    """Return `draw(round) -> ids`, int32 [C], read-only; every cohort is checked, also of a user's sampler.

    Raises:
        ValueError: a seed outside 0 to 2³² − 1, or slots that are no number ≥ 1; from `draw`, ids that are no integers
            [C], lie outside −1 to N − 1, or come twice.
    """
    check_range("seed", seed, least=0, most=2**32 - 1, whole=True)
    slots = sampler.num_slots(num_clients)
    check_range(f"num_slots({num_clients}) of {sampler}", slots, least=1, whole=True)

    @functools.lru_cache(DRAWS_KEPT)
    def draw(round_number: int) -> np.ndarray:
        return _checked(sampler, round_number, sampler.draw(int(seed), round_number, num_clients), slots, num_clients)

    return draw


def first_cohort(draw: Callable[[int], np.ndarray], rounds: int = 100) -> np.ndarray:
    """Return the ids of the first non-empty round of the first `rounds`; of round 0 if all are empty."""
    drawn = (draw(number) for number in range(rounds))
    return next((ids for ids in drawn if (ids >= 0).any()), draw(0))


def _checked(sampler: Sampler, round_number: int, drawn: object, slots: int, num_clients: int) -> np.ndarray:
    ids = np.asarray(drawn)
    present = ids[ids >= 0] if ids.dtype.kind in "iu" else ids
    if ids.dtype.kind not in "iu" or ids.shape != (slots,):
        wrong = f"{ids.dtype}{list(ids.shape)}"
    elif (outside := ids[(ids < -1) | (ids >= num_clients)]).size:
        wrong = f"{sorted(set(outside.tolist()))} among {ids.tolist()}"
    elif len(np.unique(present)) < len(present):
        repeated, counts = np.unique(present, return_counts=True)
        wrong = f"{repeated[counts > 1].tolist()} more than once in {ids.tolist()}"
    else:
        kept = ids.astype(np.int32)
        kept.flags.writeable = False
        return kept
    raise ValueError(
        f"round {round_number}: expected {slots} integers from 0 to {num_clients - 1}, each at most once, with -1 in "
        f"empty slots, got {wrong}; correct draw of {sampler}"
    )
