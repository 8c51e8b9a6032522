"""Samples stored as rows of numbers: a TPU keeps images in tiles of 8 × 128 that are mostly empty."""

import dataclasses
import math
from typing import Any

import jax
from jaxtyping import Array

from jaxfed.data.batches import ClientData


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FlatSamples:
    """Samples [n, ...], which are reshaped when they are gathered.

    Attributes:
        flat: [n, prod(shape)].
        shape: of a sample.
    """

    flat: Array
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})

    def __getitem__(self, index: Array) -> Array:
        """Return samples [..., *shape] at positions `index` [...]."""
        return self.flat[index].reshape(*index.shape, *self.shape)


def flattened(data: ClientData) -> ClientData:
    """Return the same data with samples of two axes or more stored flat; `draw_batches` reads both alike.

    A float32 image [32, 32, 3] takes 43 times its bytes in tiles of 8 × 128: the three channels are padded to 128.
    """

    def stored(array: Array) -> Array | FlatSamples:
        shape = array.shape[1:]
        return FlatSamples(array.reshape(len(array), math.prod(shape)), shape) if len(shape) > 1 else array

    arrays: dict[str, Any] = {name: stored(array) for name, array in data.arrays.items()}
    return data._replace(arrays=arrays)
