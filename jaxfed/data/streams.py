"""Samples that stay in host memory or in files, and are read when a client that has them takes part."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from numpy.typing import ArrayLike

from jaxfed.data import _casts as casts
from jaxfed.data.batches import ClientData, parted


class HostSamples:
    """Samples [n, ...] on the host; `samples[index]` reads those at integers [k] or a slice.

    Args:
        array: a NumPy array, a memory map, or anything with `shape`, `dtype` and `array[integers [k], increasing]`,
            such as an array of zarr or a dataset of h5py.
        name: for errors.

    Attributes:
        shape: (n, ...).
        dtype: that jax has for the samples: 32 bits at most without jax_enable_x64.

    Raises:
        ValueError: no numbers.
    """

    def __init__(self, array: Any, name: str) -> None:
        if not hasattr(array, "shape") or not hasattr(array, "dtype"):
            array = np.asarray(array)
        casts.numbers(np.zeros(0, array.dtype), f"array {name!r}")
        self._array, self._name = array, name
        self.shape, self.dtype = tuple(array.shape), jax.dtypes.canonicalize_dtype(array.dtype)

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, index: Any) -> np.ndarray:
        """Read samples [k, ...].

        Raises:
            ValueError: numbers among them that `dtype` does not hold.
        """
        read: np.ndarray = casts.resident(np.asarray(self._array[index]), f"array {self._name!r}")
        return read


def streamed(arrays: Mapping[str, Any], parts: Sequence[ArrayLike], *, allow_empty: bool = False) -> ClientData:
    """Split a dataset that stays on the host among clients.

    For data beyond the devices' memory, or the host's: `jaxfed.simulate` reads the samples of a round while the round
    before it runs.

        images = np.load("x.npy", mmap_mode="r")
        data = jaxfed.data.streamed({"x": images, "y": np.load("y.npy")}, jaxfed.data.dirichlet(labels, 1000, 0.3))

    Batches, and so all results, are those of `partitioned` with the same arrays. Clients' rows are kept in host memory
    or on disk too (`HostStore`, the default here, or `DiskStore`).

    Args:
        arrays: named arrays [n, ...] of one length: see `HostSamples`. Nothing is read or copied now; numbers that jax
            would change are found when they are read.
        parts: as of `partitioned`.
        allow_empty: as of `partitioned`.

    Raises:
        ValueError: as of `partitioned`.
    """
    return parted({name: HostSamples(array, name) for name, array in arrays.items()}, parts, allow_empty)


def on_host(data: ClientData) -> bool:
    """Return whether samples stay on the host."""
    return any(isinstance(array, HostSamples) for array in data.arrays.values())


def check_resident(data: ClientData, what: str) -> None:
    """Raise ValueError if samples stay on the host; `what` needs them on the device."""
    if on_host(data):
        raise ValueError(
            f"{what}: expected samples on the device, got streamed(...) ones, which jaxfed.simulate alone reads round "
            "by round; pass partitioned(...), or a part of the clients that fits"
        )
