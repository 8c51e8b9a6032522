"""Files that others wrote: whatever they hold, what goes wrong is said with the file's name."""

import codecs
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def read_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        ValueError: no JSON, nested too deeply, numbers of thousands of digits, or no object; names the file.
        OSError: no such file.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON, got {error}; copy it again") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(found).__name__}; copy it again")
    return found


def lines_of(path: Path) -> list[bytes]:
    """Lines of a JSON Lines file, with or without a byte order mark.

    Only a line feed ends a line: ``splitlines`` would also cut at characters that JSON allows inside a string (U+2028).
    """
    return path.read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n")


@contextmanager
def reading(path: str | Path, expected: str) -> Iterator[None]:
    """Turns what a file makes our code and other libraries raise into a ValueError that names it.

    A missing library, a missing file and missing memory are left as they are.

    Args:
        path: the file, or the folder of several.
        expected: what it should hold.
    """
    try:
        yield
    except (ImportError, FileNotFoundError, MemoryError):
        raise
    except ValueError as error:
        raise error if str(path) in str(error) else ValueError(f"{path}: {error}") from error
    except BaseException as error:
        # What Rust panics with is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"{path}: expected {expected}, got {type(error).__name__}: {error}; copy it again") from error
