"""Rows between the devices that keep them and those that train them: only the cohort's rows travel."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array

from jaxfed.core.protocol import ClientRow
from jaxfed.layout.sharding import Shardings

Exchange = Callable[..., Array]
"""`jax.lax.ragged_all_to_all`, or a function of the same arguments."""


class Route(NamedTuple):
    """Which rows one of D devices sends and receives, when device d keeps rows d·n … and trains slots d·c ….

    Attributes:
        place: of every slot's client among the rows of the device that keeps it, int32 [C].
        kept: whether this device keeps the row of slot i, bool [C].
        needed: whether device i div c keeps the row of this device's slot i mod c, bool [C].
        own: slots of this device: d·c.
        width: c = C / D.
    """

    place: Array
    kept: Array
    needed: Array
    own: Array
    width: int


def applies(places: Shardings) -> bool:
    """Return whether the devices are several TPUs of one slice.

    XLA has no such exchange for CPUs, and between slices of TPUs it sends the rows of all clients through the hosts.
    """
    if places.size == 1 or places.platform != "tpu":
        return False
    return len({getattr(device, "slice_index", 0) for device in _mesh(places).devices.flat}) == 1


def gather(rows: ClientRow, ids: Array, places: Shardings, exchange: Exchange = jax.lax.ragged_all_to_all) -> ClientRow:
    """Return rows [C, ...] of clients `ids`, each on the device of its slot; an empty slot gets client 0's.

    Args:
        rows: of all clients [N, ...], N a multiple of the number of devices.
        ids: int32 [C], C a multiple of the number of devices, −1 in empty slots.
        places: `spread` is the sharding of both.
        exchange: the collective.
    """

    def local(rows: ClientRow, ids: Array) -> ClientRow:
        if not jax.tree.leaves(rows):
            return rows
        route = _route(jnp.maximum(ids, 0), _length(rows), places)
        slot = jnp.arange(len(ids), dtype=jnp.int32) % route.width
        offsets = route.place, _ones(route.kept), slot, _ones(route.needed)

        def moved(leaf: Array) -> Array:
            empty = jnp.zeros((route.width, *leaf.shape[1:]), leaf.dtype)
            return exchange(leaf, empty, *offsets, axis_name=_axes(places))

        return jax.tree.map(moved, rows)

    return _mapped(local, places, 2)(rows, ids)


def scatter(
    rows: ClientRow, ids: Array, new: ClientRow, places: Shardings, exchange: Exchange = jax.lax.ragged_all_to_all
) -> ClientRow:
    """Return `rows` with `new` [C, ...] written at `ids`, sent from the devices of their slots; see `gather`."""

    def local(rows: ClientRow, ids: Array, new: ClientRow) -> ClientRow:
        if not jax.tree.leaves(rows):
            return rows
        route = _route(ids, _length(rows), places)
        slot = jnp.arange(len(ids), dtype=jnp.int32) % route.width
        offsets = slot, _ones(route.needed), route.place[route.own + slot], _ones(route.kept)

        def moved(leaf: Array, new: Array) -> Array:
            return exchange(new.astype(leaf.dtype), leaf, *offsets, axis_name=_axes(places))

        return jax.tree.map(moved, rows, new)

    return _mapped(local, places, 3)(rows, ids, new)


def _route(ids: Array, kept: int, places: Shardings) -> Route:
    """Return the route of this device, from the clients of all slots; nobody keeps the row of client −1."""
    device, width = jax.lax.axis_index(_axes(places)), len(ids) // places.size
    keeper, place = jnp.floor_divide(ids, kept), jnp.maximum(ids, 0) % kept
    own = device * width
    needed = jnp.repeat(jnp.arange(places.size), width) == jnp.tile(
        jax.lax.dynamic_slice_in_dim(keeper, own, width), places.size
    )
    return Route(place, keeper == device, needed, own, width)


def _mapped(local: Callable[..., ClientRow], places: Shardings, count: int) -> Callable[..., ClientRow]:
    """Map over the devices; the second of `count` arguments, ids, is whole on all of them."""
    spread = PartitionSpec(_axes(places))
    specs = tuple(PartitionSpec() if at == 1 else spread for at in range(count))
    return jax.shard_map(local, mesh=_mesh(places), in_specs=specs, out_specs=spread, check_vma=False)


def _axes(places: Shardings) -> tuple[str, ...]:
    return _mesh(places).axis_names


def _mesh(places: Shardings) -> Mesh:
    assert places.spread is not None
    return places.spread.mesh  # type: ignore[return-value]


def _length(rows: ClientRow) -> int:
    return jax.tree.leaves(rows)[0].shape[0]


def _ones(chosen: Array) -> Array:
    return chosen.astype(jnp.int32)
