"""Checks of hyperparameters, used by the factories: what was expected, what came, and the remedy."""

import dataclasses
import difflib
import math
from collections.abc import Iterable
from typing import Any

import numpy as np


def check_range(
    name: str,
    value: float | np.integer | np.floating,
    *,
    least: float = -math.inf,
    above: float = -math.inf,
    most: float = math.inf,
    whole: bool = False,
) -> None:
    """Raise ValueError unless `value` is a finite number with least ≤ value ≤ most and value > above.

    Numbers are Python's and NumPy's scalars; with `whole` integers only. Raises TypeError for anything else.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{name} must be a Python or NumPy number known when the algorithm is built, got {value!r}")
    if whole and not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    value = plain(value)
    if math.isfinite(value) and least <= value <= most and value > above:
        return
    bounds = [f"≥ {least:g}"] * (least > -math.inf) + [f"> {above:g}"] * (above > -math.inf)
    bounds += [f"≤ {most:g}"] * (most < math.inf)
    raise ValueError(f"{name} must be a finite number {' and '.join(bounds)}, got {value!r}")


ALIASES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        ("lr", "eta", "eta_l", "lr_l", "learning_rate", "local_lr", "local_learning_rate", "client_lr", "step_size"),
        ("client_learning_rate",),
    ),
    **dict.fromkeys(("eta_g", "lr_g", "global_lr", "global_learning_rate", "server_lr"), ("server_learning_rate",)),
    **dict.fromkeys(("mu", "lam", "lamb", "lambd", "lambda", "lambda_", "proximal_mu"), ("prox_weight",)),
    **dict.fromkeys(("rho", "radius", "sam_rho"), ("ascent_radius",)),
    **dict.fromkeys(("decay", "gamma", "lr_decay"), ("learning_rate_decay",)),
    **dict.fromkeys(("clip", "grad_clip", "max_norm", "max_grad_norm"), ("clip_norm",)),
    **dict.fromkeys(("optimizer", "optimiser", "client_opt", "local_optimizer"), ("client_optimiser",)),
    **dict.fromkeys(("server_opt", "global_optimizer", "outer_optimizer"), ("server_optimiser",)),
    "alpha": ("merge_weight", "momentum_weight", "prox_weight"),
    "beta": ("relaxation",),
    "beta1": ("b1",),
    "beta2": ("b2",),
    "betas": ("b1",),
    "epsilon": ("eps",),
    "tau": ("eps",),
    "momentum": ("momentum_weight", "client_optimiser"),
    "wd": ("weight_decay",),
}
"""Usual names of hyperparameters in papers and other libraries, and ours, the first that exists."""


def nearest(value: object, choices: Iterable[object]) -> str | None:
    """Return the choice that `value` most likely stands for, by alias or by spelling; None if there is none."""
    names = [str(choice) for choice in choices]
    aliased = [name for name in ALIASES.get(str(value), ()) if name in names]
    return next(iter(aliased or difflib.get_close_matches(str(value), names, n=1)), None)


def plain(value: Any) -> Any:
    """The Python number that a NumPy scalar stands for; anything else as it is."""
    return value.item() if isinstance(value, np.generic) else value


def plain_fields(static: Any) -> None:
    """Turn NumPy scalars in the fields of a frozen dataclass into Python numbers: one repr and hash for one value."""
    for field in dataclasses.fields(static):
        object.__setattr__(static, field.name, plain(getattr(static, field.name)))


def check_choice(name: str, value: object, choices: Iterable[object]) -> None:
    """Raise ValueError, with the nearest choice if one is near, unless `value` is one of `choices`."""
    choices = list(choices)
    if value in choices:
        return
    near = nearest(value, choices)
    listed = ", ".join(repr(choice) for choice in choices)
    raise ValueError(f"{name} must be one of {listed}; got {value!r}." + (f" Did you mean {near!r}?" if near else ""))
