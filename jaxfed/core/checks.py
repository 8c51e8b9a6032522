"""Checks of hyperparameters; every message has expected, got and remedy."""

import dataclasses
import difflib
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax
import numpy as np

_TRACED: ContextVar[bool] = ContextVar("traced hyperparameters are accepted", default=False)


@contextmanager
def traced_numbers() -> Iterator[None]:
    """Let `check_range` accept traced numbers, whose values were checked before; see `jaxfed.sweep`."""
    token = _TRACED.set(True)
    try:
        yield
    finally:
        _TRACED.reset(token)


def equals(value: Any, number: float) -> bool:
    """Return whether a hyperparameter is this number, so that a term may be left out; a traced one never is."""
    return not isinstance(value, jax.core.Tracer) and bool(value == number)


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

    Python and NumPy scalars are accepted, with `whole` only integers; anything else raises TypeError.
    """
    if isinstance(value, jax.core.Tracer) and _TRACED.get() and not whole:
        return
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{name} must be a Python or NumPy number, not a traced array, got {value!r}")
    if whole and not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    value = python_number(value)
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
"""Names of hyperparameters in papers and other libraries, and the names here; the first that exists is suggested."""


def closest(value: object, choices: Iterable[object]) -> str | None:
    """Return the choice that `value` probably means, by alias or by spelling; None if there is none."""
    names = [str(choice) for choice in choices]
    aliases = [name for name in ALIASES.get(str(value), ()) if name in names]
    return next(iter(aliases or difflib.get_close_matches(str(value), names, n=1)), None)


def python_number(value: Any) -> Any:
    """Return a NumPy scalar as a Python number, anything else as it is."""
    return value.item() if isinstance(value, np.generic) else value


def python_fields(static: Any) -> None:
    """Convert NumPy scalars in a frozen dataclass to Python numbers, so that equal values have equal repr and hash."""
    for field in dataclasses.fields(static):
        object.__setattr__(static, field.name, python_number(getattr(static, field.name)))


def check_choice(name: str, value: object, choices: Iterable[object]) -> None:
    """Raise ValueError, with the closest choice if there is one, unless `value` is one of `choices`."""
    choices = list(choices)
    if value in choices:
        return
    suggestion = closest(value, choices)
    listed = ", ".join(repr(choice) for choice in choices)
    raise ValueError(
        f"{name} must be one of {listed}; got {value!r}." + (f" Did you mean {suggestion!r}?" if suggestion else "")
    )
