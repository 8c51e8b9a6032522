"""What goes wrong with checkpoints, in words: expected, got, remedy."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

PathLike = str | os.PathLike[str]


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or read; the message says what was expected, what came, and the remedy."""


class MismatchError(CheckpointError):
    """What was asked for (structure, shape, dtype, part) is not what was saved."""


class DamagedError(CheckpointError):
    """A complete step is no longer what was saved; `file` is its first bad file, relative to the step's folder."""

    def __init__(self, message: str, file: str) -> None:
        super().__init__(message)
        self.file = file


@contextmanager
def explaining(expected: str, remedy: str) -> Iterator[None]:
    """Turn what other libraries raise into a CheckpointError."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"{expected}, got {type(error).__name__}: {error}; {remedy}") from error
