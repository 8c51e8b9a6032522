"""Rows outside the mesh: while a round runs, the rows of the next are fetched and those of the last are stored."""

import functools
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from jaxfed.core import tree
from jaxfed.core.protocol import ClientRow, RoundInfo, Server
from jaxfed.layout.sharding import on_device, pinned, put
from jaxfed.rows._background import BackgroundThread
from jaxfed.rows._samples import RoundSamples, drawn_ahead, samples_of
from jaxfed.rows.engine import Population, Start
from jaxfed.rows.rounds import PROGRAMS_KEPT, RoundConfig, one_round, placed, row_like

RoundFn = Callable[[Server, ClientRow, RoundSamples, Array], tuple[Server, ClientRow, RoundInfo]]
"""`round(server, rows [C, ...], samples, ids [C]) -> (server, new rows, info)`, rows in their stored dtypes."""


def single(config: RoundConfig) -> RoundFn:
    """Compile one round; rows are computed in the algorithm's dtypes and returned in the stored ones."""

    def run(server: Server, rows: ClientRow, samples: RoundSamples, ids: Array) -> tuple[Server, ClientRow, RoundInfo]:
        used = optax.tree.cast_like(rows, row_like(config, server))
        server, new, info = one_round(config, server, used, samples.world, ids, samples.indices)
        return server, optax.tree.cast_like(new, rows), info

    return jax.jit(run)


kept_single = functools.lru_cache(PROGRAMS_KEPT)(single)


class StagedEngine:
    """The engine of a `Population`: one worker thread reads and writes, in order.

    The rows of round t are written before those of round t+2 are read. The row of a client that takes part in two
    consecutive rounds stays on the mesh. Fetched rows wait in page-locked memory. A thread of its own reads
    samples that stay on the host.

    Args:
        make: returns the population, where every client holds `start.row`.
        start: of the run.

    Raises:
        ValueError: in a run of several processes.
    """

    def __init__(self, make: Callable[[], Population], start: Start) -> None:
        if jax.process_count() > 1:
            raise ValueError(
                f"expected rows on the mesh in a run of {jax.process_count()} processes, got a store outside it; "
                "take DeviceStore(), which gives every process its part"
            )
        self._start = start
        self.server, self.world = placed(start.server, start.world, start.places, streams=True)
        self._samples = samples_of(self.world, start)
        self._population = make()
        self._worker = BackgroundThread("client-rows")
        self._writing: list[Future[None]] = []
        self._next: tuple[int, ClientRow] | None = None
        self._merge = jax.jit(merge)
        self._one: RoundFn

    @property
    def first(self) -> ClientRow:
        """See `Engine`."""
        return self._start.row

    def prepare(self, config: RoundConfig) -> None:
        """See `Engine`."""
        self._one = kept_single(config)
        self._samples.prepare(config)

    def advance(self, count: int) -> RoundInfo:
        """See `Engine`; all rows are written when it returns."""
        first = int(self.server.round)
        infos = [self._round(first + number) for number in range(count)]
        for done in self._writing:
            done.result()
        self._writing.clear()
        return jax.tree.map(lambda *leaves: np.stack(leaves), *jax.device_get(infos))

    def _round(self, number: int) -> RoundInfo:
        ids = self._start.draw(number)
        rows = self._rows_of(number, ids)
        self.server, new_rows, info = self._one(self.server, rows, self._samples.of(number), self._put(ids))
        following = drawn_ahead(self._start.draw, number + 1)
        if following is None:
            self._next = None
            self._writing.append(self._worker.submit(self._write, ids, new_rows))
            return info
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
        """See `Engine`; every row written so far is included."""
        return {"server": self.server, "rows": self._worker.submit(self._population.snapshot, step, oldest).result()}

    def describe(self) -> dict[str, Any]:
        """See `Engine`."""
        return self._population.describe()

    def like(self, facts: Mapping[str, Any]) -> dict[str, PyTree]:
        """See `Engine`."""
        return {"server": self.server, "rows": self._population.like(facts)}

    def restore(self, snapshot: Mapping[str, PyTree]) -> None:
        """See `Engine`."""
        self.server, self._next = snapshot["server"], None
        self._population.restore(snapshot["rows"])

    def lock(self, step: int, rows: Callable[[], PyTree]) -> None:
        """See `Engine`."""
        self._population.lock(step, rows)

    def close(self) -> None:
        """See `Engine`."""
        self._samples.close()
        self._worker.close()
        self._population.close()


def merge(before: ClientRow, fetched: ClientRow, position: Array) -> ClientRow:
    """Return rows [C, ...] of the next cohort: of the last one at `position` where that is ≥ 0, else the fetched."""
    return tree.where(position >= 0, jax.tree.map(lambda leaf: leaf[jnp.maximum(position, 0)], before), fetched)


def positions(following: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Return the slot [C] that each client of the following cohort has in this one, −1 for none."""
    slot_of = {client: slot for slot, client in enumerate(ids.tolist()) if client >= 0}
    return np.array([slot_of.get(client, -1) for client in following.tolist()], np.int32)
