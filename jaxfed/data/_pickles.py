"""Pickles of plain data, read without trusting them: nothing but the few functions below is ever called.

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
        except Exception as error:  # a damaged pickle raises whatever its bytes happen to say
            raise ValueError(f"{path}: expected a pickle of arrays, bytes, numbers and lists only: {error}") from error


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        known = _ADMITTED.get((module.replace("numpy._core", "numpy.core"), name))
        if known is None:
            raise pickle.UnpicklingError(f"refused to load {module}.{name}")
        return known


class _Dtype:
    """In place of a NumPy dtype: numbers only; of its state only the order of bytes counts."""

    def __init__(self, kind: str | bytes, *_: Any) -> None:
        self.dtype = np.dtype(kind.decode() if isinstance(kind, bytes) else kind)
        if self.dtype.kind not in "biuf":
            raise pickle.UnpicklingError(f"refused an array of {self.dtype}")

    def __setstate__(self, state: tuple) -> None:
        if state[1] in (">", b">"):
            self.dtype = self.dtype.newbyteorder(">")


class _Array:
    """In place of an array, until everything is read."""

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


def _plain(found: Any) -> Any:
    if isinstance(found, _Array):
        return found.array
    if isinstance(found, dict):
        return {name: _plain(value) for name, value in found.items()}
    return [_plain(each) for each in found] if isinstance(found, list) else found


_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): _filled,
    ("numpy", "ndarray"): "ndarray",  # only ever an argument
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _bytes,
}
