"""The token channel between the meshes of target and draft: a few hundred bytes each way, without waiting for them.

One interface, two implementations: ``Local`` within a process, ``Remote`` between two.
"""

import math
import zlib
from functools import lru_cache, partial
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxspec.devices.processes import here
from jaxspec.devices.sharding import DATA_AXIS, Home, axis_size, home_of
from jaxspec.models.base import Array

Tree = TypeVar("Tree")
#: Axis of the two devices that a ``Remote`` channel joins, and their places on it.
SIDE_AXIS, TARGET, DRAFT = "side", 0, 1
#: Shape and dtype of every leaf of a tree.
Kinds = tuple[tuple[tuple[int, ...], Any], ...]


class Channel(Protocol):
    """Carries trees of arrays with a leading batch axis from one mesh to the other.

    Both methods return (the value there, what was ``told``): ``told`` is what the hosts of both meshes may read.
    """

    def to_target(self, value: Any, told: Any = None) -> tuple[Any, Any]:
        """From the draft's mesh to the target's."""

    def to_draft(self, value: Any, told: Any = None) -> tuple[Any, Any]:
        """From the target's mesh to the draft's."""

    def check_peers(self, call: Any) -> None:
        """Makes sure that whoever has the other mesh is about to do the same.

        Raises:
            ValueError: it is not.
        """


class Local(NamedTuple):
    """Two meshes of one process, whose host reads both: what is told stays where it is."""

    target: Home
    draft: Home

    def to_target(self, value: Any, told: Any = None) -> tuple[Any, Any]:
        """Returns at once."""
        return send(value, self.target), told

    def to_draft(self, value: Any, told: Any = None) -> tuple[Any, Any]:
        """Returns at once."""
        return send(value, self.draft), told

    def check_peers(self, call: Any) -> None:
        """There is nobody else."""


#: What the next crossing between two devices waits for, whichever channel it belongs to.
_before: dict[Mesh, Array] = {}


class Remote:
    """Meshes of two processes: ``ppermute`` of one packed array over one device of each.

    Both processes call the same methods in the same order, each with arrays of its own side and the other's shapes; who
    sends gets shapes back. A crossing begins when the one before it has ended: those that wait for the other process
    hold one thread in all, and programs of a mesh find theirs.

    Attributes:
        crossed: how often something crossed, either way.
    """

    def __init__(self, target: Mesh, draft: Mesh):
        meshes = target, draft
        self.crossed = 0
        self._homes = [home_of(mesh) for mesh in meshes]
        self._rows = math.lcm(*(axis_size(mesh, DATA_AXIS) for mesh in meshes))
        self._devices = [mesh.devices.flat[0] for mesh in meshes]
        self._pair = Mesh(np.asarray(self._devices), (SIDE_AXIS,))
        self._own = [side for side in (TARGET, DRAFT) if here(meshes[side])]
        if self._pair not in _before:
            _before[self._pair] = self._joined([_nothing(1, 1, self._devices[side]) for side in self._own])

    def to_target(self, value: Any, told: Any = None) -> tuple[Any, Any]:
        """What was told goes along."""
        self.crossed += 1
        return self._cross((value, told), DRAFT, TARGET)

    def to_draft(self, value: Any, told: Any = None) -> tuple[Any, Any]:
        """What was told goes along."""
        self.crossed += 1
        return self._cross((value, told), TARGET, DRAFT)

    def check_peers(self, call: Any) -> None:
        """Each process sends the other a checksum of what it is about to do."""
        own = zlib.crc32(repr(call).encode())
        mark = np.full((self._rows, 1), own, np.uint32).view(np.int32)
        # Both ways first: who refused before the second crossing would leave the other process waiting in it.
        sent = [self._cross((mark, None), *way)[0] for way in ((TARGET, DRAFT), (DRAFT, TARGET))]
        marks = [np.asarray(found) for found in sent if not isinstance(found, jax.ShapeDtypeStruct)]
        if any((found != mark).any() for found in marks):
            raise ValueError(
                "expected the same call in both processes, got another prompt, option, stop or setting in the other "
                "one; pass both the same arguments"
            )

    def _cross(self, tree: tuple[Any, Any], source: int, sink: int) -> tuple[Any, Any]:
        leaves, structure = jax.tree.flatten(tree)
        kinds: Kinds = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
        shards = [self._sent(tree, source) if side == source else self._awaited(kinds, side) for side in self._own]
        moved, _before[self._pair] = _moved(self._joined(shards), _before[self._pair], self._pair, (source, sink))
        if sink not in self._own:
            return _outline(structure, kinds)[0], tree[1]
        arrived = moved.addressable_data(self._own.index(sink))
        return _unpacked(jax.device_put(arrived, self._homes[sink]), structure, kinds)

    def _sent(self, tree: Any, side: int) -> Array:
        return jax.device_put(_packed(tree), self._devices[side])

    def _awaited(self, kinds: Kinds, side: int) -> Array:
        """What the receiving side puts in: as many zeros as will arrive."""
        return _nothing(kinds[0][0][0], sum(_widths(kinds)), self._devices[side])

    def _joined(self, shards: list[Array]) -> Array:
        """One array over both devices, of which this process holds its part."""
        rows, *rest = shards[0].shape
        sharding = NamedSharding(self._pair, PartitionSpec(SIDE_AXIS))
        return jax.make_array_from_single_device_arrays((2 * rows, *rest), sharding, shards)


def channel_between(target: Mesh, draft: Mesh) -> Channel:
    """The channel of a placement: ``Remote`` if its meshes lie in two processes."""
    if here(target) and here(draft):
        return Local(home_of(target), home_of(draft))
    return Remote(target, draft)


def send(tree: Any, home: Home) -> Any:
    """Puts arrays onto another mesh of this process; returns at once, before they are there or even computed."""
    return jax.device_put(tree, home)


def pack(tree: Any) -> Array:
    """Leaves [B, ...], side by side in one array [B, n] int32: one transfer instead of one a leaf.

    Leaves of 32 bits keep them; flags and smaller numbers take 32 bits each.
    """
    leaves = [_bits(leaf.astype(_wide(leaf.dtype)), jnp.int32) for leaf in jax.tree.leaves(tree)]
    return jnp.concatenate([leaf.reshape(leaf.shape[0], -1) for leaf in leaves], axis=1)


def unpack(packed: Array, like: Tree) -> Tree:
    """The tree that was packed, shaped as ``like`` (arrays or shape structs)."""
    leaves, structure = jax.tree.flatten(like)
    cuts = np.cumsum(_widths([(leaf.shape, leaf.dtype) for leaf in leaves]))[:-1].tolist()
    parts = zip(jnp.split(packed, cuts, axis=1), leaves, strict=True)
    found = [_bits(part, _wide(leaf.dtype)).astype(leaf.dtype).reshape(leaf.shape) for part, leaf in parts]
    return jax.tree.unflatten(structure, found)


_bits = jax.lax.bitcast_convert_type
_packed = jax.jit(pack)


def _wide(dtype: Any) -> Any:
    """The type of 32 bits that holds every number of a type."""
    if np.dtype(dtype).itemsize == 4:
        return dtype
    return jnp.float32 if jnp.issubdtype(dtype, jnp.floating) else jnp.int32


def _widths(kinds: Any) -> list[int]:
    return [int(np.prod(shape[1:], dtype=int)) for shape, _ in kinds]


@lru_cache
def _nothing(rows: int, width: int, device: jax.Device) -> Array:
    return jax.device_put(np.zeros((rows, width), np.int32), device)


@lru_cache
def _outline(structure: Any, kinds: Kinds) -> Any:
    return jax.tree.unflatten(structure, [jax.ShapeDtypeStruct(*kind) for kind in kinds])


@partial(jax.jit, static_argnums=(1, 2))
def _unpacked(packed: Array, structure: Any, kinds: Kinds) -> Any:
    return unpack(packed, _outline(structure, kinds))


@partial(jax.jit, static_argnums=(2, 3))
def _moved(packed: Array, before: Array, pair: Mesh, way: tuple[int, int]) -> tuple[Array, Array]:
    """Rows [2·B, n] of both sides, those of the sender now at the receiver; and what the next crossing waits for."""
    cut = PartitionSpec(SIDE_AXIS)

    @partial(jax.shard_map, mesh=pair, in_specs=(cut, cut), out_specs=(cut, cut))
    def moved(packed: Array, before: Array) -> tuple[Array, Array]:
        return jax.lax.ppermute(packed, SIDE_AXIS, (way,)), before + 1

    return moved(packed, before)
