"""Checks of a command's arguments before anything is loaded or compiled: paths, numbers, a missing draft."""

import os
from collections.abc import Iterable
from pathlib import Path

from jaxfed import checkpoint
from jaxspec.loading.hub import is_hub_name
from jaxspec.loading.parameters import DTYPES
from jaxspec.zoo import PAIRS, draft_folders


def at_least(low: float, **numbers: float | Iterable[float] | None) -> None:
    """Check that every number is at least ``low``; None is skipped.

    Args:
        low: smallest value allowed.
        **numbers: numbers, or sequences of numbers, by argument name.

    Raises:
        ValueError: a number is smaller, or a sequence is empty.
    """
    for name, value in numbers.items():
        values = [] if value is None else [value] if isinstance(value, int | float) else list(value)
        if (not values and value is not None) or not all(each >= low for each in values):
            raise ValueError(f"expected {name} >= {low:g}, got {value}")


def is_pair(target: str) -> bool:
    """Return whether this is an embedded pair or one written by train; a pair contains its own draft."""
    return target in PAIRS or (Path(target) / "pair.json").is_file()


def draft_path(target: str, draft: Path | None) -> Path | None:
    """Return the folder of a draft that is named as one of the pair's, or the path as it is."""
    own = draft_folders(target) if is_pair(target) else {}
    return draft if draft is None else own.get(str(draft), draft)


def check_models(target: str, draft: Path | None, dtype: str | None = None, drafting_for: str | None = None) -> None:
    """Check that target and draft exist in a known format, and that there is a draft if one is needed.

    Args:
        target: name or path.
        draft: path, or name of one of the pair's drafts.
        dtype: of the parameters.
        drafting_for: option or command that needs a draft, for the error message; None if nothing does.

    Raises:
        ValueError: a model is missing, its format is unknown, or the dtype is unknown.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"expected dtype {', '.join(DTYPES)}, got {dtype!r}")
    paths = [None if is_pair(target) else Path(target), draft_path(target, draft)]
    for path in filter(None, paths):
        if not _holds_model(path) and not is_hub_name(path):
            got = "none of these" if path.exists() else "no such path"
            raise ValueError(
                f"{path}: expected a folder with config.json, a checkpoint folder written by jaxspec convert, a .gguf "
                f"file, a llama2.c .bin file, or a name on the hub, got {got}; pass such a path, or --target "
                f"{PAIRS[0]} for the embedded pair"
            )
    if drafting_for is not None and draft is None and not is_pair(target):
        raise ValueError(
            f"expected --draft for {drafting_for}, got none; pass a smaller model with the same tokenizer: one of "
            "the target's family, or OUT/draft written by jaxspec federate. The embedded pair has its own draft: "
            f"--target {PAIRS[0]}"
        )


def _holds_model(path: Path) -> bool:
    if path.is_dir():
        return (path / "config.json").is_file() or checkpoint.latest(path) is not None
    return path.is_file() and path.suffix in (".bin", ".gguf")


def check_readable(path: Path | None) -> None:
    """Check that a file or folder to read exists.

    Raises:
        ValueError: it does not.
    """
    if path is not None and not path.exists():
        raise ValueError(f"{path}: expected a file or folder to read, got no such path; check its spelling")


def check_writable(folder: Path) -> None:
    """Check that a folder to write to exists or can be made.

    Raises:
        ValueError: a file has its name, or there is no permission to write.
    """
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ValueError(
            f"{folder}: expected a folder that can be written to, got {existing}, which "
            f"{'is read-only' if existing.is_dir() else 'is a file'}; pass another folder"
        )


def check_picture(path: Path) -> None:
    """Check that a picture can be written to this path.

    Raises:
        ValueError: the path is a folder, or its folder cannot be written to.
    """
    if path.is_dir():
        raise ValueError(
            f"{path}: expected a file name for the picture, got a folder; pass a file such as {path / 'picture.png'}"
        )
    check_writable(path.parent)
