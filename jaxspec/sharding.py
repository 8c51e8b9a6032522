"""Where models live: meshes and tensor parallelism."""

from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from jaxspec.types import Model, Params

#: Name of the tensor-parallel mesh axis.
MODEL_AXIS = "model"
#: Where an array may be put. One device is named as such: ``jax.device_put`` then takes half the time.
Home: TypeAlias = jax.Device | Sharding


class Placement(NamedTuple):
    """The target's mesh and the draft's: disjoint for overlap, the same for none."""

    target: Mesh
    draft: Mesh


def mesh_of(devices: Any) -> Mesh:
    """A mesh with one ``model`` axis over these devices."""
    return Mesh(np.asarray(devices), (MODEL_AXIS,))


def default_placement() -> Placement:
    """The first device for the target, the second for the draft; a single one is shared, without overlap."""
    devices = jax.devices()
    return Placement(mesh_of(devices[:1]), mesh_of(devices[1:2] or devices[:1]))


def replicated(mesh: Mesh) -> Sharding:
    """A sharding with a whole copy on every device of the mesh."""
    return NamedSharding(mesh, PartitionSpec())


def home_of(mesh: Mesh | None) -> Home:
    """Where everything small lives: a copy on every device of the mesh (default: on the first device)."""
    if mesh is None or mesh.size == 1:
        return jax.devices()[0] if mesh is None else mesh.devices.flat[0]
    return replicated(mesh)


def place(model: Model, mesh: Mesh | None) -> tuple[Params, Home]:
    """Puts parameters onto a mesh, tensor-parallel over its ``model`` axis; and the home of everything small.

    Raises:
        ValueError: key-value heads or hidden features do not divide by the devices.
    """
    home = home_of(mesh)
    if mesh is None or mesh.size == 1:
        return jax.device_put(model.params, home), home
    config = model.network.config
    for name in ("num_kv_heads", "hidden"):
        if getattr(config, name) % mesh.size:
            raise ValueError(
                f"expected {name} divisible by {mesh.size} devices, got {getattr(config, name)}; use fewer devices"
            )
    specs = model.network.partition(model.params)
    return jax.device_put(model.params, jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)), home
