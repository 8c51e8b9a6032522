"""Errors of checkpoints; every message has expected, got and remedy."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

PathLike = str | os.PathLike[str]


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or read."""


class MismatchError(CheckpointError):
    """The requested structure, shape, dtype or part is not what was saved."""


class DamagedError(CheckpointError):
    """A complete step is no longer what was saved.

    Attributes:
        file: its first bad file, relative to the step's folder.
    """

    def __init__(self, message: str, file: str) -> None:
        super().__init__(message)
        self.file = file


@contextmanager
def explaining(expected: str, remedy: str) -> Iterator[None]:
    """Turn the exceptions of other libraries into a CheckpointError."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"{expected}, got {type(error).__name__}: {error}; {remedy}") from error
