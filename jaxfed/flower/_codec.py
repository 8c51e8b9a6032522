"""Lossless compression of arrays with few different values.

A quantised or sparse message has few different values. Such an array is sent as a table of values and deflated
indices into it; where the table would be long, as the deflated values themselves.
"""

import zlib

import numpy as np

FORM = "jaxfed.deflated"
"""Value of `Array.stype`; Flower itself does not read it."""

_LARGEST_TABLE = 1 << 16
_SAMPLE = 4096
_COUNT = 4


def unsigned(dtype: np.dtype) -> np.dtype:
    """Return the unsigned integer dtype of the same size."""
    return np.dtype(f"u{dtype.itemsize}")


def worthwhile(numbers: np.ndarray) -> bool:
    """Return whether a sample of the entries has repeated values, so that `encode` makes the array smaller."""
    if numbers.size <= 256 or numbers.dtype.itemsize > 8:
        return False
    sample = _bits(numbers)[:: max(1, numbers.size // _SAMPLE)]
    return np.unique(sample).size <= 0.75 * sample.size


def encode(numbers: np.ndarray) -> bytes:
    """Return the size of the table (uint32, 0 for none), the table, and the deflated indices or entries."""
    bits = _bits(numbers)
    table, indices = np.unique(bits, return_inverse=True)
    if table.size > min(_LARGEST_TABLE, bits.size // 8):
        table, indices = table[:0], bits
    else:
        indices = indices.astype(_indices(table.size))
    return table.size.to_bytes(_COUNT, "little") + table.tobytes() + zlib.compress(indices.tobytes(), level=6)


def decode(data: bytes, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """Return the array that was encoded. Never allocates more than an array of this dtype and shape.

    Raises:
        ValueError: bytes that do not encode such an array.
    """
    size, plain = int(np.prod(shape, dtype=np.int64)), unsigned(dtype)
    count = int.from_bytes(data[:_COUNT], "little")
    table = np.frombuffer(data[_COUNT:][: count * dtype.itemsize], plain)
    if table.size != count or count > size:
        raise ValueError(f"a table of {count} values for {size} entries")
    indices = _inflated(data[_COUNT + table.nbytes :], size, _indices(count) if count else plain)
    if count and indices.max() >= count:
        raise ValueError(f"an index beyond the {count} values of the table")
    return (table[indices] if count else indices).view(dtype).reshape(shape)


def _inflated(data: bytes, size: int, dtype: np.dtype) -> np.ndarray:
    """Return exactly `size` numbers."""
    stream, expected = zlib.decompressobj(), size * dtype.itemsize
    try:
        inflated = stream.decompress(data, expected + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if len(inflated) != expected or not stream.eof or stream.unused_data:
        raise ValueError(f"{len(inflated)} bytes, expected {expected}")
    return np.frombuffer(inflated, dtype)


def _bits(numbers: np.ndarray) -> np.ndarray:
    """Return entries as unsigned integers: −0, NaN and dtypes that NumPy cannot sort keep their bits."""
    return np.ascontiguousarray(numbers).reshape(-1).view(unsigned(numbers.dtype))


def _indices(count: int) -> np.dtype:
    return np.dtype("u1" if count <= 256 else "u2")
