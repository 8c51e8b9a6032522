"""Rows on the mesh: many rounds are one program, without a word from the host."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from jaxfed.core.protocol import ClientRow, RoundInfo
from jaxfed.layout.sharding import put
from jaxfed.rows import DeviceStore
from jaxfed.rows.engine import Start
from jaxfed.rows.rounds import BlockFn, Recipe, kept_block


class MeshEngine:
    """Every device of the mesh holds its part of the population; a cohort's rows travel inside the program."""

    def __init__(self, store: DeviceStore, start: Start, longest_block: int) -> None:
        self._start, self._store, self._longest = start, store, longest_block
        self.server, self.world = put((start.server, start.world), start.places.everywhere)
        slots = -(-start.num_clients // start.places.size) * start.places.size
        self._rows = put(store.init(start.row, slots), start.places.spread)
        self._block: BlockFn

    def prepare(self, recipe: Recipe) -> None:
        """See `Engine`."""
        self._block = kept_block(recipe, self._store, self._start.places)

    def advance(self, count: int) -> RoundInfo:
        """See `Engine`; at most `longest_block` rounds at once."""
        first = int(self.server.round)
        played = np.stack([self._start.draw(first + number) for number in range(count)])
        drawn = np.pad(played, ((0, self._longest - count), (0, 0)), mode="edge")
        ids = put(jnp.asarray(drawn), self._start.places.spread_later)
        self.server, self._rows, infos = self._block(self.server, self._rows, self.world, ids, jnp.int32(count))
        return jax.tree.map(lambda leaf: leaf[:count], jax.device_get(infos))

    def sample(self, ids: np.ndarray) -> ClientRow:
        """See `Engine`."""
        gather = jax.jit(lambda rows, ids: optax.tree.cast_like(self._store.gather(rows, ids), self._start.row))
        return gather(self._rows, put(ids, self._start.places.spread))

    def snapshot(self, step: int, oldest: int) -> dict[str, PyTree]:
        """See `Engine`."""
        del step, oldest
        return {"server": self.server, "rows": self._rows}

    def describe(self) -> dict[str, Any]:
        """See `Engine`."""
        return {"slots": jax.tree.leaves(self._rows)[0].shape[0] if jax.tree.leaves(self._rows) else 0}

    def like(self, told: Mapping[str, Any]) -> dict[str, PyTree]:
        """See `Engine`; a run may go on with another number of devices than it was saved with."""
        place = self._start.places.spread

        def shape(leaf: jax.Array) -> jax.ShapeDtypeStruct:
            fits = place if told["slots"] % self._start.places.size == 0 else self._start.places.everywhere
            return jax.ShapeDtypeStruct((told["slots"], *leaf.shape[1:]), leaf.dtype, sharding=fits)

        return {"server": self.server, "rows": jax.tree.map(shape, self._rows)}

    def restore(self, snapshot: Mapping[str, PyTree]) -> None:
        """See `Engine`."""
        num_clients = self._start.num_clients

        def refill(own: jax.Array, saved: jax.Array) -> jax.Array:
            return saved if own.shape == saved.shape else own.at[:num_clients].set(saved[:num_clients])

        self.server = snapshot["server"]
        self._rows = jax.tree.map(refill, self._rows, snapshot["rows"])

    def lock(self, step: int, rows: Callable[[], PyTree]) -> None:
        """A checkpoint holds all rows itself."""

    def close(self) -> None:
        """Nothing to give back."""
