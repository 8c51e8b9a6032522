"""Columns of numbers by name, eight bytes a number."""

import struct
from array import array
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

UNKNOWN = 0x7FF8_0000_0000_07A2
"""Bits of None: no integer that is kept as such, and no NaN that arithmetic makes."""

MISSING = struct.unpack("d", struct.pack("q", UNKNOWN))[0]
"""NaN with these bits."""

LARGEST = 2**62
"""Integers below it are kept as such, others as float64."""


class Columns(Mapping[str, list[Any]]):
    """A table that grows entry by entry; a column reads as a new list of int or float, None where it has no number.

    A column is int64 while all its numbers are integers, float64 from its first other number on.
    """

    def __init__(self, columns: Mapping[str, Sequence[Any]] = MappingProxyType({})) -> None:
        self._columns: dict[str, array[Any]] = {}
        for name, numbers in columns.items():
            self[name] = numbers

    def __setitem__(self, name: str, numbers: Sequence[Any]) -> None:
        self._columns[name] = array("q")
        for number in numbers:
            self._append(name, number)

    def __getitem__(self, name: str) -> list[Any]:
        return _numbers(self._columns[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def __repr__(self) -> str:
        return repr(dict(self))

    @property
    def length(self) -> int:
        """Number of entries."""
        return max(map(len, self._columns.values()), default=0)

    def append(self, entry: Mapping[str, Any]) -> None:
        """Append to all columns: None where the entry has no number, and before a column's first number."""
        before = self.length
        for name in dict.fromkeys([*self, *entry]):
            self._columns.setdefault(name, array("q", [UNKNOWN]) * before)
            self._append(name, entry.get(name))

    def _append(self, name: str, number: Any) -> None:
        column, number = self._columns[name], None if number is None else np.asarray(number).item()
        if column.typecode == "q" and not (number is None or (isinstance(number, int) and abs(number) < LARGEST)):
            column = array("d", [MISSING if each == UNKNOWN else each for each in column])
            self._columns[name] = column
        column.append((UNKNOWN if column.typecode == "q" else MISSING) if number is None else number)

    def last(self) -> dict[str, Any]:
        """Return the last number of every column."""
        return {name: _numbers(column[-1:])[0] for name, column in self._columns.items()}

    def snapshot(self) -> np.ndarray:
        """Return all columns as one array, int64 [columns, entries]: the bits of int64 or float64, see `describe`."""
        bits = [np.frombuffer(column, np.int64) for column in self._columns.values()]
        return np.array(bits, np.int64).reshape(len(self), self.length)

    def describe(self) -> dict[str, Any]:
        """Return JSON beside the snapshot: number of entries, and which columns are integers."""
        return {"length": self.length, "whole": {name: each.typecode == "q" for name, each in self._columns.items()}}

    @staticmethod
    def like(facts: Mapping[str, Any]) -> np.ndarray:
        """Return shape and dtype of the snapshot, from what `describe` returned."""
        return np.zeros((len(facts["whole"]), facts["length"]), np.int64)

    @classmethod
    def restored(cls, facts: Mapping[str, Any], snapshot: np.ndarray) -> "Columns":
        """Return the columns of a snapshot."""
        columns = cls()
        for (name, whole), bits in zip(facts["whole"].items(), snapshot, strict=True):
            columns._columns[name] = array("q" if whole else "d", bits.tobytes())
        return columns


def _numbers(column: "array[Any]") -> list[Any]:
    numbers: list[Any] = column.tolist()
    for at in np.flatnonzero(np.frombuffer(column, np.int64) == UNKNOWN).tolist():
        numbers[at] = None
    return numbers
