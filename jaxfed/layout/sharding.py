"""Shardings of arrays on a mesh of one or several processes."""

from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding
from jaxtyping import PyTree

Tree = TypeVar("Tree", bound=PyTree)


class Shardings(NamedTuple):
    """Replicated and sharded layouts of a mesh; without a mesh, the default device.

    Attributes:
        everywhere: every device holds all of an array.
        spread: device d holds the d-th part of the first axis.
        spread_later: the same of the second axis.
    """

    everywhere: NamedSharding | None = None
    spread: NamedSharding | None = None
    spread_later: NamedSharding | None = None

    @classmethod
    def of(cls, mesh: Mesh | None) -> "Shardings":
        """Return the shardings over all axes of a mesh together; the compiler divides the work."""
        if mesh is None:
            return cls()
        mesh = automatic(mesh)
        specs = PartitionSpec(), PartitionSpec(mesh.axis_names), PartitionSpec(None, mesh.axis_names)
        return cls(*(NamedSharding(mesh, spec) for spec in specs))

    @property
    def size(self) -> int:
        """Number of devices."""
        return self.everywhere.mesh.size if self.everywhere else 1

    @property
    def platform(self) -> str:
        """What the devices are: "cpu", "gpu", "tpu"."""
        return next(iter(on_device(self.everywhere).device_set)).platform  # type: ignore[attr-defined]


def automatic(mesh: Mesh) -> Mesh:
    """Return the same devices and axes, with axes of type Auto, over which the compiler divides work."""
    return Mesh(mesh.devices, mesh.axis_names)


def slowest(seconds: float, mesh: Mesh | None) -> float:
    """Return the longest time that a process of the mesh measured, in all of them, so that they decide alike by it."""
    if mesh is None or not mesh.is_multi_process:
        return seconds
    shardings = Shardings.of(mesh)
    times = put(np.full(mesh.size, seconds, np.float32), shardings.spread)
    return float(jax.jit(jnp.max, out_shardings=shardings.everywhere)(times))


def put(tree: Tree, sharding: Sharding | None) -> Tree:
    """Put `tree` on devices by `sharding`; arrays shared by several processes are not moved.

    With several processes each passes the same arrays, and keeps the parts of its own devices.
    """
    if jax.process_count() == 1 or sharding is None:
        return jax.device_put(tree, sharding)

    def part(leaf: object) -> jax.Array:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return leaf
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(part, tree)


def on_device(sharding: Sharding | None) -> Sharding:
    """Return `sharding`, or that of the default device."""
    return sharding or SingleDeviceSharding(jax.local_devices()[0])


def pinned(tree: Tree, sharding: Sharding | None) -> Tree:
    """Put `tree` in page-locked host memory, if the devices have it, for transfers during computation."""
    sharding = on_device(sharding)
    kinds = {memory.kind for memory in next(iter(sharding.device_set)).addressable_memories()}  # type: ignore[attr-defined]
    return jax.device_put(tree, sharding.with_memory_kind("pinned_host")) if "pinned_host" in kinds else tree


def constrain(tree: Tree, sharding: Sharding | None) -> Tree:
    """Constrain `tree` to `sharding`, inside a compiled program."""
    return tree if sharding is None else jax.lax.with_sharding_constraint(tree, sharding)


def local(tree: Tree, sharding: NamedSharding | None) -> Tree:
    """Return a replicated `tree` on this process's devices only, for programs of this process."""
    if jax.process_count() == 1 or sharding is None:
        return tree
    mine = Mesh(sharding.mesh.local_mesh.devices, sharding.mesh.axis_names)
    return jax.device_put(jax.tree.map(np.asarray, tree), NamedSharding(mine, PartitionSpec()))
