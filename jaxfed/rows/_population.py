"""Client rows outside the mesh: in host memory or on disk; a client that was never drawn takes no space."""

import dataclasses
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import DTypeLike

from jaxfed.core import tree
from jaxfed.core.protocol import ClientRow
from jaxfed.rows._slots import Slots
from jaxfed.rows._tables import FileTable, MemoryTable, Table

ROWS = "rows.bin"


class Population:
    """All clients' rows, by id. Not thread-safe; the simulation's one worker thread calls it.

    Attributes:
      stored: row of a client that was never drawn, NumPy leaves [...] in the dtypes that are stored.
      slots: which slot holds whose row.
    """

    def __init__(self, row: ClientRow, num_clients: int, dtype: DTypeLike | None) -> None:
        self.stored = jax.tree.map(np.asarray, tree.cast(row, dtype))
        self.slots = Slots(num_clients)
        self.row_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(self.stored))
        self._first = self._bytes(jax.tree.map(lambda leaf: leaf[None], self.stored))[0]
        self._digests = np.zeros(num_clients, np.uint32)

    @property
    def table(self) -> Table:
        """Where the bytes lie."""
        raise NotImplementedError

    def read(self, ids: np.ndarray) -> ClientRow:
        """Rows [C, ...] of clients `ids`; an empty slot (−1) and a client never drawn get the first row."""
        known = (ids >= 0) & (self.slots.of_client[np.maximum(ids, 0)] >= 0)
        rows = np.broadcast_to(self._first, (len(ids), self.row_bytes)).copy()
        rows[known] = self.table.read(self.slots.of_client[ids[known]])
        self._verify(ids[known], rows[known])
        return self._rows(rows)

    def write(self, ids: np.ndarray, rows: ClientRow) -> None:
        """Take rows [C, ...] of clients `ids` over; empty slots (−1) are left out."""
        here = ids >= 0
        if not self.row_bytes or not here.any():
            return
        raw = self._bytes(jax.tree.map(lambda leaf: np.asarray(leaf)[here], rows))
        self.table.write(self.slots.assign(ids[here]), raw)
        self._digests[ids[here]] = [zlib.crc32(row) for row in raw]

    def _verify(self, ids: np.ndarray, rows: np.ndarray) -> None:
        for client, row in zip(ids.tolist(), rows, strict=True):
            if zlib.crc32(row) != self._digests[client]:
                raise OSError(f"expected client {client}'s row as it was written, got other bytes in {self}; resume")

    def _bytes(self, rows: ClientRow) -> np.ndarray:
        leaves = [np.ascontiguousarray(leaf) for leaf in jax.tree.leaves(rows)]
        flat = [leaf.reshape(len(leaf), -1).view(np.uint8) for leaf in leaves if leaf.size]
        return np.concatenate(flat, axis=1) if flat else np.empty((0, 0), np.uint8)

    def _rows(self, raw: np.ndarray) -> ClientRow:
        leaves, treedef = jax.tree.leaves(self.stored), jax.tree.structure(self.stored)
        ends = np.cumsum([leaf.nbytes for leaf in leaves])
        pieces = np.split(raw, ends[:-1], axis=1) if leaves else []
        shaped = [
            np.ascontiguousarray(piece).view(leaf.dtype).reshape(len(raw), *leaf.shape)
            for piece, leaf in zip(pieces, leaves, strict=True)
        ]
        return jax.tree.unflatten(treedef, shaped)

    def snapshot(self, step: int, oldest: int) -> dict[str, np.ndarray]:
        """What a checkpoint of `step` holds; its slots stay until `release`d by a later `oldest` step that is kept."""
        self.slots.release(oldest)
        self.slots.keep(step)
        self.table.sync()
        return {"slots": self.slots.of_client.copy(), "digests": self._digests.copy()}

    def like(self, told: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Shapes and dtypes of a snapshot, from what `describe` told."""
        del told
        return {"slots": self.slots.of_client, "digests": self._digests}

    def describe(self) -> dict[str, Any]:
        """What `like` needs, as JSON."""
        return {}

    def restore(self, snapshot: Mapping[str, np.ndarray]) -> None:
        """Go on from a snapshot."""
        self.slots.restore(snapshot["slots"])
        self._digests = np.array(snapshot["digests"])

    def lock(self, step: int, snapshot: Callable[[], Mapping[str, np.ndarray]]) -> None:
        """Do not overwrite what the `snapshot` of checkpoint `step` refers to."""
        self.slots.keep(step, np.asarray(snapshot()["slots"]))


class HostPopulation(Population):
    """Rows in host memory; a snapshot holds them."""

    def __init__(self, row: ClientRow, num_clients: int, dtype: DTypeLike | None) -> None:
        super().__init__(row, num_clients, dtype)
        self._table = MemoryTable(self.row_bytes)

    def __str__(self) -> str:
        return "host memory"

    @property
    def table(self) -> Table:
        """See `Population`."""
        return self._table

    def snapshot(self, step: int, oldest: int) -> dict[str, np.ndarray]:
        """The map and all rows that were ever written; no slot is locked, since the bytes are in the checkpoint."""
        del step, oldest
        rows = self._table.read(np.arange(self.slots.size))
        return {"slots": self.slots.of_client.copy(), "digests": self._digests.copy(), "rows": rows}

    def like(self, told: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """See `Population`."""
        return {**super().like(told), "rows": np.broadcast_to(np.uint8(0), (told["size"], self.row_bytes))}

    def describe(self) -> dict[str, Any]:
        """See `Population`."""
        return {"size": self.slots.size}

    def restore(self, snapshot: Mapping[str, np.ndarray]) -> None:
        """See `Population`."""
        super().restore(snapshot)
        self._table.write(np.arange(len(snapshot["rows"])), np.asarray(snapshot["rows"]))

    def lock(self, step: int, snapshot: Callable[[], Mapping[str, np.ndarray]]) -> None:
        """Nothing is shared with checkpoints."""


class DiskPopulation(Population):
    """Rows in a file; a snapshot holds where they lie, and their slots are not written to while it is kept."""

    def __init__(self, directory: Path, row: ClientRow, num_clients: int, dtype: DTypeLike | None) -> None:
        super().__init__(row, num_clients, dtype)
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            told = f"expected a directory for client rows ({error.strerror}); choose another"
            raise OSError(error.errno, told, str(directory)) from error
        self._path = directory / ROWS
        self._table = FileTable(self._path, self.row_bytes)

    def __str__(self) -> str:
        return str(self._path)

    @property
    def table(self) -> Table:
        """See `Population`."""
        return self._table


@dataclasses.dataclass(frozen=True)
class HostStore:
    """Rows in host memory: as many clients as it holds of those ever drawn; the next cohort's are page-locked.

    Attributes:
      dtype: floating-point type in which rows are kept, for instance bfloat16; None keeps the algorithm's own.
    """

    dtype: DTypeLike | None = None

    def open(self, row: ClientRow, num_clients: int) -> Population:
        """An empty population: every client holds `row`."""
        return HostPopulation(row, num_clients, self.dtype)


@dataclasses.dataclass(frozen=True)
class DiskStore:
    """Rows in `directory`/rows.bin: for populations beyond memory, moved to the mesh a round ahead.

    A run that resumes from a checkpoint needs the same directory: the checkpoint holds only where each row lies.

    Attributes:
      directory: belongs to one run; the file in it is overwritten by a run that starts anew.
      dtype: floating-point type in which rows are kept, for instance bfloat16; None keeps the algorithm's own.
    """

    directory: str | Path
    dtype: DTypeLike | None = None

    def open(self, row: ClientRow, num_clients: int) -> Population:
        """An empty population: every client holds `row`. Raises OSError, with the path, where that cannot be."""
        return DiskPopulation(Path(self.directory), row, num_clients, self.dtype)
