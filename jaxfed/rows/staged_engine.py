"""Rows in host memory or on disk: while a round runs, those of the next are fetched and those of the last kept."""

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from jaxfed.core import tree
from jaxfed.core.protocol import ClientRow, RoundInfo
from jaxfed.layout.sharding import on_device, pinned, put
from jaxfed.rows import DiskStore, HostStore
from jaxfed.rows.engine import Start
from jaxfed.rows.rounds import Recipe, RoundFn, kept_single


class StagedEngine:
    """One worker thread reads and writes, in order: the rows of round t are written before those of t+2 are read.

    A client of two cohorts in a row hands its row over on the mesh. Rows that are fetched wait in page-locked memory.
    """

    def __init__(self, store: HostStore | DiskStore, start: Start) -> None:
        if jax.process_count() > 1:
            raise ValueError(
                f"expected rows on the mesh in a run of {jax.process_count()} processes, got {store}; "
                "take DeviceStore(), which gives every process its part of them"
            )
        self._start = start
        self.server, self.world = put((start.server, start.world), start.places.everywhere)
        self._population = store.open(start.row, start.num_clients)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="client-rows")
        self._writing: list[Future[None]] = []
        self._next: tuple[int, ClientRow] | None = None
        self._merge = jax.jit(merge)
        self._one: RoundFn

    def prepare(self, recipe: Recipe) -> None:
        """See `Engine`."""
        self._one = kept_single(recipe)

    def advance(self, count: int) -> RoundInfo:
        """See `Engine`; everything is written when it returns."""
        first = int(self.server.round)
        infos = [self._round(first + number) for number in range(count)]
        for done in self._writing:
            done.result()
        self._writing.clear()
        return jax.tree.map(lambda *leaves: np.stack(leaves), *jax.device_get(infos))

    def _round(self, number: int) -> RoundInfo:
        ids, following = self._start.draw(number), self._start.draw(number + 1)
        rows = self._rows_of(number, ids)
        self.server, new_rows, info = self._one(self.server, rows, self.world, self._put(ids))
        handed_over = positions(following, ids)
        fetched = self._worker.submit(self._fetch, np.where(handed_over < 0, following, -1))
        self._writing.append(self._worker.submit(self._write, ids, new_rows))
        self._next = number + 1, self._merge(new_rows, self._put(fetched.result()), self._put(handed_over))
        return info

    def _rows_of(self, number: int, ids: np.ndarray) -> ClientRow:
        if self._next is not None and self._next[0] == number:
            return self._next[1]
        return self._put(self._worker.submit(self._fetch, ids).result())

    def _fetch(self, ids: np.ndarray) -> ClientRow:
        return pinned(self._population.read(ids), self._start.places.spread)

    def _write(self, ids: np.ndarray, rows: ClientRow) -> None:
        self._population.write(ids, jax.device_get(rows))

    def _put(self, arrays: PyTree) -> PyTree:
        return put(arrays, on_device(self._start.places.spread))

    def sample(self, ids: np.ndarray) -> ClientRow:
        """See `Engine`."""
        rows = self._worker.submit(self._fetch, ids).result()
        return optax.tree.cast_like(self._put(rows), self._start.row)

    def snapshot(self, step: int, oldest: int) -> dict[str, PyTree]:
        """See `Engine`; every row written so far is safe on its way."""
        return {"server": self.server, "rows": self._worker.submit(self._population.snapshot, step, oldest).result()}

    def describe(self) -> dict[str, Any]:
        """See `Engine`."""
        return self._population.describe()

    def like(self, told: Mapping[str, Any]) -> dict[str, PyTree]:
        """See `Engine`."""
        return {"server": self.server, "rows": self._population.like(told)}

    def restore(self, snapshot: Mapping[str, PyTree]) -> None:
        """See `Engine`."""
        self.server, self._next = snapshot["server"], None
        self._population.restore(snapshot["rows"])

    def lock(self, step: int, rows: Callable[[], PyTree]) -> None:
        """See `Engine`."""
        self._population.lock(step, rows)

    def close(self) -> None:
        """See `Engine`."""
        self._worker.shutdown()
        self._population.table.close()


def merge(before: ClientRow, fetched: ClientRow, position: Array) -> ClientRow:
    """Rows [C, ...] of the next cohort: those of the last one at `position` where that is ≥ 0, else those fetched."""
    return tree.where(position >= 0, jax.tree.map(lambda leaf: leaf[jnp.maximum(position, 0)], before), fetched)


def positions(following: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Slot [C] in which each client of the following cohort takes part now; −1 where it does not."""
    slot_of = {client: slot for slot, client in enumerate(ids.tolist()) if client >= 0}
    return np.array([slot_of.get(client, -1) for client in following.tolist()], np.int32)
