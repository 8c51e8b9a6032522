"""The splits of the FedSpeed authors' code, exactly: every client has ⌊n/N⌋ samples of its own class distribution.

One generator `RandomState(seed)` draws first a permutation p of all samples, then the distributions, then the samples:
a random client that is not yet full draws a class and takes that class's last unused sample; a class that is drawn when
it is used up begins again, so samples repeat across clients. A recorded split had seed 20.
"""

import numpy as np


def iid(size: int, num_clients: int, seed: int) -> list[np.ndarray]:
    """Give client i the samples p[i·m : (i+1)·m], m = ⌊n/N⌋."""
    order = np.random.RandomState(seed).permutation(size)
    share = size // num_clients
    return list(order[: share * num_clients].reshape(num_clients, share))


def dirichlet(labels: np.ndarray, num_clients: int, concentration: float, seed: int) -> list[np.ndarray]:
    """Draw class distributions ~ Dirichlet(c·1_C); raise ValueError if c is so small that one is not finite."""
    generator = np.random.RandomState(seed)
    order = generator.permutation(len(labels))
    distributions = generator.dirichlet(np.full(len(np.unique(labels)), float(concentration)), size=num_clients)
    if not np.isfinite(distributions).all():
        raise ValueError(f"concentration {concentration} is too small to draw from; take a larger one")
    return _drawn(generator, order, labels, distributions)


def pathological(labels: np.ndarray, num_clients: int, classes_per_client: int, seed: int) -> list[np.ndarray]:
    """Give every client the class distribution 1/c on c random classes."""
    generator = np.random.RandomState(seed)
    order = generator.permutation(len(labels))
    distributions = np.zeros((num_clients, len(np.unique(labels))))
    distributions[:, :classes_per_client] = 1
    for distribution in distributions:
        generator.shuffle(distribution)
    return _drawn(generator, order, labels, distributions / classes_per_client)


def _drawn(
    generator: np.random.RandomState, order: np.ndarray, labels: np.ndarray, distributions: np.ndarray
) -> list[np.ndarray]:
    """Return every client's samples, in reverse order of their draws."""
    _, classes = np.unique(labels[order], return_inverse=True)
    members = [np.flatnonzero(classes == number) for number in range(distributions.shape[1])]
    left = [len(each) for each in members]
    # A draw beyond the last sum, by rounding, is the last class that the distribution has.
    sums, last = (
        np.cumsum(distributions, axis=1),
        distributions.shape[1] - 1 - np.argmax(distributions[:, ::-1] > 0, axis=1),
    )
    missing = np.full(len(distributions), len(order) // len(distributions))
    parts, remaining = np.empty((len(distributions), missing[0]), np.int64), int(missing.sum())
    while remaining:
        client = generator.randint(len(distributions))
        if not missing[client]:
            continue
        number = _class(generator, sums[client], last[client])
        while not left[number]:
            left[number] = len(members[number])
            number = _class(generator, sums[client], last[client])
        left[number] -= 1
        missing[client] -= 1
        remaining -= 1
        parts[client, missing[client]] = order[members[number][left[number]]]
    return list(parts)


def _class(generator: np.random.RandomState, sums: np.ndarray, last: int) -> int:
    """Return the first class k with u ≤ Σ_{j ≤ k} p_j."""
    return min(int(np.searchsorted(sums, generator.uniform())), int(last))
