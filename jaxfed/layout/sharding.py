"""Where arrays go on a mesh, of one process or of several."""

from typing import NamedTuple, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding
from jaxtyping import PyTree

Tree = TypeVar("Tree", bound=PyTree)


class Places(NamedTuple):
    """On all devices alike, or spread over them along the first axis. Without a mesh, on the default device.

    Attributes:
        everywhere: every device holds all of an array.
        spread: device d holds the d-th part of the first axis.
        spread_later: the same of the second axis.
    """

    everywhere: NamedSharding | None = None
    spread: NamedSharding | None = None
    spread_later: NamedSharding | None = None

    @classmethod
    def of(cls, mesh: Mesh | None) -> "Places":
        """Places of a mesh, all its axes together; compiled programs divide the work by themselves."""
        if mesh is None:
            return cls()
        mesh = automatic(mesh)
        specs = PartitionSpec(), PartitionSpec(mesh.axis_names), PartitionSpec(None, mesh.axis_names)
        return cls(*(NamedSharding(mesh, spec) for spec in specs))

    @property
    def size(self) -> int:
        """Number of devices."""
        return self.everywhere.mesh.size if self.everywhere else 1


def automatic(mesh: Mesh) -> Mesh:
    """The same devices and axes, with axes over which the compiler spreads work by itself."""
    return Mesh(mesh.devices, mesh.axis_names)


def put(tree: Tree, place: Sharding | None) -> Tree:
    """`tree` at `place`; arrays that several processes hold together stay where they are.

    With several processes every one of them passes the same arrays, and keeps its devices' parts.
    """
    if jax.process_count() == 1 or place is None:
        return jax.device_put(tree, place)

    def part(leaf: object) -> jax.Array:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return leaf
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, place, lambda index: host[index])

    return jax.tree.map(part, tree)


def on_device(place: Sharding | None) -> Sharding:
    """`place`, or the default device by name."""
    return place or SingleDeviceSharding(jax.local_devices()[0])


def pinned(tree: Tree, place: Sharding | None) -> Tree:
    """`tree` in page-locked host memory beside `place`, if there is some: it moves from there while devices compute."""
    place = on_device(place)
    kinds = {memory.kind for memory in next(iter(place.device_set)).addressable_memories()}  # type: ignore[attr-defined]
    return jax.device_put(tree, place.with_memory_kind("pinned_host")) if "pinned_host" in kinds else tree


def constrain(tree: Tree, place: Sharding | None) -> Tree:
    """`tree` at `place`, inside a compiled program."""
    return tree if place is None else jax.lax.with_sharding_constraint(tree, place)


def local(tree: Tree, place: NamedSharding | None) -> Tree:
    """`tree`, the same on all devices, on this process's devices alone: for programs of this process."""
    if jax.process_count() == 1 or place is None:
        return tree
    mine = Mesh(place.mesh.local_mesh.devices, place.mesh.axis_names)
    return jax.device_put(jax.tree.map(np.asarray, tree), NamedSharding(mine, PartitionSpec()))
