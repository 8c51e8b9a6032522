"""Pickles of plain data, read without trusting them: only the functions below are ever called.

Not even NumPy's own unpickling runs: arrays and their types are placeholders until their parts have been checked.
"""

import pickle
from pathlib import Path
from typing import Any

import numpy as np


def read_pickle(path: str | Path) -> Any:
    """Read arrays, bytes, text, numbers, lists, tuples and dictionaries; what Python 2 called a string comes as bytes.

    Raises:
        FileNotFoundError: no such file.
        ValueError: anything else in the pickle, named, or a damaged file.
    """
    with Path(path).open("rb") as file:
        try:
            return _plain(_Unpickler(file, encoding="bytes").load())
        except Exception as error:  # a damaged pickle may raise any exception
            raise ValueError(f"{path}: expected a pickle of arrays, bytes, numbers and lists only: {error}") from error


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        replacement = _ADMITTED.get((module.replace("numpy._core", "numpy.core"), name))
        if replacement is None:
            raise pickle.UnpicklingError(f"refused to load {module}.{name}")
        return replacement


class _Dtype:
    """Replaces a NumPy dtype: numbers only; of its state only the byte order is used."""

    def __init__(self, kind: str | bytes, *_: Any) -> None:
        self.dtype = np.dtype(kind.decode() if isinstance(kind, bytes) else kind)
        if self.dtype.kind not in "biuf":
            raise pickle.UnpicklingError(f"refused an array of {self.dtype}")

    def __setstate__(self, state: tuple) -> None:
        if state[1] in (">", b">"):
            self.dtype = self.dtype.newbyteorder(">")


class _Array:
    """Replaces an array, until everything is read."""

    def __init__(self, *_: Any) -> None:
        self.array = np.zeros(0)

    def __setstate__(self, state: tuple) -> None:
        _, shape, kind, is_fortran, raw = state
        self.array = _filled(raw, kind, shape, "F" if is_fortran else "C")


def _filled(raw: Any, kind: _Dtype, shape: tuple[int, ...], order: Any) -> np.ndarray:
    raw = raw.encode("latin1") if isinstance(raw, str) else raw
    return np.frombuffer(raw, kind.dtype).reshape(shape, order=order).astype(kind.dtype.newbyteorder("="))


def _scalar(kind: _Dtype, raw: bytes | str) -> Any:
    return _filled(raw, kind, (1,), "C")[0]


def _bytes(text: str | bytes, encoding: str | bytes) -> bytes:
    if encoding not in ("latin1", b"latin1"):
        raise pickle.UnpicklingError(f"refused to encode as {encoding!r}")
    return text.encode("latin1") if isinstance(text, str) else text


def _plain(value: Any) -> Any:
    if isinstance(value, _Array):
        return value.array
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return type(value)(_plain(each) for each in value) if isinstance(value, list | tuple) else value


_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): _filled,
    ("numpy", "ndarray"): "ndarray",  # only ever an argument
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _bytes,
}
