"""Parameters before they are read: their dtypes, shapes, bytes, and whether they fit into memory."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxspec.devices.sharding import MODEL_AXIS, axis_size
from jaxspec.models import init_params
from jaxspec.models.base import Params
from jaxspec.models.config import DecoderConfig
from jaxspec.models.quantize import is_quantized, quantized

#: Dtypes that parameters may have.
DTYPES = ("float32", "bfloat16", "float16")
_DTYPES_TEXT = f"{', '.join(DTYPES[:-1])} or {DTYPES[-1]}"
#: Linux' report of free memory.
MEMORY = Path("/proc/meminfo")
#: Estimated memory over the bytes of the parameters; the rest is for activations and caches.
HEADROOM = 1.1


def float_dtype(dtype: Any) -> jnp.dtype:
    """Convert to a dtype that parameters may have.

    Raises:
        ValueError: none of ``DTYPES``: floats of eight bits need scales, which a cast does not make; integers are not
            weights; float64 is not computed here.
    """
    try:
        checked = jnp.dtype(dtype)
    except TypeError as error:
        raise ValueError(f"expected dtype {_DTYPES_TEXT}, got {dtype!r}") from error
    if checked.name not in DTYPES:
        raise ValueError(f"expected dtype {_DTYPES_TEXT}, got {checked}; for eight bits pass int8=True")
    return checked


def leaf_dtype(path: tuple, dtype: Any) -> Any:
    """Return the dtype of a leaf: int32 for the rows of a head, float32 for norms, otherwise ``dtype``."""
    if path and getattr(path[-1], "key", "") == "index":
        return jnp.int32
    return jnp.float32 if any("norm" in str(getattr(step, "key", "")) for step in path) else dtype


def named_leaves(config: DecoderConfig) -> list[tuple[tuple, jax.ShapeDtypeStruct]]:
    """Return (path, shape) of every leaf."""
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    return jax.tree_util.tree_leaves_with_path(shapes)


def like_params(config: DecoderConfig, dtype: Any, int8: bool = False) -> Params:
    """Return the shapes and dtypes of the parameters as they are stored on devices."""

    def build() -> Params:
        params = init_params(config, jax.random.key(0))
        params = jax.tree_util.tree_map_with_path(lambda path, leaf: leaf.astype(leaf_dtype(path, dtype)), params)
        return quantized(params) if int8 else params

    return jax.eval_shape(build)


def parameter_bytes(config: DecoderConfig, dtype: Any, int8: bool = False) -> int:
    """Return the bytes of the parameters."""
    size = lambda path: 1 if int8 and is_quantized(path) else jnp.dtype(leaf_dtype(path, dtype)).itemsize  # noqa: E731
    return sum(int(np.prod(leaf.shape)) * size(path) for path, leaf in named_leaves(config))


def check_memory(config: DecoderConfig, dtype: Any, mesh: Mesh | None, int8: bool = False) -> None:
    """Compare an estimate of the parameters' memory with the free memory.

    Raises:
        MemoryError: less is free.
    """
    devices = devices_of(mesh)
    needed = parameter_bytes(config, dtype, int8) * HEADROOM / axis_size(mesh, MODEL_AXIS)
    free = _free(devices)
    if free is not None and needed > free:
        raise MemoryError(
            f"expected {needed / 1e9:.2f} GB free on each of {len(devices)} devices for the parameters, got "
            f"{free / 1e9:.2f} GB; load with int8=True, a shorter dtype, or over more devices"
        )


def devices_of(mesh: Mesh | None) -> list[jax.Device]:
    """Return the devices of a mesh; without one, the first device."""
    return [jax.local_devices()[0]] if mesh is None else list(mesh.devices.flat)


def _free(devices: list[jax.Device]) -> float | None:
    """Return the free bytes of the device with the fewest; CPU devices share the machine's memory."""
    if devices[0].platform == "cpu":
        lines = MEMORY.read_text().splitlines() if MEMORY.is_file() else []
        kilobytes = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable")]
        return 1024 * kilobytes[0] / len(devices) if kilobytes else None
    stats = [device.memory_stats() for device in devices]
    return min((s["bytes_limit"] - s["bytes_in_use"] for s in stats if s), default=None)
