"""Winograd's short convolutions along one axis: m + k − 1 products give m outputs of a kernel of k taps.

LeNet's second convolution needs 16 products where plain sums need 40. A local step of LeNet on two cores took 28 ms
in a prototype by patches alone, and takes 19.0 ms with this (`benchmarks/results/rounds.jsonl`); on both days the plain
products of the gradient, at the rate of a matrix product, would take 15 to 16 ms.
"""

from functools import cache
from typing import NamedTuple

import numpy as np

POINTS = (0.0, 1.0, -1.0, 0.5, -0.5, 2.0, -2.0)
"""Where the polynomials are evaluated, and infinity: eight points in all; with more, float32 loses too many digits."""


class Transforms(NamedTuple):
    """y = A·[(G·w) ∘ (B·d)] for one tile of inputs d [n], kernel w [k] and outputs y [m], n = m + k − 1.

    Attributes:
        output: A [m, n].
        kernel: G [n, k].
        data: B [n, n].
    """

    output: np.ndarray
    kernel: np.ndarray
    data: np.ndarray


@cache
def transforms(size: int, taps: int) -> Transforms:
    """Return the float64 matrices of F(m, k), yₒ = Σⱼ wⱼ·dₒ₊ⱼ, m = `size`, k = `taps`, m + k ≤ 9.

    Source: Lavin & Gray, Fast Algorithms for Convolutional Neural Networks, 2016; A, G and B are the transposed
    Toom–Cook interpolation at `POINTS` and infinity.
    """
    count = size + taps - 1
    points = np.array(POINTS[: count - 1])

    def evaluate(terms: int) -> np.ndarray:
        return np.vstack([points[:, None] ** np.arange(terms), np.eye(1, terms, terms - 1)])

    gaps = points[:, None] - points + np.eye(count - 1)
    scale = np.append(1 / np.prod(gaps, axis=1), 1.0)[:, None]
    return Transforms(evaluate(size).T, evaluate(taps) * scale, np.linalg.inv(evaluate(count)).T / scale)


def tile_size(outputs: int, taps: int) -> int:
    """Return the m with the fewest products along the axis, ⌈outputs/m⌉·(m + k − 1); 1 if plain sums need fewer."""
    sizes = range(1, len(POINTS) + 3 - taps)
    return min(sizes, key=lambda size: (-(-outputs // size) * (size + taps - 1) if size > 1 else outputs * taps, size))


@cache
def tiled(width: int, outputs: int, taps: int, before: int, size: int) -> np.ndarray:
    """Return B for all tiles of a line at once, [n·tiles, width]: the line's padding (`before` zeros) costs nothing."""
    data = transforms(size, taps).data
    tiles = -(-outputs // size)
    columns = np.arange(tiles)[:, None] * size + np.arange(len(data)) - before
    spread = np.arange(width) == columns[..., None]
    return np.einsum("na,taw->ntw", data, spread).reshape(-1, width)
