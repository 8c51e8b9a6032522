"""Safetensors files of a published checkpoint: listed and checked, then read one array at a time."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from jaxspec.core.files import read_json, reading

#: Largest file that ``write`` makes, in bytes.
SHARD_BYTES = 5_000_000_000
#: Name of a single file, and of the index of several.
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
#: Name of a file of trained exits, which are no weights of the model (``loading.exits``).
LENS = "lens.safetensors"
#: Bytes of one number of each dtype that weights may have.
WIDTHS = {"F16": 2, "BF16": 2, "F32": 4, "F64": 8}
#: Likewise of arrays that are not weights, such as the vocabulary of a draft.
INTEGERS = {"I64": 8, "I32": 4, "BOOL": 1}
#: Likewise of arrays that hold weights of fewer bits.
BYTES = {"U8": 1}
#: Numbers of two arrays that are compared at once.
COMPARED = 2**22
#: Suffixes of files with pickled weights.
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class Entry(NamedTuple):
    """One published array: its file, its shape, and its bytes in the file."""

    file: Path
    shape: tuple[int, ...]
    num_bytes: int


class Arrays(Protocol):
    """Published arrays by name, wherever they are."""

    entries: dict[str, Entry]

    def equal(self, name: str, other: str) -> bool:
        """Return whether two arrays are equal."""

    def __getitem__(self, name: str) -> np.ndarray:
        """Return the array of that name."""


class Weights:
    """The arrays of a folder by name; each is read when it is indexed.

    Args:
        folder: of the files.
        integers: whether arrays that are not weights are read too.
        packed: ends of names of arrays of bytes, which hold weights that the caller unpacks.

    Raises:
        ValueError: no safetensors file, or only pickles; a truncated or damaged file; an index that names files of
            another folder; arrays that are not floats (quantised weights); two arrays with one name.
    """

    def __init__(self, folder: Path, integers: bool = False, packed: tuple[str, ...] = ()):
        floats = WIDTHS | INTEGERS if integers else WIDTHS
        self._files = {path: _opened(path) for path in _files(folder)}
        self.entries: dict[str, Entry] = {}
        for path, file in self._files.items():
            for name in file.keys():  # noqa: SIM118  not a dictionary
                part = file.get_slice(name)
                shape, dtype = tuple(part.get_shape()), part.get_dtype()
                widths = BYTES if name.endswith(packed) else floats
                if dtype not in widths:
                    raise ValueError(
                        f"{path}: expected {name} of {', '.join(widths)}, got {dtype} (quantised "
                        "weights, whose scales are not applied here); use the bfloat16 checkpoint that it was made from"
                    )
                if name in self.entries:
                    raise ValueError(
                        f"{path}: expected every array once, got {name} here and in {self.entries[name].file.name}; "
                        "remove the file that does not belong to the model"
                    )
                self.entries[name] = Entry(path, shape, math.prod(shape) * widths[dtype])

    def equal(self, name: str, other: str) -> bool:
        """Return whether two arrays are equal; compare a few rows at a time."""
        shape, like = self.entries[name].shape, self.entries[other].shape
        one, two = (self._files[self.entries[each].file].get_slice(each) for each in (name, other))
        rows = max(1, COMPARED // max(1, math.prod(shape[1:])))
        parts = (slice(start, min(start + rows, shape[0])) for start in range(0, shape[0], rows))
        return shape == like and all(np.array_equal(one[part], two[part]) for part in parts)

    def __getitem__(self, name: str) -> np.ndarray:
        """Return the array of that name."""
        return self._files[self.entries[name].file].get_tensor(name)


def _opened(path: Path) -> Any:
    with reading(path, "a whole safetensors file"):
        return safe_open(path, framework="numpy")


def _files(folder: Path) -> list[Path]:
    index = folder / INDEX
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if index.is_file():
        names = _named(index)
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise ValueError(f"{folder}: expected the files of {INDEX}, got no {', '.join(missing)}; copy them too")
        return [folder / name for name in names]
    if files := sorted(path for path in folder.glob("*.safetensors") if path.name != LENS):
        return files
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    if pickles:
        raise ValueError(
            f"{folder}: expected safetensors, got only {', '.join(pickles)}: reading a pickle can run any "
            "code, so none is read here; if you trust it, convert it (save_pretrained of transformers writes "
            "safetensors)"
        )
    raise ValueError(f"{folder}: expected *.safetensors, got none")


def _named(index: Path) -> list[str]:
    """Return the files that an index names, all of them in its folder."""
    weight_map = read_json(index).get("weight_map")
    names = list(weight_map.values()) if isinstance(weight_map, dict) else []
    if not names or not all(isinstance(name, str) and Path(name).name == name not in ("", "..") for name in names):
        raise ValueError(f"{index}: expected weight_map to name files of its own folder, got {weight_map!r:.200}")
    return sorted(set(names))


def write(folder: Path, arrays: Any, shard_bytes: int = SHARD_BYTES) -> None:
    """Write (name, array) pairs as ``model.safetensors``, or as several files with an index.

    One file at a time is in memory.
    """
    shard: dict[str, np.ndarray] = {}
    written: list[list[str]] = []
    size = total = 0
    for name, array in arrays:
        if shard and size + array.nbytes > shard_bytes:
            written.append(_flush(folder, shard, len(written) + 1))
            shard, size = {}, 0
        shard[name] = np.ascontiguousarray(array)
        size, total = size + array.nbytes, total + array.nbytes
    written.append(_flush(folder, shard, len(written) + 1))
    _name(folder, written, total)


def _flush(folder: Path, shard: dict[str, np.ndarray], number: int) -> list[str]:
    save_file(shard, folder / f"part-{number}.safetensors", metadata={"format": "pt"})
    return list(shard)


def _name(folder: Path, written: list[list[str]], total: int) -> None:
    """Rename the parts to published names; replace files of an earlier call."""
    count = len(written)
    files = [SINGLE] if count == 1 else [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    for old in (folder / SINGLE, folder / INDEX, *folder.glob("model-*-of-*.safetensors")):
        old.unlink(missing_ok=True)
    for number, file in enumerate(files, 1):
        (folder / f"part-{number}.safetensors").replace(folder / file)
    if count > 1:
        where = {name: file for names, file in zip(written, files, strict=True) for name in names}
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n")
