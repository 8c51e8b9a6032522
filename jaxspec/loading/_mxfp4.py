"""Arrays in MXFP4, dequantised one at a time: 32 numbers of four bits share the exponent of a power of two."""

import math

import jax.numpy as jnp
import numpy as np

from jaxspec.loading._weights import Arrays, Entry

#: Ends of the names of an array's two parts: pairs of four-bit numbers, the first one in the lower half; exponents.
BLOCKS, SCALES = "_blocks", "_scales"
PACKED = BLOCKS, SCALES
#: Numbers of four bits: a sign, two bits of exponent, one of mantissa.
MAGNITUDES = np.asarray([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0], np.float32)
NUMBERS = np.concatenate([MAGNITUDES, -MAGNITUDES])
#: What is subtracted from an exponent.
BIAS = 127


class Mxfp4Weights:
    """Arrays of which some are stored as ``name_blocks`` [E, N, K/32, 16] and ``name_scales`` [E, N, K/32].

    They are read as ``name`` [E, K, N] in bfloat16, which holds each of their numbers exactly.

    Args:
        arrays: as they are stored.

    Raises:
        ValueError: blocks without their scales, or of another shape.
    """

    def __init__(self, arrays: Arrays):
        self._arrays = arrays
        blocks = [name for name in arrays.entries if name.endswith(BLOCKS)]
        self._packed = {name.removesuffix(BLOCKS): name for name in blocks}
        parts = {name + part for name in self._packed for part in PACKED}
        self.entries = {name: entry for name, entry in arrays.entries.items() if name not in parts}
        self.entries |= {name: _entry(arrays, name) for name in self._packed}

    def equal(self, name: str, other: str) -> bool:
        """Return whether two arrays are equal."""
        if name in self._packed or other in self._packed:
            return np.array_equal(self[name], self[other])
        return self._arrays.equal(name, other)

    def __getitem__(self, name: str) -> np.ndarray:
        """Return the array of that name."""
        if name not in self._packed:
            return self._arrays[name]
        blocks, scales = self._arrays[name + BLOCKS], self._arrays[name + SCALES]
        unpacked = np.empty(self.entries[name].shape, jnp.bfloat16)
        for expert, (pairs, exponents) in enumerate(zip(blocks, scales, strict=True)):
            unpacked[expert] = dequantised(pairs, exponents).T
        return unpacked


def dequantised(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Return numbers · 2^(scale − 127) of blocks [N, K/32, 16] and scales [N, K/32], both bytes: [N, K] float32."""
    halves = np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(*scales.shape, -1)
    return np.ldexp(NUMBERS[halves], scales.astype(np.int32)[..., None] - BIAS).reshape(len(blocks), -1)


def _entry(arrays: Arrays, name: str) -> Entry:
    file, shape, _ = arrays.entries[name + BLOCKS]
    scales = arrays.entries.get(name + SCALES)
    if scales is None or len(shape) != 4 or scales.shape != shape[:-1]:
        raise ValueError(
            f"{file}: expected {name}{SCALES} of the shape of {name}{BLOCKS} {shape} without its last axis, got "
            f"{scales.shape if scales else 'none'}; copy the checkpoint again"
        )
    whole = shape[0], shape[2] * shape[3] * 2, shape[1]
    return Entry(file, whole, 2 * math.prod(whole))
