"""Conversion of labels and samples to arrays; raises ValueError where a value would be lost or changed."""

from typing import Any

import jax
import numpy as np

REMEDY = "drop or fill in these samples first"


def class_labels(labels: Any, what: str = "labels") -> np.ndarray:
    """Return the class of every sample [n]: integers or text; whole floating-point numbers become integers.

    Raises:
        ValueError: no array [n] with n ≥ 1, a label that is missing (None, NaN, masked), fractions, or labels of
            several kinds; the message names the first.
    """
    array = _array(labels, what)
    if array.ndim != 1 or not len(array):
        shape = list(array.shape)
        raise ValueError(f"{what}: expected one label for every sample, [n] with n ≥ 1, got an array {shape}")
    if array.dtype.kind == "O" or (array.dtype.kind in "US" and not isinstance(labels, np.ndarray)):
        array = _of_one_kind(list(labels), what)
    if array.dtype.kind == "f":
        array = _whole(array, what)
    if array.dtype.kind not in "biuUS":
        raise ValueError(f"{what}: expected integers or text, got {array.dtype}; number the classes first")
    return array


def integer_labels(labels: Any, what: str = "labels") -> np.ndarray:
    """Convert labels of any shape to int32; raise ValueError for text, missing or fractional values and overflow."""
    array = _array(labels, what)
    if array.dtype.kind == "O":
        array = _of_one_kind(list(array.ravel()), what).reshape(array.shape)
    array = _whole(array, what) if array.dtype.kind == "f" else array
    if array.dtype.kind not in "biu":
        raise ValueError(f"{what}: expected integers, got {array.dtype}; number the classes from 0 first")
    return _fitting(array, np.dtype(np.int32), what).astype(np.int32)


def resident(array: Any, what: str) -> Any:
    """Convert numbers to the dtype that jax has for them, on the host; an array of jax is returned unchanged.

    Without jax_enable_x64 that is 32 bits at most: fractions are rounded, integers and large numbers must fit.

    Raises:
        ValueError: text, objects, dates, masked entries, or numbers that would become others or infinite.
    """
    if isinstance(array, jax.Array):
        return array
    array = numbers(array, what)
    kept = jax.dtypes.canonicalize_dtype(array.dtype)
    return _fitting(array, kept, what).astype(kept, copy=False)


def numbers(values: Any, what: str) -> np.ndarray:
    """Convert to an array of numbers or booleans; raise ValueError for text, objects, missing values and dates."""
    array = _array(values, what)
    if array.dtype.kind in "biufc" or (array.dtype.kind == "V" and array.dtype.type is not np.void):  # as bfloat16 is
        return array
    raise ValueError(f"{what}: expected numbers, got {array.dtype}; turn it into numbers first, or leave it out")


def _array(values: Any, what: str) -> np.ndarray:
    """Convert to an array; raise ValueError for samples of several shapes and masked entries."""
    if np.ma.isMaskedArray(values) and np.ma.getmaskarray(values).any():
        raise ValueError(f"{what}: expected no missing value, got masked entries; {REMEDY}")
    try:
        single = hasattr(values, "__array__") or not hasattr(values, "__iter__")
        return np.asarray(values if single else list(values))
    except ValueError as error:
        raise ValueError(f"{what}: expected samples of one shape; pad or crop them first ({error})") from error
    except TypeError as error:  # PRNG keys
        raise ValueError(f"{what}: expected numbers or text, got {getattr(values, 'dtype', values)}") from error


def _of_one_kind(values: list[Any], what: str) -> np.ndarray:
    """Return the objects if all are text, or all are numbers."""
    if any(all(isinstance(each, kind) for each in values) for kind in (str, bytes, bool | np.bool_)):
        return np.array(values)
    if all(isinstance(each, int | float | np.number) and not isinstance(each, bool) for each in values):
        return np.array(values)
    kinds = sorted({type(each).__name__ for each in values})
    at = next((at for at, each in enumerate(values) if _missing(each)), None)
    if at is not None:
        raise ValueError(f"{what}: expected a label for every sample, got {values[at]!r} for sample {at}; {REMEDY}")
    raise ValueError(f"{what}: expected labels of one kind, got {', '.join(kinds)}; make them all numbers, or text")


def _missing(value: Any) -> bool:
    """Return whether a value is None, NaN, or a value that cannot be compared, such as pandas' NA."""
    try:
        return value is None or bool(value != value)
    except (TypeError, ValueError):
        return True


def _whole(array: np.ndarray, what: str) -> np.ndarray:
    """Return whole floating-point numbers as integers."""
    invalid = ~np.isfinite(array) | (array != np.round(array)) | (np.abs(array) > 2.0**53)
    if invalid.any():
        at = int(invalid.ravel().argmax())
        raise ValueError(
            f"{what}: expected whole numbers, got {array.ravel()[at].item()!r} for sample {at}; labels are classes: "
            + (REMEDY if not np.isfinite(array.ravel()[at]) else "number them, or keep fractions as another array")
        )
    return array.astype(np.int64)


def _fitting(array: np.ndarray, kept: np.dtype, what: str) -> np.ndarray:
    """Return the array, if `kept` can hold all its numbers."""
    if kept == array.dtype or not array.size:
        return array
    if array.dtype.kind in "iu":
        limits, wrong = np.iinfo(kept), [each for each in (array.min(), array.max())]
        wrong = [each for each in wrong if not limits.min <= int(each) <= limits.max]
        remedy = "number them from 0, or set jax_enable_x64"
    elif array.dtype.kind in "fc":
        with np.errstate(over="ignore"):
            lost = np.isfinite(array) & ~np.isfinite(array.astype(kept))
        wrong, remedy = list(array[lost][:1]), "scale them, or set jax_enable_x64"
    else:
        return array
    if wrong:
        raise ValueError(f"{what}: expected numbers that {kept} holds, got {wrong[0]} of {array.dtype}; {remedy}")
    return array
