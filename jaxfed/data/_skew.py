"""Statistics of a partition, and partitions as files."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from jaxfed.data._casts import class_labels
from jaxfed.data._datasets import read_npz


class Skew(NamedTuple):
    """Statistics of a partition.

    Attributes:
        clients: N.
        samples_min: fewest samples of a client.
        samples_median: median samples of a client.
        samples_max: most samples of a client.
        classes_min: fewest classes that a client has samples of.
        classes_mean: mean over clients of the number of classes that a client has samples of.
        classes_max: most classes that a client has samples of.
        total_variation: mean over clients of ½·Σ_k |p_ik − p_k|, 0 if all have the dataset's distribution p, below 1.
    """

    clients: int
    samples_min: int
    samples_median: float
    samples_max: int
    classes_min: int
    classes_mean: float
    classes_max: int
    total_variation: float


def label_counts(labels: ArrayLike, parts: Sequence[np.ndarray]) -> np.ndarray:
    """Count every client's samples of every class, int64 [N, C], classes in sorted order."""
    classes, numbers = np.unique(class_labels(labels), return_inverse=True)
    owner, samples = np.repeat(np.arange(len(parts)), [len(part) for part in parts]), np.concatenate(parts)
    if samples.dtype.kind not in "iu" or ((samples < 0) | (samples >= len(numbers))).any():
        raise ValueError(f"expected parts with samples 0 to {len(numbers) - 1}, got others; pass their labels")
    cells = owner * len(classes) + numbers[samples]
    return np.bincount(cells, minlength=len(parts) * len(classes)).reshape(len(parts), len(classes))


def skew_of(labels: ArrayLike, counts: np.ndarray) -> Skew:
    """Compute the statistics of a partition.

    Args:
        labels: class of every sample of the dataset [n]; its distribution is p.
        counts: `label_counts(labels, parts)`.
    """
    overall = np.unique(class_labels(labels), return_counts=True)[1] / np.size(labels)
    samples, classes = counts.sum(axis=1), (counts > 0).sum(axis=1)
    distances = np.abs(counts / samples[:, None] - overall).sum(axis=1) / 2
    return Skew(
        len(counts),
        int(samples.min()),
        float(np.median(samples)),
        int(samples.max()),
        int(classes.min()),
        float(classes.mean()),
        int(classes.max()),
        float(distances.mean()),
    )


def save_parts(path: str | Path, parts: Sequence[np.ndarray]) -> None:
    """Write a partition as .npz: "samples" [M], client after client, and "lengths" [N]."""
    lengths = np.array([len(part) for part in parts], np.int64)
    with Path(path).open("wb") as file:
        np.savez_compressed(file, samples=np.concatenate(parts), lengths=lengths)


def load_parts(path: str | Path) -> list[np.ndarray]:
    """Read what `save_parts` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no such archive, or one that does not fit together.
    """
    arrays = read_npz(path)
    whole = all(array.dtype.kind in "iu" and array.ndim == 1 and (array >= 0).all() for array in arrays.values())
    if arrays.keys() != {"samples", "lengths"} or not whole or arrays["lengths"].sum() != len(arrays["samples"]):
        raise ValueError(
            f"{path}: expected samples [M] and lengths [N] with the sum M, integers from 0 on, got {sorted(arrays)}"
        )
    return np.split(arrays["samples"], np.cumsum(arrays["lengths"])[:-1])
