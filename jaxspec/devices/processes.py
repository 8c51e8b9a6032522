"""What runs in this process: programs on its own meshes. Of everything else it knows shapes and dtypes alone.

In two processes both go through the same steps. Each runs its side; the other's programs are evaluated abstractly, so
that every process knows what will arrive.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh

#: A pure function of trees of arrays.
Program = Callable[..., Any]


def here(mesh: Mesh | None) -> bool:
    """Whether a mesh lies in this process; the default device (None) does."""
    return mesh is None or all(device.process_index == jax.process_index() for device in mesh.devices.flat)


def shapes(tree: Any) -> Any:
    """Shape and dtype of every leaf."""
    return jax.eval_shape(lambda same: same, tree)


def put(tree: Any, home: Any, mesh: Mesh | None) -> Any:
    """A tree put onto its ``home`` on a mesh of this process, at once; on another process's mesh, its ``shapes``."""
    return jax.device_put(tree, home) if here(mesh) else shapes(tree)


def running(mesh: Mesh | None) -> Callable[..., Program]:
    """From (program, first arguments) to a program of the rest: run on the mesh if it is here, else outlined."""
    return partial if here(mesh) else outlined


def outlined(program: Program, *given: Any) -> Program:
    """Gives shapes and dtypes of a program's outputs, traced once for each kind of arguments."""
    known: dict[Any, Any] = {}

    def outline(*arguments: Any) -> Any:
        leaves, structure = jax.tree.flatten(arguments)
        kind = structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves)
        if kind not in known:
            known[kind] = jax.eval_shape(program, *given, *arguments)
        return known[kind]

    return outline


def present(watch: Callable[[str, str, Any], None]) -> Callable[[str, str, Any], None]:
    """A ``Watch`` of what this process holds, without the outlines of the rest."""

    def seen(lane: str, name: str, outputs: Any) -> None:
        if not any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(outputs)):
            watch(lane, name, outputs)

    return seen
