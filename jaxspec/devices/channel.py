"""The token channel between the meshes of target and draft: a few hundred bytes each way, sent asynchronously.

One interface, two implementations: ``LocalChannel`` within a process, ``RemoteChannel`` between two.
"""

import math
import zlib
from functools import lru_cache, partial
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxspec.devices.processes import is_local
from jaxspec.devices.sharding import DATA_AXIS, DeviceOrSharding, axis_size, batch_sharding
from jaxspec.models.base import Array

Tree = TypeVar("Tree")
#: Axis of the two devices that a ``RemoteChannel`` connects, and their indices on it.
SIDE_AXIS, TARGET, DRAFT = "side", 0, 1
#: Shape and dtype of every leaf of a tree.
Specs = tuple[tuple[tuple[int, ...], Any], ...]


class Channel(Protocol):
    """Carries trees of arrays with a leading batch axis from one mesh to the other.

    Both methods return (the value on the other mesh, ``shared``); hosts of both meshes may read ``shared``.
    """

    def to_target(self, value: Any, shared: Any = None) -> tuple[Any, Any]:
        """Send a value from the draft's mesh to the target's."""

    def to_draft(self, value: Any, shared: Any = None) -> tuple[Any, Any]:
        """Send a value from the target's mesh to the draft's."""

    def check_peers(self, call: Any) -> None:
        """Check that both processes decode the same call; called once before decoding.

        Raises:
            ValueError: the other process has different arguments.
        """


class LocalChannel(NamedTuple):
    """Two meshes of one process: its host reads both, so ``shared`` is returned as it is."""

    target: DeviceOrSharding
    draft: DeviceOrSharding

    def to_target(self, value: Any, shared: Any = None) -> tuple[Any, Any]:
        """Enqueue the transfer and return at once."""
        return send(value, self.target), shared

    def to_draft(self, value: Any, shared: Any = None) -> tuple[Any, Any]:
        """Enqueue the transfer and return at once."""
        return send(value, self.draft), shared

    def check_peers(self, call: Any) -> None:
        """Do nothing: there is no other process."""


#: For each pair of devices, an output of the last transfer: the next one, of any channel, waits for it.
_before: dict[Mesh, Array] = {}


class RemoteChannel:
    """Meshes of two processes: ``ppermute`` of one packed array over one device of each.

    Both processes call the same methods in the same order, with arrays of their own side and shapes of the other; the
    sender gets shapes back. A transfer starts when the one before it has ended, so that transfers which wait for the
    other process block one thread at most, and programs of a mesh still find a thread.

    Attributes:
        transfers: number of transfers, both directions together.
    """

    def __init__(self, target: Mesh, draft: Mesh):
        meshes = target, draft
        self.transfers = 0
        self._shardings = [batch_sharding(mesh) for mesh in meshes]
        self._rows = math.lcm(*(axis_size(mesh, DATA_AXIS) for mesh in meshes))
        self._devices = [mesh.devices.flat[0] for mesh in meshes]
        self._pair = Mesh(np.asarray(self._devices), (SIDE_AXIS,))
        self._own = [side for side in (TARGET, DRAFT) if is_local(meshes[side])]
        if self._pair not in _before:
            _before[self._pair] = self._joined([_zeros(1, 1, self._devices[side]) for side in self._own])

    def to_target(self, value: Any, shared: Any = None) -> tuple[Any, Any]:
        """Send the value together with ``shared``."""
        self.transfers += 1
        return self._transfer((value, shared), DRAFT, TARGET)

    def to_draft(self, value: Any, shared: Any = None) -> tuple[Any, Any]:
        """Send the value together with ``shared``."""
        self.transfers += 1
        return self._transfer((value, shared), TARGET, DRAFT)

    def check_peers(self, call: Any) -> None:
        """Compare the arguments of both processes by a checksum."""
        own = zlib.crc32(repr(call).encode())
        mark = np.full((self._rows, 1), own, np.uint32).view(np.int32)
        # Both directions first: a process that raised after the first would leave the other waiting in the second.
        sent = [self._transfer((mark, None), *way)[0] for way in ((TARGET, DRAFT), (DRAFT, TARGET))]
        marks = [np.asarray(leaf) for leaf in sent if not isinstance(leaf, jax.ShapeDtypeStruct)]
        if any((other != mark).any() for other in marks):
            raise ValueError(
                "expected the same call in both processes, got another prompt, option, stop or setting in the other "
                "one; pass both the same arguments"
            )

    def _transfer(self, tree: tuple[Any, Any], source: int, sink: int) -> tuple[Any, Any]:
        leaves, structure = jax.tree.flatten(tree)
        specs: Specs = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
        # The receiver's part of a transfer: zeros in the shape of what will arrive.
        rows, width = specs[0][0][0], sum(_widths(specs))
        shards = [
            jax.device_put(_packed(tree), device) if side == source else _zeros(rows, width, device)
            for side, device in enumerate(self._devices)
            if side in self._own
        ]
        there, _before[self._pair] = moved(self._joined(shards), _before[self._pair], self._pair, (source, sink))
        if sink not in self._own:
            return _as_shapes(structure, specs)[0], tree[1]
        arrived = there.addressable_data(self._own.index(sink))
        return _unpacked(jax.device_put(arrived, self._shardings[sink]), structure, specs)

    def _joined(self, shards: list[Array]) -> Array:
        """Return one array over both devices, from the parts of this process."""
        rows, *rest = shards[0].shape
        sharding = NamedSharding(self._pair, PartitionSpec(SIDE_AXIS))
        return jax.make_array_from_single_device_arrays((2 * rows, *rest), sharding, shards)


def channel_between(target: Mesh, draft: Mesh) -> Channel:
    """Return the channel between two meshes: ``RemoteChannel`` if they belong to two processes."""
    if is_local(target) and is_local(draft):
        return LocalChannel(batch_sharding(target), batch_sharding(draft))
    return RemoteChannel(target, draft)


def send(tree: Any, sharding: DeviceOrSharding) -> Any:
    """Put arrays on another mesh of this process; return before they are transferred or even computed."""
    return jax.device_put(tree, sharding)


def pack(tree: Any) -> Array:
    """Concatenate leaves [B, ...] into one array [B, n] int32: one transfer instead of one for each leaf.

    Leaves of 32 bits keep their bits, those of 16 share a number of two; booleans and 8 bits are widened.
    """
    return jnp.concatenate([_words(leaf.reshape(leaf.shape[0], -1)) for leaf in jax.tree.leaves(tree)], axis=1)


def unpack(packed: Array, like: Tree) -> Tree:
    """Return the tree that was packed, shaped as ``like`` (arrays or shape structs)."""
    leaves, structure = jax.tree.flatten(like)
    cuts = np.cumsum(_widths([(leaf.shape, leaf.dtype) for leaf in leaves]))[:-1].tolist()
    parts = zip(jnp.split(packed, cuts, axis=1), leaves, strict=True)
    return jax.tree.unflatten(structure, [_from_words(part, leaf) for part, leaf in parts])


_bits = jax.lax.bitcast_convert_type
_packed = jax.jit(pack)


def _words(rows: Array) -> Array:
    """Return the numbers of rows [B, n] as int32 words [B, m]."""
    if _is_half(rows.dtype):
        return _bits(jnp.pad(rows, ((0, 0), (0, rows.shape[1] % 2))).reshape(len(rows), -1, 2), jnp.int32)
    return _bits(rows.astype(_wide(rows.dtype)), jnp.int32)


def _from_words(words: Array, like: Any) -> Array:
    """Return the leaf whose words these are."""
    if _is_half(like.dtype):
        rows = _bits(words, like.dtype).reshape(len(words), -1)
        return rows[:, : math.prod(like.shape[1:])].reshape(like.shape)
    return _bits(words, _wide(like.dtype)).astype(like.dtype).reshape(like.shape)


def _is_half(dtype: Any) -> bool:
    return np.dtype(dtype).itemsize == 2


def _wide(dtype: Any) -> Any:
    """Return the 32-bit type that holds every number of a type of 8 or 32 bits."""
    if np.dtype(dtype).itemsize == 4:
        return dtype
    return jnp.float32 if jnp.issubdtype(dtype, jnp.floating) else jnp.int32


def _widths(specs: Any) -> list[int]:
    counts = [(math.prod(shape[1:]), dtype) for shape, dtype in specs]
    return [-(-count // 2) if _is_half(dtype) else count for count, dtype in counts]


@lru_cache
def _zeros(rows: int, width: int, device: jax.Device) -> Array:
    return jax.device_put(np.zeros((rows, width), np.int32), device)


@lru_cache
def _as_shapes(structure: Any, specs: Specs) -> Any:
    return jax.tree.unflatten(structure, [jax.ShapeDtypeStruct(*spec) for spec in specs])


@partial(jax.jit, static_argnums=(1, 2))
def _unpacked(packed: Array, structure: Any, specs: Specs) -> Any:
    return unpack(packed, _as_shapes(structure, specs))


@partial(jax.jit, static_argnums=(2, 3))
def moved(packed: Array, before: Array, pair: Mesh, way: tuple[int, int]) -> tuple[Array, Array]:
    """Move the sender's rows of [2·B, n] to the receiver; also return what the next transfer waits for."""
    split = PartitionSpec(SIDE_AXIS)

    @partial(jax.shard_map, mesh=pair, in_specs=(split, split), out_specs=(split, split))
    def sent(packed: Array, before: Array) -> tuple[Array, Array]:
        return jax.lax.ppermute(packed, SIDE_AXIS, (way,)), before + 1

    return sent(packed, before)
