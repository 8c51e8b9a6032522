"""Partitioners: which samples of one dataset go to which client.

Each returns the sorted sample indices of every client, int64 [nᵢ]. Except with `recycle` and in `natural`, every
sample goes to exactly one client, and every client has at least one.
"""

import heapq

import numpy as np
from numpy.typing import ArrayLike

from jaxfed.core.checks import check_range
from jaxfed.data import _recycling as recycling
from jaxfed.data._casts import class_labels

Parts = list[np.ndarray]


def iid(samples: int | ArrayLike, num_clients: int, seed: int = 0, recycle: bool = False) -> Parts:
    """Deal all samples out at random, so that client sizes differ by one at most.

    Args:
        samples: n, or an array of n labels.
        num_clients: N ≤ n.
        seed: of the generator.
        recycle: the rule of the FedSpeed authors' code instead: ⌊n/N⌋ samples each, in the order drawn, the rest
            unused.

    Raises:
        ValueError: N < 1 or N > n.
    """
    size = _size(samples)
    _check_clients(num_clients, size)
    if recycle:
        return recycling.iid(size, num_clients, seed)
    owner = np.empty(size, np.int64)
    owner[np.random.default_rng(seed).permutation(size)] = np.arange(size) % num_clients
    return _parts(owner, num_clients)


def dirichlet(
    labels: ArrayLike,
    num_clients: int,
    concentration: float,
    seed: int = 0,
    recycle: bool = False,
    min_samples: int = 1,
) -> Parts:
    """Split every class by its own distribution q_k ~ Dirichlet(c·1_N), client i gets the share q_ki of class k.

    Clients with fewer than `min_samples` samples then take random samples, one by one, from the client that has most at
    that moment. Nothing is drawn again, so this always terminates.

    Args:
        labels: class of every sample [n].
        num_clients: N.
        concentration: c > 0; the smaller, the more a class is held by few clients.
        seed: of the generator.
        recycle: the client-wise rule of the FedSpeed authors' code instead: pᵢ ~ Dirichlet(c·1_C) over classes, ⌊n/N⌋
            samples each; a class drawn when it is used up begins again, so clients may share samples.
        min_samples: fewest samples of a client, N·`min_samples` ≤ n; not with `recycle`.

    Raises:
        ValueError: too few samples, c ≤ 0, c so small that a share is not finite, or labels that are missing (None,
            NaN) or no whole numbers.
    """
    labels = class_labels(labels)
    check_range("concentration", concentration, above=0.0)
    check_range("min_samples", min_samples, least=1, whole=True)
    _check_clients(num_clients, len(labels), min_samples)
    if recycle:
        return recycling.dirichlet(labels, num_clients, concentration, seed)
    generator = np.random.default_rng(seed)
    owner = np.empty(len(labels), np.int64)
    for number in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == number))
        owner[members] = _shares(generator, len(members), num_clients, concentration)
    return _parts(_filled_up(owner, num_clients, min_samples, generator), num_clients)


def pathological(
    labels: ArrayLike, num_clients: int, classes_per_client: int, seed: int = 0, recycle: bool = False
) -> Parts:
    """Give every client shards of exactly `classes_per_client` classes.

    At first every class is one shard; the largest is divided again until there are N·c of nearly equal size. Clients
    in turn take c shards of different classes, from the classes with most shards left, ties at random.

    Args:
        labels: class of every sample [n].
        num_clients: N.
        classes_per_client: c, from 1 to the number of classes; N·c at least that number and at most n.
        seed: of the generator.
        recycle: the rule of the FedSpeed authors' code instead: c random classes in equal parts, ⌊n/N⌋ samples each; a
            class drawn when it is used up begins again, so clients may share samples.

    Raises:
        ValueError: arguments out of range, or classes too small to be cut into so many shards.
    """
    labels = class_labels(labels)
    _check_clients(num_clients, len(labels))
    classes, labels = np.unique(labels, return_inverse=True)
    check_range("classes_per_client", classes_per_client, least=1, most=len(classes), whole=True)
    if recycle:
        return recycling.pathological(labels, num_clients, classes_per_client, seed)
    generator = np.random.default_rng(seed)
    shards = _shards(np.bincount(labels), num_clients, classes_per_client)
    holders = _holders(shards, num_clients, classes_per_client, generator)
    owner = np.empty(len(labels), np.int64)
    for number, clients in enumerate(holders):
        members = generator.permutation(np.flatnonzero(labels == number))
        owner[members] = np.asarray(clients)[np.arange(len(members)) % len(clients)]
    return _parts(owner, num_clients)


def quantity_skew(
    samples: int | ArrayLike, num_clients: int, concentration: float, seed: int = 0, min_samples: int = 1
) -> Parts:
    """Deal samples out at random in unequal amounts: shares of the clients ~ Dirichlet(c·1_N).

    Args:
        samples: n, or an array of n labels.
        num_clients: N.
        concentration: c > 0; the smaller, the more unequal.
        seed: of the generator.
        min_samples: fewest samples of a client; filled up as by `dirichlet`.

    Raises:
        ValueError: too few samples, c ≤ 0, or c so small that a share is not finite.
    """
    size = _size(samples)
    check_range("concentration", concentration, above=0.0)
    check_range("min_samples", min_samples, least=1, whole=True)
    _check_clients(num_clients, size, min_samples)
    generator = np.random.default_rng(seed)
    owner = np.empty(size, np.int64)
    owner[generator.permutation(size)] = _shares(generator, size, num_clients, concentration)
    return _parts(_filled_up(owner, num_clients, min_samples, generator), num_clients)


def natural(names: ArrayLike) -> tuple[np.ndarray, Parts]:
    """Group samples by the client they come from.

    Args:
        names: name or number of every sample's client [n], such as a column "user".

    Returns:
        (names [N], parts): clients in order of name, each with the numbers of its samples.

    Raises:
        ValueError: no samples, or no array [n].
    """
    unique, owner = np.unique(class_labels(names, "names"), return_inverse=True)
    return unique, _parts(owner, len(unique))


def _size(samples: int | ArrayLike) -> int:
    return int(samples) if isinstance(samples, int | np.integer) else len(class_labels(samples))


def _check_clients(num_clients: int, size: int, min_samples: int = 1) -> None:
    check_range("num_clients", num_clients, least=1, whole=True)
    if num_clients * min_samples > size:
        raise ValueError(
            f"{num_clients} clients need at least {num_clients * min_samples} samples, got {size}; take fewer clients"
        )


def _parts(owner: np.ndarray, num_clients: int) -> Parts:
    """Return the sample numbers of every client, from the client of every sample."""
    counts = np.bincount(owner, minlength=num_clients)
    return np.split(np.argsort(owner, kind="stable"), np.cumsum(counts)[:-1])


def _shares(generator: np.random.Generator, size: int, num_clients: int, concentration: float) -> np.ndarray:
    """Return the client of each of `size` samples, in order of clients, by shares ~ Dirichlet(c·1_N)."""
    share = generator.dirichlet(np.full(num_clients, float(concentration)))
    if not np.isfinite(share).all():
        raise ValueError(f"concentration {concentration} is too small to draw from; take a larger one")
    ends = np.rint(np.cumsum(share) * size).astype(np.int64)
    ends[-1] = size
    return np.repeat(np.arange(num_clients), np.diff(ends, prepend=0))


def _filled_up(owner: np.ndarray, num_clients: int, min_samples: int, generator: np.random.Generator) -> np.ndarray:
    """Return the clients of all samples, after those with too few took samples from those with most."""
    counts = np.bincount(owner, minlength=num_clients)
    mixed = generator.permutation(len(owner))
    mixed = mixed[np.argsort(owner[mixed], kind="stable")]
    starts = np.cumsum(counts) - counts
    most = [(-int(counts[client]), int(client)) for client in np.flatnonzero(counts > min_samples)]
    heapq.heapify(most)
    owner = owner.copy()
    for client in np.flatnonzero(counts < min_samples):
        for _ in range(min_samples - counts[client]):
            number, giver = most[0]
            owner[mixed[starts[giver] - number - 1]] = client
            heapq.heapreplace(most, (number + 1, giver))
    return owner


def _shards(sizes: np.ndarray, num_clients: int, classes_per_client: int) -> np.ndarray:
    """Return the shards of every class, N·c in all: at most N and at most one per sample, sizes as equal as can be."""
    wanted, most = num_clients * classes_per_client, np.minimum(sizes, num_clients)
    if not len(sizes) <= wanted <= most.sum():
        raise ValueError(
            f"{num_clients} clients with {classes_per_client} classes each take {wanted} shards of different classes, "
            f"expected {len(sizes)} to {most.sum()} (a class gives one to a client, none empty); change either number"
        )
    shards = np.ones(len(sizes), np.int64)
    largest = [(-float(size), number) for number, size in enumerate(sizes) if most[number] > 1]
    heapq.heapify(largest)
    for _ in range(wanted - len(sizes)):
        _, number = heapq.heappop(largest)
        shards[number] += 1
        if shards[number] < most[number]:
            heapq.heappush(largest, (-sizes[number] / shards[number], number))
    return shards


def _holders(
    shards: np.ndarray, num_clients: int, classes_per_client: int, generator: np.random.Generator
) -> list[list[int]]:
    """Return the clients of every class; taking from the classes with most left, c different ones always remain."""
    left = shards.astype(np.float64)
    holders: list[list[int]] = [[] for _ in shards]
    for client in generator.permutation(num_clients):
        taken = np.argsort(left + generator.uniform(size=len(left)) / 2)[-classes_per_client:]
        left[taken] -= 1
        for number in taken:
            holders[number].append(int(client))
    return holders
