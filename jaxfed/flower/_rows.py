"""A client's rows on its disk: one checkpoint for every round that it trained in since the server's oldest."""

from pathlib import Path
from types import TracebackType

import jax

from jaxfed import checkpoint
from jaxfed.checkpoint import CheckpointError
from jaxfed.checkpoint.record import delete, folder_of
from jaxfed.core.protocol import ClientRow

KIND = "jaxfed.flower.row"
NEVER = -1
"""`counted` of a client that was never counted."""


class Rows:
    """The rows of one client in one run, by round; locks the directory. A context manager.

    The row after round t (from 0) is checkpoint t + 1. An algorithm whose clients keep nothing writes no file.

    Args:
        directory: of this client and this run.
        first: the row of a client that never took part.
    """

    def __init__(self, directory: str | Path, first: ClientRow) -> None:
        self._directory, self._first = Path(directory), first
        self._writer = checkpoint.Writer(directory, kind=KIND, keep=None) if jax.tree.leaves(first) else None

    def __enter__(self) -> "Rows":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._writer is not None:
            self._writer.__exit__(kind, error, at)

    def after(self, counted: int) -> ClientRow:
        """Return the row after round `counted`, or the first row for `NEVER`; delete rows of later rounds.

        Those belong to replies that the server never counted: continuing from them would break its running sums.

        Raises:
            CheckpointError: this row is missing or damaged.
        """
        if self._writer is None:
            return self._first
        steps = checkpoint.steps(self._directory)
        if counted != NEVER and counted + 1 not in steps:
            raise CheckpointError(
                f"expected this client's row after round {counted} in {self._directory}, got those after rounds "
                f"{[step - 1 for step in steps]}; restore the directory, or start a new run: the server's running sums "
                "hold what this client lost"
            )
        for step in steps:
            if step > counted + 1:
                delete(folder_of(self._directory, step))
        return self._first if counted == NEVER else checkpoint.load(self._directory, self._first, counted + 1)

    def keep(self, number: int, row: ClientRow, since: int) -> None:
        """Save the row after round `number`, wait until it is on disk, and delete rows of rounds before `since`."""
        if self._writer is None:
            return
        self._writer.save(number + 1, row)
        self._writer.wait()
        for step in checkpoint.steps(self._directory):
            if step < since + 1:
                delete(folder_of(self._directory, step))
