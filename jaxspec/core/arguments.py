"""Checks of single arguments; errors name what was expected, what was passed, and the remedy."""

from numbers import Integral
from typing import Any

import numpy as np


def whole(name: str, value: Any, low: int = 0, high: int = 2**31 - 1, remedy: str = "") -> int:
    """Convert an argument to ``int``: integers of Python, NumPy and jax, and floats without a fraction.

    Raises:
        ValueError: a bool, a number with a fraction, not a number, or a number outside [low, high].
    """
    if getattr(value, "shape", None) == ():
        value = np.asarray(value).item()
    is_whole = isinstance(value, Integral | float) and not isinstance(value, bool) and value % 1 == 0
    if not is_whole or not low <= value <= high:
        message = f"expected {low} <= {name} <= {high}, a whole number, got {value!r:.80}"
        raise ValueError(f"{message}; {remedy}" if remedy else message)
    return int(value)


def whole_numbers(name: str, values: Any) -> np.ndarray:
    """Convert integers to an array of any shape, in a type that holds them exactly; do not check their range.

    Raises:
        ValueError: bools, numbers with a fraction, or not numbers; names the first.
    """
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ValueError(f"expected {name} to be whole numbers, got {values!r:.80} ({error})") from error
    if array.dtype.kind in "iu" or not array.size:
        return array
    for index, value in np.ndenumerate(array):
        is_number = isinstance(value, Integral | float | np.floating) and not isinstance(value, bool)
        if not is_number or value % 1 != 0:
            value = value.item() if isinstance(value, np.generic) else value
            where = f" at position {', '.join(map(str, index))}" if index else ""
            raise ValueError(f"expected {name} to be whole numbers, got {value!r:.80}{where}")
    return array
