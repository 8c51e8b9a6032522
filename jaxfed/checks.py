"""Checks of hyperparameters, used by the factories: what was expected, what came, and the remedy."""

import difflib
import math
from collections.abc import Iterable


def check_range(
    name: str, value: float, *, least: float = -math.inf, above: float = -math.inf, most: float = math.inf
) -> None:
    """Raise ValueError unless `value` is a finite number with least ≤ value ≤ most and value > above."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a Python number known when the algorithm is built, got {value!r}")
    if math.isfinite(value) and least <= value <= most and value > above:
        return
    bounds = [f"≥ {least:g}"] * (least > -math.inf) + [f"> {above:g}"] * (above > -math.inf)
    bounds += [f"≤ {most:g}"] * (most < math.inf)
    raise ValueError(f"{name} must be a finite number {' and '.join(bounds)}, got {value!r}")


def check_choice(name: str, value: object, choices: Iterable[object]) -> None:
    """Raise ValueError, with the nearest choice, unless `value` is one of `choices`."""
    choices = list(choices)
    if value in choices:
        return
    near = difflib.get_close_matches(str(value), [str(choice) for choice in choices], n=1, cutoff=0.0)
    listed = ", ".join(repr(choice) for choice in choices)
    raise ValueError(f"{name} must be one of {listed}; got {value!r}. Did you mean {near[0]!r}?")
