"""What an evaluation is called with: the parameters, the model state, the whole server, the rows of the clients."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxfed.core.protocol import ClientRow, Server

Evaluate = Callable[..., Mapping[str, Any]]
"""A function that returns named numbers, such as {"accuracy": ...}; its arguments without a default say what it gets.

`evaluate(params)`; `evaluate(params, model_state)`; `evaluate(server)`; `evaluate(server, rows)`, where
`rows(ids) -> ClientRow` returns the rows, leaves [C, ...], of clients `ids`, integers [C]. One argument that is not
called "server" gets the parameters.
"""

RowsOf = Callable[[np.ndarray], ClientRow]
"""`rows(ids) -> ClientRow`, leaves [C, ...]; an id of −1 gets any row."""

Form = Callable[[Server, RowsOf | None], tuple[Any, ...]]


def with_rows(server: Server, rows: RowsOf | None) -> tuple[Any, ...]:
    """Return (server, rows); raise ValueError where there are no rows."""
    if rows is None:
        raise ValueError(
            "expected the rows of the clients for evaluate(server, rows), got a run whose clients keep their rows "
            "themselves; evaluate(server) gets the server alone"
        )
    return server, rows


FORMS: dict[tuple[str, ...], Form] = {
    ("params",): lambda server, rows: (server.params,),
    ("params", "model_state"): lambda server, rows: (server.params, server.model_state),
    ("server",): lambda server, rows: (server,),
    ("server", "rows"): with_rows,
}
"""Arguments of an evaluation by their names."""


def form_of(evaluate: Evaluate) -> Form:
    """Return how `evaluate` is called, by its arguments without a default.

    Raises:
        TypeError: no function, or other arguments than `Evaluate` has.
    """
    if not callable(evaluate):
        raise TypeError(f"evaluate: expected a function such as evaluate(params) -> numbers, got {evaluate!r}")
    names = _required(evaluate)
    if names in FORMS:
        return FORMS[names]
    if len(names) == 1:
        return FORMS["params",]
    if len(names) == 2 and names[0] != "server" and names[1] != "rows":
        return FORMS["params", "model_state"]
    listed = ", ".join(f"evaluate({', '.join(form)})" for form in FORMS)
    raise TypeError(f"evaluate: expected one of {listed}, got the arguments ({', '.join(names)})")


def _required(function: Callable[..., Any]) -> tuple[str, ...]:
    """Return the names of the positional arguments without a default; ("params",) where that is not known."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a builtin
        return ("params",)
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    required = [each.name for each in parameters if each.kind in positional and each.default is each.empty]
    every = any(each.kind is inspect.Parameter.VAR_POSITIONAL for each in parameters)
    return tuple(required) or (("params",) if every or len(parameters) else ())
