"""Columns of numbers by name that take eight bytes a number, however many rounds a run has."""

import struct
from array import array
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

UNKNOWN = 0x7FF8_0000_0000_07A2
"""Bits that stand for None: no whole number that is kept, and no NaN that arithmetic makes."""

LARGEST = 2**62
"""Whole numbers below it are kept as such, others as float64."""


class Columns(MutableMapping[str, list[Any]]):
    """A table that grows entry by entry; a column reads as a new list of int or float, None where it has no number.

    A column is int64 while all its numbers are whole, float64 from its first other number on.
    """

    def __init__(self, columns: Mapping[str, Sequence[Any]] = MappingProxyType({})) -> None:
        self._columns: dict[str, _Column] = {}
        for name, numbers in columns.items():
            self[name] = numbers

    def __getitem__(self, name: str) -> list[Any]:
        return self._columns[name].numbers()

    def __setitem__(self, name: str, numbers: Sequence[Any]) -> None:
        column = self._columns[name] = _Column()
        for number in numbers:
            column.append(number)

    def __delitem__(self, name: str) -> None:
        del self._columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def __repr__(self) -> str:
        return repr(dict(self))

    @property
    def length(self) -> int:
        """Entries."""
        return max((len(column.bits) for column in self._columns.values()), default=0)

    def append(self, entry: Mapping[str, Any]) -> None:
        """Append to all columns: None where the entry has no number, and before a column's first number."""
        before = self.length
        for name in [*self, *(name for name in entry if name not in self._columns)]:
            if name not in self._columns:
                self[name] = [None] * before
            self._columns[name].append(entry.get(name))

    def last(self) -> dict[str, Any]:
        """The last number of every column."""
        return {name: column.numbers(last=1)[0] for name, column in self._columns.items()}

    def snapshot(self) -> np.ndarray:
        """All columns as one array, int64 [columns, entries], of which `describe` says what the bits mean."""
        return np.array([column.bits for column in self._columns.values()], np.int64).reshape(len(self), self.length)

    def describe(self) -> dict[str, Any]:
        """JSON beside the snapshot."""
        whole = {name: column.whole for name, column in self._columns.items()}
        return {"length": self.length, "whole": whole}

    @staticmethod
    def like(told: Mapping[str, Any]) -> np.ndarray:
        """Shape and dtype of the snapshot that `describe` told of."""
        return np.zeros((len(told["whole"]), told["length"]), np.int64)

    @classmethod
    def restored(cls, told: Mapping[str, Any], snapshot: np.ndarray) -> "Columns":
        """The columns of a snapshot."""
        columns = cls()
        for (name, whole), bits in zip(told["whole"].items(), snapshot, strict=True):
            columns._columns[name] = _Column(array("q", bits.tobytes()), whole)
        return columns


class _Column:
    """Numbers as the bits of an int64 (`whole`) or of a float64."""

    def __init__(self, bits: "array[int] | None" = None, whole: bool = True) -> None:
        self.bits, self.whole = array("q") if bits is None else bits, whole

    def numbers(self, last: int = 0) -> list[Any]:
        """All numbers, or the last few."""
        bits = np.array(self.bits[-last:], np.int64)
        numbers: list[Any] = (bits if self.whole else bits.view(np.float64)).tolist()
        for at in np.flatnonzero(bits == UNKNOWN).tolist():
            numbers[at] = None
        return numbers

    def append(self, number: Any) -> None:
        """Append a number or None."""
        number = None if number is None else np.asarray(number).item()
        if self.whole and not (number is None or (isinstance(number, int) and abs(number) < LARGEST)):
            known, self.whole = self.numbers(), False
            self.bits = array("q", map(self._bits, known))
        self.bits.append(self._bits(number))

    def _bits(self, number: float | None) -> int:
        if number is None:
            return UNKNOWN
        return int(number) if self.whole else struct.unpack("q", struct.pack("d", number))[0]
