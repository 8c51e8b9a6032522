"""The files of a published draft: its configuration, and arrays by name, each of which must be used or known."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from jaxspec.core.files import read_json, reading
from jaxspec.loading._weights import PICKLES, Weights

CONFIG = "config.json"


class DraftFiles:
    """Configuration and arrays of a folder.

    Attributes:
        folder: where they lie.
        config: ``config.json``.
        names: from canonical names (``renamed``) to those in the files.

    Raises:
        ValueError: no config.json, no weights, a damaged file, pickles without torch.
    """

    def __init__(self, folder: Path):
        self.folder, self._used = folder, set[str]()
        if not (folder / CONFIG).is_file():
            raise ValueError(
                f"{folder}: expected a folder with config.json and the draft's weights, got no config.json"
            )
        self.config = read_json(folder / CONFIG)
        arrays = _arrays(folder)
        self._arrays = arrays
        entries = arrays.entries if isinstance(arrays, Weights) else arrays
        self.shapes = {name: tuple(entry.shape) for name, entry in entries.items()}
        self.names = {name: name for name in self.shapes}

    def rename(self, pattern: str, to: str) -> None:
        """Replace a regular expression in all names."""
        self.names = {re.sub(pattern, to, name): own for name, own in self.names.items()}

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of an array.

        Raises:
            ValueError: there is none of that name.
        """
        if name not in self.names:
            raise ValueError(
                f"{self.folder}: expected an array {name}, got none; it belongs to every draft of this kind"
            )
        return self.shapes[self.names[name]]

    def __getitem__(self, name: str) -> np.ndarray:
        self.shape(name)
        self._used.add(name)
        return np.asarray(self._arrays[self.names[name]])

    def skip(self, *names: str) -> None:
        """Note that arrays are known and not needed."""
        self._used.update(names)

    def matching(self, pattern: str) -> list[re.Match[str]]:
        """Return the matches of a regular expression with whole names."""
        return [found for name in self.names if (found := re.fullmatch(pattern, name))]

    def check_all_used(self, ignored: str) -> list[str]:
        """Return the arrays that are not needed, those that match ``ignored`` and those of ``skip``.

        Raises:
            ValueError: others.
        """
        left = sorted(set(self.names) - self._used)
        if extra := [name for name in left if not re.fullmatch(ignored, name)]:
            raise ValueError(f"{self.folder}: the files have arrays that no draft of this kind has: {some(extra)}")
        return left


def some(names: list[str]) -> str:
    """Return the first names of a list, and how many more there are."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _arrays(folder: Path) -> Any:
    """Return the arrays of safetensors files, or else of pickled ones."""
    if list(folder.glob("*.safetensors")):
        return Weights(folder, integers=True)
    pickles = sorted(path for path in folder.iterdir() if path.suffix in PICKLES)
    if not pickles:
        raise ValueError(f"{folder}: expected *.safetensors, *.bin or *.pt, got none")
    return {name: array for path in pickles for name, array in _unpickled(path).items()}


def _unpickled(path: Path) -> dict[str, np.ndarray]:
    """Read a pickled state dictionary with torch, tensors only, so that nothing in the file is run."""
    try:
        import torch
    except ImportError as error:
        raise ValueError(
            f"{path}: expected safetensors, got a pickle, which only torch reads safely (weights_only=True); install "
            "torch, or convert the file to safetensors"
        ) from error
    with reading(path, "a state dictionary of tensors"):
        state = torch.load(path, map_location="cpu", weights_only=True)
        return {name: (each.float() if each.is_floating_point() else each).numpy() for name, each in state.items()}
