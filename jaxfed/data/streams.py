"""Samples that stay in host memory or in files, and are read when a client that has them takes part."""

import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from numpy.typing import ArrayLike

from jaxfed.data import _casts as casts
from jaxfed.data.batches import ClientData, parted


class HostSamples:
    """Samples [n, ...] on the host; `samples[index]` reads those at integers [...] or a slice.

    Args:
        array: a NumPy array, a memory map, or anything with `shape`, `dtype` and `array[integers [k], increasing]`,
            such as an array of zarr or a dataset of h5py. One thread at a time reads it.
        name: for errors.

    Attributes:
        shape: (n, ...).
        dtype: that jax has for the samples: 32 bits at most without jax_enable_x64.

    Raises:
        ValueError: no numbers.
    """

    def __init__(self, array: Any, name: str) -> None:
        by_label = hasattr(array, "iloc")  # pandas finds samples by label, not by position
        if by_label or not isinstance(getattr(array, "dtype", None), np.dtype) or not hasattr(array, "shape"):
            array = casts.numbers(array, f"array {name!r}")
        casts.numbers(np.zeros(0, array.dtype), f"array {name!r}")
        self._array, self._name, self._lock = array, name, threading.Lock()
        self.shape, self.dtype = tuple(array.shape), jax.dtypes.canonicalize_dtype(array.dtype)

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, index: Any) -> np.ndarray:
        """Read samples [..., *shape of one], each once.

        Raises:
            ValueError: missing values among them, or numbers that `dtype` does not hold; an index inside a compiled
                function.
        """
        if isinstance(index, jax.core.Tracer):
            raise ValueError(f"array {self._name!r}: expected samples on the device under jax.jit, got streamed(...)")
        if isinstance(index, slice):
            return self._read(index)
        wanted, places = np.unique(index, return_inverse=True)
        return self._read(wanted)[places.reshape(np.shape(index))]

    def _read(self, wanted: Any) -> np.ndarray:
        with self._lock:
            read: np.ndarray = casts.resident(self._array[wanted], f"array {self._name!r}")
        return read

    def in_parts(self, most: int) -> Iterator[np.ndarray]:
        """Read all samples, in parts of at most so many bytes, or one sample."""
        size = math.prod(self.shape[1:]) * np.dtype(self.dtype).itemsize
        count = max(1, most // max(1, size))
        for first in range(0, len(self), count):
            yield self[first : first + count]


def streamed(arrays: Mapping[str, Any], parts: Sequence[ArrayLike], *, allow_empty: bool = False) -> ClientData:
    """Split a dataset that stays on the host among clients.

    For data beyond the devices' memory, or the host's: `jaxfed.simulate` reads the samples of a round while the round
    before it runs.

        images = np.load("x.npy", mmap_mode="r")
        data = jaxfed.data.streamed({"x": images, "y": np.load("y.npy")}, jaxfed.data.dirichlet(labels, 1000, 0.3))

    Batches, and so all results, are those of `partitioned` with the same arrays. Clients' rows are kept in host memory
    or on disk too (`HostStore`, the default here, or `DiskStore`). A checkpoint compares all samples, and so reads them
    once.

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
            f"{what}: expected samples on the device, got streamed(...) ones, which jaxfed.simulate with HostStore or "
            "DiskStore alone reads round by round; pass partitioned(...), or a part of the clients that fits"
        )
