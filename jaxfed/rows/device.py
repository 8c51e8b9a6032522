"""Client rows on the mesh: gathered and written back inside the compiled rounds, many of which are one program."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, DTypeLike, PyTree

from jaxfed.core import tree
from jaxfed.core.protocol import ClientRow, RoundInfo, Server
from jaxfed.layout.sharding import Shardings, constrain, put
from jaxfed.rows import _exchange
from jaxfed.rows.engine import LONGEST_BLOCK, Start
from jaxfed.rows.rounds import PROGRAMS_KEPT, RoundConfig, World, one_round, placed, row_like


@dataclasses.dataclass(frozen=True)
class DeviceStore:
    """Rows of all N clients on the device or the mesh, leaves [N, ...]: fastest; memory grows with N.

    Attributes:
        dtype: floating-point dtype of the stored rows, such as bfloat16; None keeps the algorithm's.
    """

    dtype: DTypeLike | None = None

    def engine(self, start: Start) -> "DeviceEngine":
        """See `Store`; every device of the mesh holds its part of the rows."""
        return DeviceEngine(self, start)

    def init(self, row: ClientRow, num_clients: int) -> ClientRow:
        """Return N copies of `row`."""
        stored = tree.cast(row, self.dtype)
        return jax.tree.map(lambda leaf: jnp.repeat(leaf[None], num_clients, axis=0), stored)

    def gather(self, state: ClientRow, ids: Array) -> ClientRow:
        """Return rows [C, ...] in the stored dtype; an empty slot gets client 0's."""
        return jax.tree.map(lambda leaf: leaf[jnp.maximum(ids, 0)], state)

    def scatter(self, state: ClientRow, ids: Array, rows: ClientRow) -> ClientRow:
        """Return the rows of all clients with `rows` written at `ids`; in place where the state is donated."""

        def write(leaf: Array, new: Array) -> Array:
            beyond = leaf.shape[0]
            return leaf.at[jnp.where(ids >= 0, ids, beyond)].set(new.astype(leaf.dtype), mode="drop")

        return jax.tree.map(write, state, rows)


BlockFn = Callable[[Server, PyTree, World, Array, Array], tuple[Server, PyTree, RoundInfo]]
"""`block(server, rows, world, ids [R, C], count) -> (server, rows, infos [R, ...])`, of the first `count` rounds."""


def block(config: RoundConfig, store: DeviceStore, shardings: Shardings) -> BlockFn:
    """Compile `rounds_of`; the rows of all clients are donated and updated in place."""
    return jax.jit(rounds_of(config, store, shardings), donate_argnums=1)


def rounds_of(config: RoundConfig, store: DeviceStore, shardings: Shardings) -> BlockFn:
    """Return R rounds as one function that gathers the rows, in the algorithm's dtypes, and writes them back.

    The number of rounds is an argument, so one program serves every block of at most R.
    """
    round_once = jax.jit(functools.partial(one_round, config))  # jitted: its trace is used twice below

    travel = _exchange.applies(shardings)

    def gather(population: PyTree, ids: Array) -> ClientRow:
        return _exchange.gather(population, ids, shardings) if travel else store.gather(population, ids)

    def scatter(population: PyTree, ids: Array, rows: ClientRow) -> PyTree:
        if travel:
            return _exchange.scatter(population, ids, rows, shardings)
        return constrain(store.scatter(population, ids, rows), shardings.spread)

    def rows_of(server: Server, population: PyTree, ids: Array) -> ClientRow:
        return optax.tree.cast_like(gather(population, ids), row_like(config, server))

    def body(number: Array, carry: tuple, world: World, ids: Array) -> tuple:
        server, population, infos = carry
        here = ids[number]
        server, rows, info = round_once(server, rows_of(server, population, here), world, here)
        infos = jax.tree.map(lambda all_rounds, this: all_rounds.at[number].set(this), infos, info)
        return server, scatter(population, here, rows), infos

    def run(server: Server, population: PyTree, world: World, ids: Array, count: Array) -> tuple:
        rows = jax.eval_shape(rows_of, server, population, ids[0])
        _, _, info = jax.eval_shape(round_once, server, rows, world, ids[0])
        empty = jax.tree.map(lambda leaf: jnp.zeros((len(ids), *leaf.shape), leaf.dtype), info)
        start = server, population, empty
        server, population, infos = jax.lax.fori_loop(0, count, lambda n, c: body(n, c, world, ids), start)
        return server, population, constrain(infos, shardings.everywhere)

    return run


kept_block = functools.lru_cache(PROGRAMS_KEPT)(block)


class DeviceEngine:
    """The engine of `DeviceStore`: up to `LONGEST_BLOCK` rounds are one program."""

    def __init__(self, store: DeviceStore, start: Start) -> None:
        self._start, self._store = start, store
        self.server, self.world = placed(start.server, start.world, start.places)
        slots = -(-start.num_clients // start.places.size) * start.places.size
        self._rows = put(store.init(start.row, slots), start.places.spread)
        self._gather = jax.jit(lambda rows, ids: optax.tree.cast_like(store.gather(rows, ids), start.row))
        self._block: BlockFn

    @property
    def first(self) -> ClientRow:
        """See `Engine`."""
        return self._start.row

    def prepare(self, config: RoundConfig) -> None:
        """See `Engine`."""
        self._block = kept_block(config, self._store, self._start.places)

    def advance(self, count: int) -> RoundInfo:
        """See `Engine`."""
        first = int(self.server.round)
        played = np.stack([self._start.draw(first + number) for number in range(count)])
        drawn = np.pad(played, ((0, LONGEST_BLOCK - count), (0, 0)), mode="edge")
        ids = put(jnp.asarray(drawn), self._start.places.spread_later)
        self.server, self._rows, infos = self._block(self.server, self._rows, self.world, ids, jnp.int32(count))
        return jax.tree.map(lambda leaf: leaf[:count], jax.device_get(infos))

    def sample(self, ids: np.ndarray) -> ClientRow:
        """See `Engine`."""
        rows: ClientRow = self._gather(self._rows, put(ids, self._start.places.spread))
        return rows

    def snapshot(self, step: int, oldest: int) -> dict[str, PyTree]:
        """See `Engine`."""
        del step, oldest
        return {"server": self.server, "rows": self._rows}

    def describe(self) -> dict[str, Any]:
        """See `Engine`."""
        return {"slots": jax.tree.leaves(self._rows)[0].shape[0] if jax.tree.leaves(self._rows) else 0}

    def like(self, facts: Mapping[str, Any]) -> dict[str, PyTree]:
        """See `Engine`; a run may continue on another number of devices than it was saved on."""
        spread = self._start.places.spread

        def shape(leaf: jax.Array) -> jax.ShapeDtypeStruct:
            fits = spread if facts["slots"] % self._start.places.size == 0 else self._start.places.everywhere
            return jax.ShapeDtypeStruct((facts["slots"], *leaf.shape[1:]), leaf.dtype, sharding=fits)

        return {"server": self.server, "rows": jax.tree.map(shape, self._rows)}

    def restore(self, snapshot: Mapping[str, PyTree]) -> None:
        """See `Engine`."""
        num_clients = self._start.num_clients

        def refill(own: jax.Array, saved: jax.Array) -> jax.Array:
            return saved if own.shape == saved.shape else own.at[:num_clients].set(saved[:num_clients])

        self.server = snapshot["server"]
        self._rows = jax.tree.map(refill, self._rows, snapshot["rows"])

    def lock(self, step: int, rows: Callable[[], PyTree]) -> None:
        """No-op: a checkpoint holds all rows itself."""

    def close(self) -> None:
        """No-op."""
