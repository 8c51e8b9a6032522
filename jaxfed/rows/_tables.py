"""Tables of equally long rows of bytes, by slot: in memory, or in a file."""

import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np

BLOCK = 64 * 2**20
"""Bytes by which a table in memory grows."""


class RowTable(Protocol):
    """Rows of bytes, uint8 [row_bytes] each, at slots 0, 1, 2, …; it grows as slots are written."""

    def read(self, slots: np.ndarray) -> np.ndarray:
        """Return rows uint8 [n, row_bytes] of slots [n] that were written before."""
        ...

    def write(self, slots: np.ndarray, rows: np.ndarray) -> None:
        """Write rows uint8 [n, row_bytes]."""
        ...

    def sync(self) -> None:
        """Return once everything written is durable."""
        ...

    def close(self) -> None:
        """Release memory or file."""
        ...


class MemoryTable:
    """A table in host memory, in blocks of about 64 MiB, so that growing copies nothing."""

    def __init__(self, row_bytes: int) -> None:
        self._per_block = max(1, BLOCK // max(row_bytes, 1))
        self._row_bytes, self._blocks = row_bytes, list[np.ndarray]()

    def read(self, slots: np.ndarray) -> np.ndarray:
        """See `RowTable`."""
        rows = np.empty((len(slots), self._row_bytes), np.uint8)
        for at, slot in enumerate(slots.tolist()):
            rows[at] = self._blocks[slot // self._per_block][slot % self._per_block]
        return rows

    def write(self, slots: np.ndarray, rows: np.ndarray) -> None:
        """See `RowTable`."""
        for slot, row in zip(slots.tolist(), rows, strict=True):
            while slot // self._per_block >= len(self._blocks):
                self._blocks.append(np.empty((self._per_block, self._row_bytes), np.uint8))
            self._blocks[slot // self._per_block][slot % self._per_block] = row

    def sync(self) -> None:
        """No-op: memory is not durable."""

    def close(self) -> None:
        """Free the blocks."""
        self._blocks.clear()


class FileTable:
    """A table in one file, by positioned reads and writes: what fails raises OSError with the path, never a signal.

    Raises:
        OSError: the file cannot be opened, is in use by another run, is full, or ends early; the message names it.
    """

    def __init__(self, path: Path, row_bytes: int) -> None:
        self._path, self._row_bytes = path, row_bytes
        self._descriptor = self._naming("open", lambda: os.open(path, os.O_RDWR | os.O_CREAT, 0o644))
        try:
            self._naming("lock", lambda: fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB))
        except OSError:
            os.close(self._descriptor)
            raise

    def read(self, slots: np.ndarray) -> np.ndarray:
        """See `RowTable`."""
        rows = np.empty((len(slots), self._row_bytes), np.uint8)
        for row, slot in zip(rows, slots.tolist(), strict=True):
            self._each(memoryview(row.data), slot, "read", lambda view, at: os.preadv(self._descriptor, [view], at))
        return rows

    def write(self, slots: np.ndarray, rows: np.ndarray) -> None:
        """See `RowTable`."""
        for slot, row in zip(slots.tolist(), np.ascontiguousarray(rows), strict=True):
            self._each(memoryview(row.data), slot, "write", lambda view, at: os.pwrite(self._descriptor, view, at))

    def _each(self, view: memoryview, slot: int, verb: str, call: Callable[[memoryview, int], int]) -> None:
        """Call until the whole row is done: the kernel may do a part of it."""
        done = 0
        while done < self._row_bytes:
            moved = self._naming(verb, lambda: call(view[done:], slot * self._row_bytes + done))  # noqa: B023
            if not moved:
                raise OSError(f"expected row {slot} in {self._path}, the file ends before it; resume from a checkpoint")
            done += moved

    def _naming(self, verb: str, call: Callable[[], int | None]) -> int:
        try:
            return call() or 0
        except BlockingIOError as error:
            raise OSError(f"expected to {verb} {self._path}, another run holds it; choose another directory") from error
        except OSError as error:
            message = f"expected to {verb} client rows ({error.strerror}); free space, set permissions, or move it"
            raise OSError(error.errno, message, str(self._path)) from error

    def sync(self) -> None:
        """See `RowTable`."""
        self._naming("sync", lambda: os.fdatasync(self._descriptor))

    def close(self) -> None:
        """Close the file, and with that its lock; the rows stay."""
        os.close(self._descriptor)
