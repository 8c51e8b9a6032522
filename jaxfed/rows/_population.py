"""Client rows outside the mesh: in host memory or on disk; a client that never took part takes no space."""

import dataclasses
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import DTypeLike

from jaxfed.core import tree
from jaxfed.core.protocol import ClientRow
from jaxfed.rows._slots import Slots
from jaxfed.rows._staged import StagedEngine
from jaxfed.rows._tables import FileTable, MemoryTable, RowTable
from jaxfed.rows.engine import Start

ROWS = "rows.bin"


class TablePopulation:
    """Rows as bytes in a table of slots, each with a CRC-32. A `Population`.

    Attributes:
        stored: row of a client that never took part, NumPy leaves [...] in the stored dtypes.
        slots: which slot holds which client's row.
        table: bytes of the rows, by slot.
    """

    def __init__(
        self, row: ClientRow, num_clients: int, dtype: DTypeLike | None, table: Callable[[int], RowTable]
    ) -> None:
        self.stored = jax.tree.map(np.asarray, tree.cast(row, dtype))
        self.slots = Slots(num_clients)
        self.row_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(self.stored))
        self._first = self._bytes(jax.tree.map(lambda leaf: leaf[None], self.stored), 1)[0]
        self._digests = np.zeros(num_clients, np.uint32)
        self.table = table(self.row_bytes)

    def read(self, ids: np.ndarray) -> ClientRow:
        """See `Population`; a client that never took part, and an empty slot, get the first row."""
        known = (ids >= 0) & (self.slots.of_client[np.maximum(ids, 0)] >= 0)
        rows = np.broadcast_to(self._first, (len(ids), self.row_bytes)).copy()
        rows[known] = self.table.read(self.slots.of_client[ids[known]])
        self._verify(ids[known], rows[known])
        return self._rows(rows)

    def write(self, ids: np.ndarray, rows: ClientRow) -> None:
        """See `Population`."""
        here = ids >= 0
        if not self.row_bytes or not here.any():
            return
        raw = self._bytes(jax.tree.map(lambda leaf: np.asarray(leaf)[here], rows), int(here.sum()))
        self.table.write(self.slots.assign(ids[here]), raw)
        self._digests[ids[here]] = [zlib.crc32(row) for row in raw]

    def _verify(self, ids: np.ndarray, rows: np.ndarray) -> None:
        for client, row in zip(ids.tolist(), rows, strict=True):
            if zlib.crc32(row) != self._digests[client]:
                raise OSError(f"expected client {client}'s row as it was written, got other bytes in {self}; resume")

    def _bytes(self, rows: ClientRow, count: int) -> np.ndarray:
        leaves = [np.ascontiguousarray(leaf) for leaf in jax.tree.leaves(rows)]
        flat = [leaf.reshape(count, -1).view(np.uint8) for leaf in leaves if leaf.size]
        return np.concatenate([np.empty((count, 0), np.uint8), *flat], axis=1)

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
        """See `Population`: where each row is, and its digest; these slots are kept until `oldest` passes `step`."""
        self.slots.release(oldest)
        self.slots.keep(step)
        self.table.sync()
        return {"slots": self.slots.of_client.copy(), "digests": self._digests.copy()}

    def like(self, facts: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """See `Population`."""
        del facts
        return {"slots": self.slots.of_client, "digests": self._digests}

    def describe(self) -> dict[str, Any]:
        """See `Population`."""
        return {}

    def restore(self, snapshot: Mapping[str, np.ndarray]) -> None:
        """See `Population`."""
        self.slots.restore(snapshot["slots"])
        self._digests = np.array(snapshot["digests"])

    def lock(self, step: int, snapshot: Callable[[], Mapping[str, np.ndarray]]) -> None:
        """See `Population`."""
        self.slots.keep(step, np.asarray(snapshot()["slots"]))

    def close(self) -> None:
        """See `Population`."""
        self.table.close()


class HostPopulation(TablePopulation):
    """Rows in host memory; a snapshot holds them."""

    def __init__(self, row: ClientRow, num_clients: int, dtype: DTypeLike | None) -> None:
        super().__init__(row, num_clients, dtype, MemoryTable)

    def __str__(self) -> str:
        return "host memory"

    def snapshot(self, step: int, oldest: int) -> dict[str, np.ndarray]:
        """See `Population`; no slot is locked, since the snapshot holds the rows themselves."""
        del step, oldest
        rows = self.table.read(np.arange(self.slots.size))
        return {"slots": self.slots.of_client.copy(), "digests": self._digests.copy(), "rows": rows}

    def like(self, facts: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """See `Population`."""
        return {**super().like(facts), "rows": np.broadcast_to(np.uint8(0), (facts["size"], self.row_bytes))}

    def describe(self) -> dict[str, Any]:
        """See `Population`."""
        return {"size": self.slots.size}

    def restore(self, snapshot: Mapping[str, np.ndarray]) -> None:
        """See `Population`."""
        super().restore(snapshot)
        self.table.write(np.arange(len(snapshot["rows"])), np.asarray(snapshot["rows"]))

    def lock(self, step: int, snapshot: Callable[[], Mapping[str, np.ndarray]]) -> None:
        """No-op: a snapshot holds the rows themselves."""


class DiskPopulation(TablePopulation):
    """Rows in a file; a snapshot holds their slots, which are not written to while it is kept."""

    def __init__(self, directory: Path, row: ClientRow, num_clients: int, dtype: DTypeLike | None) -> None:
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            message = f"expected a directory for client rows ({error.strerror}); choose another"
            raise OSError(error.errno, message, str(directory)) from error
        self._path = directory / ROWS
        super().__init__(row, num_clients, dtype, partial(FileTable, self._path))

    def __str__(self) -> str:
        return str(self._path)


@dataclasses.dataclass(frozen=True)
class HostStore:
    """Rows in host memory, of the clients that ever took part; the next cohort's rows are page-locked.

    Attributes:
        dtype: floating-point dtype of the stored rows, such as bfloat16; None keeps the algorithm's.
    """

    dtype: DTypeLike | None = None

    def engine(self, start: Start) -> StagedEngine:
        """See `Store`."""
        return StagedEngine(lambda: HostPopulation(start.row, start.num_clients, self.dtype), start)


@dataclasses.dataclass(frozen=True)
class DiskStore:
    """Rows in `directory`/rows.bin, for populations beyond memory; they move to the mesh one round ahead.

    A run that resumes from a checkpoint needs the same directory: the checkpoint holds only the slot of each row.

    Attributes:
        directory: directory of one run; a new run overwrites the file in it.
        dtype: floating-point dtype of the stored rows, such as bfloat16; None keeps the algorithm's.
    """

    directory: str | Path
    dtype: DTypeLike | None = None

    def engine(self, start: Start) -> StagedEngine:
        """See `Store`. Raises OSError, with the path, where the file cannot be opened."""
        directory, row = Path(self.directory), start.row
        return StagedEngine(lambda: DiskPopulation(directory, row, start.num_clients, self.dtype), start)
