"""One program over two processes: each runs the programs of its own meshes, and traces the others for shapes.

Both processes take the same steps. Programs of the other process are evaluated abstractly, so every process knows the
shapes and dtypes of what it will receive.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh, Sharding, SingleDeviceSharding

#: A pure function of trees of arrays.
Program = Callable[..., Any]


def is_local(mesh: Mesh | None) -> bool:
    """Return whether all devices of a mesh belong to this process; true for None, the default device."""
    return mesh is None or all(device.process_index == jax.process_index() for device in mesh.devices.flat)


def shapes(tree: Any) -> Any:
    """Return the shape and dtype of every leaf."""
    return jax.eval_shape(lambda same: same, tree)


def are_shapes(tree: Any) -> bool:
    """Return whether a tree has shapes and dtypes in place of arrays."""
    return any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(tree))


def put(tree: Any, sharding: Any, mesh: Mesh | None) -> Any:
    """Put a tree on a sharding of a local mesh, without waiting; for another process's mesh return its ``shapes``.

    Shapes in place of arrays get the sharding, so that programs can be compiled for devices that are not here.
    """
    if are_shapes(tree):
        return shapes_on(tree, sharding)
    return jax.device_put(tree, sharding) if is_local(mesh) else shapes(tree)


def shapes_on(tree: Any, sharding: Any) -> Any:
    """Return the shapes and dtypes of a tree with a sharding, or with a tree of them; a device is one as well."""

    def placed(leaf: Any, where: Any) -> jax.ShapeDtypeStruct:
        where = SingleDeviceSharding(where) if isinstance(where, jax.Device) else where
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    if isinstance(sharding, jax.Device | Sharding):
        return jax.tree.map(lambda leaf: placed(leaf, sharding), tree)
    return jax.tree.map(placed, tree, sharding)


def running(mesh: Mesh | None) -> Callable[..., Program]:
    """Return a function (program, first arguments) → program of the other arguments; abstract on a remote mesh."""
    return partial if is_local(mesh) else abstract


def abstract(program: Program, *bound: Any) -> Program:
    """Return a program whose outputs are shapes and dtypes of ``program``'s; traced once per kind of arguments."""
    outputs: dict[Any, Any] = {}

    def evaluated(*arguments: Any) -> Any:
        leaves, structure = jax.tree.flatten(arguments)
        signature = structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves)
        if signature not in outputs:
            outputs[signature] = jax.eval_shape(program, *bound, *arguments)
        return outputs[signature]

    return evaluated


def only_local(watch: Callable[[str, str, Any], None]) -> Callable[[str, str, Any], None]:
    """Return a ``Watch`` that is called for the programs of this process alone."""

    def watched(lane: str, name: str, outputs: Any) -> None:
        if not are_shapes(outputs):
            watch(lane, name, outputs)

    return watched
