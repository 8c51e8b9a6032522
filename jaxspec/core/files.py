"""Reading files of other programs, whose errors name the file, and keeping results of our own."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np


def kept(directory: Path | None, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Read named arrays from a file, or make them and write the file; it is never left half written."""
    if directory is None:
        return make()
    path = Path(directory) / f"{name}.npz"
    if path.exists():
        with np.load(path) as file:
            return dict(file)
    arrays = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, **arrays)
    os.replace(partial, path)
    return arrays


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        ValueError: not JSON, nested too deeply, a number of thousands of digits, or not an object; names the file.
        OSError: no such file.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON, got {error}; copy it again") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(value).__name__}; copy it again")
    return value


@contextmanager
def reading(path: str | Path, expected: str) -> Iterator[None]:
    """Convert any error of reading a file into a ValueError that names the file.

    ImportError, FileNotFoundError and MemoryError are raised unchanged.

    Args:
        path: the file, or the folder of the files.
        expected: what the file should hold, for the message.
    """
    try:
        yield
    except (ImportError, FileNotFoundError, MemoryError):
        raise
    except ValueError as error:
        raise error if str(path) in str(error) else ValueError(f"{path}: {error}") from error
    except BaseException as error:
        # A panic in Rust is a BaseException, but not an Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"{path}: expected {expected}, got {type(error).__name__}: {error}; copy it again") from error
