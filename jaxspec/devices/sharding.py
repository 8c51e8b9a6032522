"""Meshes and shardings: tensor parallelism over the axis ``model``, sequences of a batch over ``data``."""

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from jaxspec.devices.processes import abstract, are_shapes, put, running
from jaxspec.models.base import Array, Model, Network, Params
from jaxspec.models.config import DecoderConfig

#: Names of the mesh axes: tensor parallelism, and sequences of a batch.
MODEL_AXIS, DATA_AXIS = "model", "data"
#: Target of ``jax.device_put``. For a single device a ``Device``: putting then takes half the time of a sharding.
DeviceOrSharding: TypeAlias = jax.Device | Sharding


class Placement(NamedTuple):
    """The target's mesh and the draft's: disjoint for overlap, the same for none."""

    target: Mesh
    draft: Mesh


class ShardedModel(NamedTuple):
    """A model on a mesh.

    Attributes:
        network: as it runs there; if there are fewer key-value heads than devices along ``model``, they are repeated.
        params: sharded over the mesh; their shapes if the mesh belongs to another process.
        batch: sharding of arrays with a leading batch axis.
        replicated: sharding of arrays that every device needs whole.
    """

    network: Network
    params: Params
    batch: DeviceOrSharding
    replicated: DeviceOrSharding


def mesh_of(devices: Any, data: int = 1) -> Mesh:
    """Return a mesh of ``data`` groups of devices: a batch is split over the groups, a model over the devices of each.

    Raises:
        ValueError: ``data`` does not divide the devices.
    """
    devices = np.asarray(devices)
    if data < 1 or devices.size % data:
        raise ValueError(f"expected data to divide {devices.size} devices, got {data}")
    return Mesh(devices, (MODEL_AXIS,)) if data == 1 else Mesh(devices.reshape(data, -1), (DATA_AXIS, MODEL_AXIS))


def default_placement() -> Placement:
    """Return meshes of this process's first device, for the target, and second, for the draft; one device is both."""
    devices = jax.local_devices()
    return Placement(mesh_of(devices[:1]), mesh_of(devices[1:2] or devices[:1]))


def axis_size(mesh: Mesh | None, axis: str) -> int:
    """Return the number of devices along an axis; 1 if the mesh has none of that name."""
    return 1 if mesh is None else dict(mesh.shape).get(axis, 1)


def replicated(mesh: Mesh) -> Sharding:
    """Return a sharding with a whole copy on every device of the mesh."""
    return NamedSharding(mesh, PartitionSpec())


def replicated_sharding(mesh: Mesh | None) -> DeviceOrSharding:
    """Return the sharding of small arrays that every device needs whole; without a mesh, the first device."""
    if mesh is None or mesh.size == 1:
        return jax.local_devices()[0] if mesh is None else mesh.devices.flat[0]
    return replicated(mesh)


def batch_sharding(mesh: Mesh | None) -> DeviceOrSharding:
    """Return the sharding of arrays with a leading batch axis: split over ``data``, replicated over ``model``."""
    if mesh is None or axis_size(mesh, DATA_AXIS) == 1:
        return replicated_sharding(mesh)
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def put_model(model: Model, mesh: Mesh | None) -> ShardedModel:
    """Put a model on a mesh, tensor-parallel over its ``model`` axis.

    The parameters may be shapes (``jax.eval_shape``), and the mesh of devices that are not here
    (``devices.chips.topology``): programs are then compiled for them, not run.

    Raises:
        ValueError: heads or hidden features are not divisible by the devices.
    """
    network, params = model.network, model.params
    batch, whole = batch_sharding(mesh), replicated_sharding(mesh)
    if mesh is None or mesh.size == 1:
        return ShardedModel(network, put(params, batch, mesh), batch, whole)
    config = network.config
    check_shardable(config, mesh)
    if (repeated := with_repeated_heads(config, mesh)) != config:
        if network.with_config is None:
            raise ValueError(
                f"expected num_kv_heads divisible by {axis_size(mesh, MODEL_AXIS)} devices, got {config.num_kv_heads}; "
                "to repeat the heads of your own network, give it with_config"
            )
        repeat = partial(jax.tree_util.tree_map_with_path, lambda path, leaf: repeat_heads(path, leaf, config, mesh))
        params = (abstract(repeat) if are_shapes(params) else running(mesh)(repeat))(params)
        network = network.with_config(repeated)
    shardings = leaf_shardings(network.partition(params), params, mesh)
    return ShardedModel(network, put(params, shardings, mesh), batch, whole)


def check_shardable(config: DecoderConfig, mesh: Mesh | None) -> None:
    """Check that heads, hidden features and experts can be split over the ``model`` axis.

    Raises:
        ValueError: they cannot; names the size and the number of devices.
    """
    size, experts = axis_size(mesh, MODEL_AXIS), config.experts
    parts = {"hidden": config.hidden} if experts is None or any(experts.dense) else {}
    parts |= {} if experts is None else {"experts": experts.count, "shared_hidden": experts.shared_hidden or size}
    for name, count in parts.items():
        if count % size:
            raise ValueError(f"expected {name} divisible by {size} devices, got {count}; use fewer devices")
    if config.num_kv_heads % size and (size % config.num_kv_heads or config.num_heads % size):
        raise ValueError(
            f"expected num_kv_heads divisible by {size} devices, got {config.num_kv_heads}, or fewer of them that "
            f"divide {size} with num_heads divisible by it, got {config.num_heads}; use fewer devices"
        )


def is_shardable(config: DecoderConfig, mesh: Mesh | None) -> bool:
    """Return whether heads and hidden features can be split over the ``model`` axis."""
    try:
        check_shardable(config, mesh)
    except ValueError:
        return False
    return True


def with_repeated_heads(config: DecoderConfig, mesh: Mesh | None) -> DecoderConfig:
    """Return the configuration with key-value heads repeated so that every device along ``model`` has one."""
    return replace(config, num_kv_heads=max(config.num_kv_heads, axis_size(mesh, MODEL_AXIS)))


def repeat_heads(path: tuple, leaf: Any, config: DecoderConfig, mesh: Mesh | None) -> Any:
    """Repeat key and value rows of a fused projection [G, Q + 2, …] for ``with_repeated_heads``: [G·r, Q/r + 2, …].

    The scales of a norm of all key heads together are repeated likewise; the mean square of repeated heads is the same.
    Sinks [G, Q], which belong to query heads, become [G·r, Q/r].
    """
    times = with_repeated_heads(config, mesh).num_kv_heads // config.num_kv_heads
    library: Any = np if isinstance(leaf, np.ndarray) else jnp
    names = [str(getattr(step, "key", "")) for step in path]
    if "key_norm" in names and config.attention.norm_heads == "together":
        return library.repeat(leaf.reshape(-1, config.head_size), times, axis=0).reshape(-1)
    if "sinks" in names:
        return leaf.reshape(len(leaf) * times, -1)
    if times == 1 or not {"qkv", "qkv_bias"} & set(names):
        return leaf
    queries, both = leaf[:, :-2], library.repeat(leaf[:, -2:], times, axis=0)
    queries = queries.reshape(queries.shape[0] * times, queries.shape[1] // times, *queries.shape[2:])
    return library.concatenate([queries, both], axis=1)


def leaf_shardings(specs: Any, leaves: Any, mesh: Mesh | None) -> Any:
    """Return a sharding for every leaf: by its specification where the sizes are divisible, otherwise replicated."""
    if mesh is None or mesh.size == 1:
        return jax.tree.map(lambda _: replicated_sharding(mesh), leaves)

    def sharding(spec: PartitionSpec, leaf: Array) -> NamedSharding:
        axes = zip(leaf.shape, spec, strict=False)
        divisible = all(axis is None or size % axis_size(mesh, axis) == 0 for size, axis in axes)
        return NamedSharding(mesh, spec if divisible else PartitionSpec())

    return jax.tree.map(sharding, specs, leaves, is_leaf=lambda node: isinstance(node, PartitionSpec))
