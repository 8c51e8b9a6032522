"""What a command can refuse before it loads or compiles anything: paths, numbers, a draft that is missing."""

import os
from collections.abc import Iterable
from pathlib import Path

from jaxfed import checkpoint
from jaxspec.loading.parameters import DTYPES
from jaxspec.zoo import PAIRS


def at_least(low: float, **numbers: float | Iterable[float] | None) -> None:
    """Every number, or every one of several, is as large; None is no number.

    Raises:
        ValueError: one is smaller, or there is none of several.
    """
    for name, value in numbers.items():
        values = [] if value is None else [value] if isinstance(value, int | float) else list(value)
        if (not values and value is not None) or not all(each >= low for each in values):
            raise ValueError(f"expected {name} >= {low:g}, got {value}")


def is_pair(target: str) -> bool:
    """Whether it is an embedded or trained pair, which brings its own draft."""
    return target in PAIRS or (Path(target) / "pair.json").is_file()


def check_models(target: str, draft: Path | None, dtype: str | None = None, drafting_for: str | None = None) -> None:
    """Both are there, in a form that can be opened; a draft is there if something needs one.

    Args:
        target: name or path.
        draft: path.
        dtype: of the parameters.
        drafting_for: what needs a draft, in words; None: nothing does.

    Raises:
        ValueError: whatever is missing or unknown.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"expected dtype {', '.join(DTYPES)}, got {dtype!r}")
    for path in ([] if is_pair(target) else [Path(target)]) + ([] if draft is None else [draft]):
        if not _holds_model(path):
            raise ValueError(
                f"{path}: expected a folder with config.json, a checkpoint directory that jaxspec convert wrote, or a "
                f"llama2.c .bin file, got {'none of them' if path.exists() else 'nothing'}; pass such a path, or "
                f"--target {PAIRS[0]} for the embedded pair"
            )
    if drafting_for is not None and draft is None and not is_pair(target):
        raise ValueError(
            f"expected --draft for {drafting_for}, got none; name a smaller model with the same tokenizer: a sibling "
            "of the target, or OUT/draft that jaxspec federate wrote. The embedded pair (jaxspec.zoo) brings its own: "
            f"--target {PAIRS[0]}"
        )


def _holds_model(path: Path) -> bool:
    if path.is_dir():
        return (path / "config.json").is_file() or checkpoint.latest(path) is not None
    return path.is_file() and path.suffix == ".bin"


def check_readable(path: Path | None) -> None:
    """A file or folder that is to be read is there.

    Raises:
        ValueError: it is not.
    """
    if path is not None and not path.exists():
        raise ValueError(f"{path}: expected a file or folder to read, got nothing; check the path")


def check_writable(folder: Path) -> None:
    """A folder that is to be written to exists, or can be made.

    Raises:
        ValueError: a file stands in its way, or it may not be written to.
    """
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ValueError(
            f"{folder}: expected a folder that can be written to, got {there}, which "
            f"{'cannot be' if there.is_dir() else 'is a file'}; name another one"
        )


def check_picture(path: Path) -> None:
    """A picture that is to be written has a name, and a folder that can be written to.

    Raises:
        ValueError: it is a folder, or its folder cannot be written to.
    """
    if path.is_dir():
        raise ValueError(
            f"{path}: expected a file to draw to, got a folder; name a file such as {path / 'picture.png'}"
        )
    check_writable(path.parent)
