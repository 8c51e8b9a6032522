"""Arrays of few different numbers in few bytes, to the bit.

A message that was quantised or thinned out holds few different numbers. Such an array is sent as the list of them and
their places in that list, deflated; where the list would be long, as the numbers themselves, deflated.
"""

import zlib

import numpy as np

FORM = "jaxfed.deflated"
"""What `Array.stype` says; Flower itself does not look at it."""

_LISTED = 1 << 16
_SAMPLE = 4096
_COUNT = 4


def unsigned(dtype: np.dtype) -> np.dtype:
    """Integers of its size."""
    return np.dtype(f"u{dtype.itemsize}")


def worthwhile(numbers: np.ndarray) -> bool:
    """Whether a sample of the entries repeats itself, so that `encode` makes the array smaller."""
    if numbers.size <= 256 or numbers.dtype.itemsize > 8:
        return False
    sample = _bits(numbers)[:: max(1, numbers.size // _SAMPLE)]
    return np.unique(sample).size <= 0.75 * sample.size


def encode(numbers: np.ndarray) -> bytes:
    """A count of listed numbers (uint32, 0 for none), these numbers, and the deflated places or entries."""
    bits = _bits(numbers)
    listed, places = np.unique(bits, return_inverse=True)
    if listed.size > min(_LISTED, bits.size // 8):
        listed, places = listed[:0], bits
    else:
        places = places.astype(_places(listed.size))
    return listed.size.to_bytes(_COUNT, "little") + listed.tobytes() + zlib.compress(places.tobytes(), level=6)


def decode(data: bytes, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """The array that `encode` was given. Never makes more than an array of this dtype and shape.

    Raises:
        ValueError: bytes that are no such array.
    """
    size, plain = int(np.prod(shape, dtype=np.int64)), unsigned(dtype)
    count = int.from_bytes(data[:_COUNT], "little")
    listed = np.frombuffer(data[_COUNT:][: count * dtype.itemsize], plain)
    if listed.size != count or count > size:
        raise ValueError(f"{count} listed numbers for {size} entries")
    places = _inflated(data[_COUNT + listed.nbytes :], size, _places(count) if count else plain)
    if count and places.max() >= count:
        raise ValueError(f"a place beyond the {count} listed numbers")
    return (listed[places] if count else places).view(dtype).reshape(shape)


def _inflated(data: bytes, size: int, dtype: np.dtype) -> np.ndarray:
    """`size` numbers, and no byte more."""
    stream, expected = zlib.decompressobj(), size * dtype.itemsize
    try:
        found = stream.decompress(data, expected + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if len(found) != expected or not stream.eof or stream.unused_data:
        raise ValueError(f"{len(found)} bytes where {expected} belong")
    return np.frombuffer(found, dtype)


def _bits(numbers: np.ndarray) -> np.ndarray:
    """Entries as unsigned integers: −0, NaN and types that NumPy does not order keep their bits."""
    return np.ascontiguousarray(numbers).reshape(-1).view(unsigned(numbers.dtype))


def _places(count: int) -> np.dtype:
    return np.dtype("u1" if count <= 256 else "u2")
