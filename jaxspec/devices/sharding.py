"""Where models live: meshes, tensor parallelism over ``model``, sequences over ``data``."""

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from jaxspec.devices.processes import put, running
from jaxspec.models.base import Array, Model, Network, Params
from jaxspec.models.config import DecoderConfig

#: Names of the mesh axes: tensor parallelism, and sequences of a batch.
MODEL_AXIS, DATA_AXIS = "model", "data"
#: Where an array may be put. One device is named as such: ``jax.device_put`` then takes half the time.
Home: TypeAlias = jax.Device | Sharding


class Placement(NamedTuple):
    """The target's mesh and the draft's: disjoint for overlap, the same for none."""

    target: Mesh
    draft: Mesh


class Placed(NamedTuple):
    """A model on its mesh.

    Attributes:
        network: as it runs there; key-value heads fewer than the ``model`` axis are repeated.
        params: on the mesh; their shapes if it is another process's.
        home: of arrays with a leading batch axis.
        shared: of arrays that every device needs whole.
    """

    network: Network
    params: Params
    home: Home
    shared: Home


def mesh_of(devices: Any, data: int = 1) -> Mesh:
    """A mesh over these devices: ``data`` groups that share a batch, each tensor-parallel over its ``model`` axis.

    Raises:
        ValueError: ``data`` does not divide the devices.
    """
    devices = np.asarray(devices)
    if data < 1 or devices.size % data:
        raise ValueError(f"expected data to divide {devices.size} devices, got {data}")
    return Mesh(devices, (MODEL_AXIS,)) if data == 1 else Mesh(devices.reshape(data, -1), (DATA_AXIS, MODEL_AXIS))


def default_placement() -> Placement:
    """This process's first device for the target, its second for the draft; a single one is shared, without overlap."""
    devices = jax.local_devices()
    return Placement(mesh_of(devices[:1]), mesh_of(devices[1:2] or devices[:1]))


def axis_size(mesh: Mesh | None, axis: str) -> int:
    """Devices along an axis; 1 if the mesh has none of that name."""
    return 1 if mesh is None else dict(mesh.shape).get(axis, 1)


def replicated(mesh: Mesh) -> Sharding:
    """A sharding with a whole copy on every device of the mesh."""
    return NamedSharding(mesh, PartitionSpec())


def shared_home(mesh: Mesh | None) -> Home:
    """Where small things live that every device needs: a copy on each (default: on the first device)."""
    if mesh is None or mesh.size == 1:
        return jax.local_devices()[0] if mesh is None else mesh.devices.flat[0]
    return replicated(mesh)


def home_of(mesh: Mesh | None) -> Home:
    """Where arrays with a leading batch axis live: cut over ``data``, whole over ``model``."""
    if mesh is None or axis_size(mesh, DATA_AXIS) == 1:
        return shared_home(mesh)
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def place(model: Model, mesh: Mesh | None) -> Placed:
    """Puts parameters onto a mesh, tensor-parallel over its ``model`` axis.

    Raises:
        ValueError: heads or hidden features do not divide by the devices.
    """
    network, params = model.network, model.params
    home, shared = home_of(mesh), shared_home(mesh)
    if mesh is None or mesh.size == 1:
        return Placed(network, put(params, home, mesh), home, shared)
    config = network.config
    check_divides(config, mesh)
    if (spread := shared_heads(config, mesh)) != config:
        if network.with_config is None:
            raise ValueError(
                f"expected num_kv_heads divisible by {axis_size(mesh, MODEL_AXIS)} devices, got {config.num_kv_heads}; "
                "a network of one's own needs with_config to have its heads repeated"
            )
        repeat = partial(jax.tree_util.tree_map_with_path, lambda path, leaf: spread_heads(path, leaf, config, mesh))
        params = running(mesh)(repeat)(params)
        network = network.with_config(spread)
    homes = leaf_homes(network.partition(params), params, mesh)
    return Placed(network, put(params, homes, mesh), home, shared)


def check_divides(config: DecoderConfig, mesh: Mesh | None) -> None:
    """Checks that heads and hidden features can be shared by the ``model`` axis.

    Raises:
        ValueError: they cannot; names what and by how many devices.
    """
    size = axis_size(mesh, MODEL_AXIS)
    if config.hidden % size:
        raise ValueError(f"expected hidden divisible by {size} devices, got {config.hidden}; use fewer devices")
    if config.num_kv_heads % size and (size % config.num_kv_heads or config.num_heads % size):
        raise ValueError(
            f"expected num_kv_heads divisible by {size} devices, got {config.num_kv_heads}, or fewer of them that "
            f"divide {size} with num_heads divisible by it, got {config.num_heads}; use fewer devices"
        )


def divides(config: DecoderConfig, mesh: Mesh | None) -> bool:
    """Whether heads and hidden features can be shared by the ``model`` axis."""
    try:
        check_divides(config, mesh)
    except ValueError:
        return False
    return True


def shared_heads(config: DecoderConfig, mesh: Mesh | None) -> DecoderConfig:
    """The configuration in which every device of the ``model`` axis has a key-value head, repeated if need be."""
    return replace(config, num_kv_heads=max(config.num_kv_heads, axis_size(mesh, MODEL_AXIS)))


def spread_heads(path: tuple, leaf: Any, config: DecoderConfig, mesh: Mesh | None) -> Any:
    """Repeats key and value rows of a fused projection [G, Q + 2, …] for ``shared_heads``: [G·r, Q/r + 2, …]."""
    times = shared_heads(config, mesh).num_kv_heads // config.num_kv_heads
    if times == 1 or not any(str(getattr(step, "key", "")) in ("qkv", "qkv_bias") for step in path):
        return leaf
    library: Any = np if isinstance(leaf, np.ndarray) else jnp
    queries, both = leaf[:, :-2], library.repeat(leaf[:, -2:], times, axis=0)
    queries = queries.reshape(queries.shape[0] * times, queries.shape[1] // times, *queries.shape[2:])
    return library.concatenate([queries, both], axis=1)


def leaf_homes(specs: Any, leaves: Any, mesh: Mesh | None) -> Any:
    """A home for every leaf: cut as its specification says where that divides, else whole."""
    if mesh is None or mesh.size == 1:
        return jax.tree.map(lambda _: shared_home(mesh), leaves)

    def home(spec: PartitionSpec, leaf: Array) -> NamedSharding:
        cuts = zip(leaf.shape, spec, strict=False)
        fits = all(axis is None or size % axis_size(mesh, axis) == 0 for size, axis in cuts)
        return NamedSharding(mesh, spec if fits else PartitionSpec())

    return jax.tree.map(home, specs, leaves, is_leaf=lambda node: isinstance(node, PartitionSpec))
