"""Datasets of other libraries as named arrays: mappings, tables with `column_names`, data frames, rows."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from jaxfed.core.checks import check_choice
from jaxfed.data import _casts as casts


class ColumnTable(Protocol):
    """A table by columns, such as Hugging Face's `datasets.Dataset`."""

    @property
    def column_names(self) -> Sequence[str]:
        """Names of the columns."""
        ...

    def __getitem__(self, name: str, /) -> Any:
        """Return one column, a sequence of n values."""
        ...


Rows: TypeAlias = Sequence[Mapping[str, Any]]
"""Samples one by one, each with its named values."""


def from_dataset(
    dataset: Mapping[str, ArrayLike] | ColumnTable | Rows, columns: Sequence[str] | Mapping[str, str] | None = None
) -> dict[str, np.ndarray]:
    """Read a dataset into named NumPy arrays [n, ...]; pictures (PIL's) become arrays [n, H, W, ...].

    Args:
        dataset: named columns, a table with `column_names`, a data frame (pandas, polars), or a sequence of rows.
        columns: the columns to read, or how to name them: {"image": "x", "label": "y"}; by default all, as they are.

    Raises:
        ValueError: no such column (nearest name suggested), or a column of text, of missing values or of samples with
            different shapes, or two columns of one name; the message names it.
    """
    names = _names(dataset)
    wanted = dict.fromkeys(names) if columns is None else dict.fromkeys(columns)
    for name in wanted:
        check_choice("columns", name, names)
    called = columns if isinstance(columns, Mapping) else {name: name for name in wanted}
    if len(set(called.values())) < len(called):
        raise ValueError(f"expected different names for the columns, got {dict(called)}")
    return {called[name]: casts.numbers(_column(dataset, name), f"column {name!r}") for name in wanted}


def _names(dataset: Any) -> list[str]:
    if isinstance(dataset, Mapping):
        return list(dataset)
    if is_table(dataset):
        names = list(dataset.column_names if hasattr(dataset, "column_names") else dataset.columns)
        if invalid := [name for name in names if not isinstance(name, str) or names.count(name) > 1]:
            raise ValueError(f"expected a unique name for every column, got {invalid}; rename them")
        return names
    if not len(dataset) or not isinstance(dataset[0], Mapping):
        kind = type(dataset[0]).__name__ if len(dataset) else "nothing"
        raise ValueError(f"expected named columns or a sequence of rows with named values, got {kind}")
    return list(dataset[0])


def is_table(dataset: Any) -> bool:
    """Return whether it is a table: one with `column_names`, or a data frame, whose names are its `columns`."""
    return hasattr(dataset, "column_names") or (hasattr(dataset, "columns") and not callable(dataset.columns))


def _column(dataset: Any, name: str) -> Any:
    if isinstance(dataset, Mapping) or is_table(dataset):
        return dataset[name]
    return list(_values(dataset, name))


def _values(rows: Rows, name: str) -> Iterator[Any]:
    for number, row in enumerate(rows):
        if name not in row:
            raise ValueError(f"row {number}: expected a value of {name!r} as row 0 has, got {sorted(row)}")
        yield row[name]
