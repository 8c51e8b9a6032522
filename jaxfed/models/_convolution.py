"""Convolution as matrix products, which stays fast with one kernel per client and inside `lax.scan`.

XLA turns a convolution vmapped over its kernels into a grouped one, which is slow on CPUs and GPUs, and runs one inside
a loop on one core of a CPU. Products of matrices suffer neither. They are made of slices and `dot_general`, so that all
derivatives and every `vmap` follow from JAX's own rules. TPUs run grouped convolutions well: there XLA's own is taken.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from jaxfed.models import _winograd as winograd

CHANNELS_LAST = lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))
LINE = lax.ConvDimensionNumbers((0, 2, 1), (2, 1, 0), (0, 2, 1))
WIDEST = 64
LEAST_CHANNELS = 16


class Axis(NamedTuple):
    """One spatial axis: its extent, the kernel's taps on it, the stride, and padding before and after."""

    extent: int
    taps: int
    stride: int
    before: int
    after: int

    @property
    def outputs(self) -> int:
        """Number of positions of the kernel."""
        return (self.extent + self.before + self.after - self.taps) // self.stride + 1

    def windows(self, x: Array, axis: int, fill: float = 0.0) -> list[Array]:
        """Return for every tap its inputs at all positions: `taps` arrays with `outputs` entries along `axis`."""
        margins = [(self.before, self.after, 0) if each == axis else (0, 0, 0) for each in range(x.ndim)]
        x = lax.pad(x, jnp.asarray(fill, x.dtype), margins)
        stop = (self.outputs - 1) * self.stride + 1
        return [lax.slice_in_dim(x, tap, tap + stop, self.stride, axis) for tap in range(self.taps)]


def conv_general_dilated(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
    **options: Any,
) -> Array:
    """Compute `jax.lax.conv_general_dilated` by matrix products; for the argument of that name of Flax's `Conv`.

    y[b, i, j, o] = Σ x[b, i·s + h, j·s + w, c]·k[h, w, c, o], x [B, H, W, C] or [B, W, C], k [h, w, C, O] or [w, C, O].
    On a CPU in float32 and with stride 1 along the width, Winograd's F(m, k) of at most eight points saves products
    along the width, at three to five times the rounding error of the plain sum. A program for a TPU has XLA's own
    convolution, which moves a quarter of the bytes there. Anything else (dilation, groups, other layouts, integers,
    empty results) goes to `lax.conv_general_dilated` unchanged.
    """
    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    factors = (*(lhs_dilation or ()), *(rhs_dilation or ()), feature_group_count, batch_group_count)
    line = lhs.ndim == 3 and numbers == LINE
    usual = (line or numbers == CHANNELS_LAST) and set(factors) == {1} and not any(options.values())
    if usual and lhs.dtype == rhs.dtype and jnp.issubdtype(lhs.dtype, jnp.floating):
        axes = _axes(lhs.shape, rhs.shape, window_strides, padding)
        if lhs.shape[-1] == rhs.shape[-2] and min(*lhs.shape, *(axis.outputs for axis in axes)) > 0:
            as_product = {"precision": precision, "preferred_element_type": preferred_element_type}
            if line:
                return convolve(lhs[:, None], rhs[None], (Axis(1, 1, 1, 0, 0), *axes), **as_product)[:, 0]
            return convolve(lhs, rhs, axes, **as_product)
    return lax.conv_general_dilated(
        lhs, rhs, window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers, feature_group_count,
        batch_group_count, precision, preferred_element_type, **options,
    )  # fmt: skip


def _axes(shape: Sequence[int], kernel: Sequence[int], strides: Sequence[int], padding: Any) -> tuple[Axis, ...]:
    extents, taps = shape[1:-1], kernel[:-2]
    pads = lax.padtype_to_pads(extents, taps, strides, padding) if isinstance(padding, str) else padding
    return tuple(Axis(*sizes, *pad) for *sizes, pad in zip(extents, taps, strides, pads, strict=True))


def convolve(x: Array, kernel: Array, axes: Sequence[Axis], **as_product: Any) -> Array:
    """Compute the convolution [B, H', W', O] of x [B, H, W, C] and kernel [h, w, C, O], as suits the platform."""
    (height, width), kernel = _trimmed(kernel, axes)
    options = as_product | {"height": height, "width": width}
    platforms = {"tpu": partial(by_xla, **options)}
    if _winograd_pays(x, width) and as_product["preferred_element_type"] in (None, x.dtype):
        platforms["cpu"] = partial(by_winograd, **options)
    return lax.platform_dependent(x, kernel, default=partial(by_patches, **options), **platforms)


def _trimmed(kernel: Array, axes: Sequence[Axis]) -> tuple[list[Axis], Array]:
    """Return the same convolution without taps that only see padding, as a 3×3 kernel's borders on one pixel."""
    kept = []
    for number, (extent, taps, stride, before, _) in enumerate(axes):
        reach = (axes[number].outputs - 1) * stride
        first, stop = max(0, before - reach), min(taps, extent + before)
        if first >= stop:
            first, stop = 0, taps
        kernel = lax.slice_in_dim(kernel, first, stop, axis=number)
        kept.append(Axis(extent, stop - first, stride, before - first, reach + stop - extent - before))
    return kept, kernel


def _winograd_pays(x: Array, width: Axis) -> bool:
    """Return whether Winograd's form is faster on a CPU; others multiply float32 with fewer digits than it needs."""
    suits = x.dtype == jnp.float32 and width.stride == 1 and 2 <= width.taps <= len(winograd.POINTS)
    worth = x.shape[-1] >= LEAST_CHANNELS and width.extent <= WIDEST
    return suits and worth and winograd.tile_size(width.outputs, width.taps) > 1


def by_xla(x: Array, kernel: Array, height: Axis, width: Axis, **as_product: Any) -> Array:
    """Return XLA's own convolution, grouped where there is a kernel for every client."""
    pads = [(axis.before, axis.after) for axis in (height, width)]
    strides = height.stride, width.stride
    return lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=CHANNELS_LAST, **as_product)


def by_patches(x: Array, kernel: Array, height: Axis, width: Axis, **as_product: Any) -> Array:
    """Return y = P·k, patches P [B·H'·W', h·w·C] gathered along the width first: w + h copies instead of w·h."""
    rows = jnp.concatenate(width.windows(x, 2), axis=-1)
    patches = jnp.concatenate(height.windows(rows, 1), axis=-1)
    y = lax.dot(patches.reshape(-1, patches.shape[-1]), kernel.reshape(-1, kernel.shape[-1]), **as_product)
    return y.reshape(*patches.shape[:-1], -1)


def by_winograd(x: Array, kernel: Array, height: Axis, width: Axis, **as_product: Any) -> Array:
    """Convolve by F(m, k) along the width, patches along the height: n products [tiles·H'·B, h·C]·[h·C, O].

    The width leads all the way, so that both transforms are single products with everything else side by side.
    """
    size = winograd.tile_size(width.outputs, width.taps)
    transforms = winograd.transforms(size, width.taps)
    spread = winograd.tiled(width.extent, width.outputs, width.taps, width.before, size)
    (batch, rows, _, channels), points = x.shape, len(transforms.data)

    def transform(matrix: np.ndarray, leading: Array) -> Array:
        flat = leading.reshape(matrix.shape[1], -1)
        return lax.dot(jnp.asarray(matrix, x.dtype), flat, precision=as_product["precision"])

    data = transform(spread, x.transpose(2, 1, 0, 3)).reshape(points, -1, rows, batch, channels)
    data = jnp.concatenate(height.windows(data, 2), axis=-1).reshape(points, -1, height.taps * channels)
    weights = transform(transforms.kernel, kernel.transpose(1, 0, 2, 3)).reshape(points, data.shape[-1], -1)
    products = lax.dot_general(data, weights, (((2,), (1,)), ((0,), (0,))), **as_product)
    tiles = transform(transforms.output, products).reshape(size, -1, height.outputs, batch, kernel.shape[-1])
    y = tiles.transpose(3, 2, 1, 0, 4).reshape(batch, height.outputs, -1, kernel.shape[-1])
    return y[:, :, : width.outputs]
