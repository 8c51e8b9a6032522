"""GGUF files: what they say about a model, and their arrays, dequantised one at a time under published names."""

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from jaxspec.loading._weights import Entry

#: Shape of an array.
Shape = tuple[int, ...]


class Undo(NamedTuple):
    """A step from an array as llama.cpp keeps it to the published one, and what it does to the shape."""

    array: Callable[[np.ndarray], np.ndarray] = lambda array: array
    shape: Callable[[Shape], Shape] = lambda shape: shape


class Stored(NamedTuple):
    """An array of the file, or that of one expert in it, and what llama.cpp's converter did to it, undone."""

    tensor: Any
    undo: Undo
    expert: int | None


class GgufFile:
    """A file's metadata and arrays; the arrays are mapped into memory, not read.

    Args:
        path: of the file.

    Raises:
        ValueError: not a whole GGUF file, one part of several, or arrays of a kind that the gguf library cannot
            dequantise.
        ModuleNotFoundError: the gguf library is not installed.
    """

    def __init__(self, path: str | Path):
        self.path, gguf = Path(path), library()
        try:
            reader = gguf.GGUFReader(self.path)
            self.metadata: dict[str, Any] = {name: field.contents() for name, field in reader.fields.items()}
            self.tensors: dict[str, Any] = {tensor.name: tensor for tensor in reader.tensors}
        except OSError:
            raise
        except Exception as error:
            got = f"{type(error).__name__}: {error}"
            raise ValueError(f"{path}: expected a whole GGUF file, got {got}; copy it again") from error
        if (parts := self.metadata.get("split.count", 0)) > 1:
            raise ValueError(
                f"{path}: expected a whole model, got one of {parts} files; join: llama-gguf-split --merge"
            )
        for name, tensor in self.tensors.items():
            if not _readable(gguf, tensor.tensor_type):
                raise ValueError(
                    f"{path}: expected blocks that the gguf library dequantises, got {tensor.tensor_type.name} of "
                    f"{name}; take a file with other quantisation, such as Q8_0 or Q4_K_M"
                )

    @property
    def architecture(self) -> str:
        """Its name, as llama.cpp spells it."""
        return str(self.metadata.get("general.architecture"))

    def get(self, name: str, default: Any = None) -> Any:
        """Return a value of the architecture: ``name`` without the architecture's own."""
        return self.metadata.get(f"{self.architecture}.{name}", default)


class GgufWeights:
    """A file's arrays by published name, for the loader of published checkpoints.

    Args:
        file: the file.
        names: name in the file → published name, with a ``{}`` for the number of an expert where one array holds
            those of all; arrays without one keep their own, so that they are refused.
        undo: published name → the step that makes the published array.
        ignored: names in the file that are left out.
    """

    def __init__(
        self, file: GgufFile, names: Mapping[str, str], undo: Callable[[str], Undo], ignored: Iterable[str] = ()
    ):
        kept = {names.get(name, name): tensor for name, tensor in file.tensors.items() if name not in set(ignored)}
        self._stored: dict[str, Stored] = {}
        for name, tensor in kept.items():
            count = _shape(tensor)[0] if "{}" in name else None
            for expert in (None,) if count is None else range(count):
                own = name.format(expert)
                self._stored[own] = Stored(tensor, undo(own), expert)
        self.entries = {name: _entry(file.path, stored) for name, stored in self._stored.items()}

    def equal(self, name: str, other: str) -> bool:
        """Return whether two arrays are equal."""
        return np.array_equal(self[name], self[other])

    def __getitem__(self, name: str) -> np.ndarray:
        """Return the array of that name, as float32 if it is quantised."""
        tensor, undo, expert = self._stored[name]
        return undo.array(
            library().dequantize(tensor.data if expert is None else tensor.data[expert], tensor.tensor_type)
        )


def library() -> ModuleType:
    """Return the gguf library.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    try:
        import gguf
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("GGUF files need the gguf library: pip install 'jaxfed-jaxspec[gguf]'") from error
    return gguf


def _readable(gguf: ModuleType, kind: Any) -> bool:
    _, block = gguf.GGML_QUANT_SIZES[kind]
    try:
        gguf.dequantize(np.zeros((1, block), np.uint8), kind)
    except NotImplementedError:
        return False
    return True


def _entry(path: Path, stored: Stored) -> Entry:
    shape = _shape(stored.tensor)
    shape = stored.undo.shape(shape if stored.expert is None else shape[1:])
    return Entry(path, shape, 4 * math.prod(shape))


def _shape(tensor: Any) -> Shape:
    return tuple(int(size) for size in reversed(tensor.shape))  # the file counts from the innermost
