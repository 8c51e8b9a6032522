"""The decorator of factories: checks the names of their arguments and records the values."""

import functools
import inspect
from collections.abc import Callable
from types import MappingProxyType
from typing import Any, ParamSpec, get_args

from jaxfed.core.checks import closest, python_number
from jaxfed.core.protocol import FederatedAlgorithm

Arguments = ParamSpec("Arguments")

FACTORIES: dict[str, list[str]] = {}
"""Names of the factories that have an argument, by the argument's name; used by error messages only."""


def algorithm_factory(factory: Callable[Arguments, FederatedAlgorithm]) -> Callable[Arguments, FederatedAlgorithm]:
    """Record the factory's name and its arguments in `FederatedAlgorithm.hyperparameters`.

    Only numbers, text and None are recorded. The factory raises TypeError for an argument that it does not have, with
    the closest name or the algorithms that have it. With a `client_optimiser`, which has its own learning rate,
    `client_learning_rate` is 1 by default.
    """
    parameters = inspect.signature(factory).parameters.values()
    options = [each.annotation for each in parameters if each.kind is inspect.Parameter.VAR_KEYWORD]
    names = [each.name for each in parameters if each.kind is not inspect.Parameter.VAR_KEYWORD]
    names += [name for each in options for typed in get_args(each) for name in typed.__annotations__]
    typed = all(get_args(each) for each in options)
    for name in names:
        FACTORIES.setdefault(name, []).append(factory.__name__)

    @functools.wraps(factory)
    def build(*args: Arguments.args, **kwargs: Arguments.kwargs) -> FederatedAlgorithm:
        if typed and (unknown := [name for name in kwargs if name not in names]):
            raise TypeError(_unknown_argument(factory.__name__, unknown[0], names))
        if kwargs.get("client_optimiser") is not None and "client_learning_rate" in names:
            kwargs.setdefault("client_learning_rate", 1.0)
        values: Any = [python_number(each) for each in args], {name: python_number(kwargs[name]) for name in kwargs}
        bound = inspect.signature(factory).bind(*values[0], **values[1])
        bound.apply_defaults()
        arguments = {"algorithm": factory.__name__, **bound.arguments, **bound.arguments.get("options", {})}
        recorded = {name: each for name, each in arguments.items() if isinstance(each, bool | int | float | str | None)}
        return factory(*values[0], **values[1])._replace(hyperparameters=MappingProxyType(recorded))

    return build


def _unknown_argument(factory: str, name: str, names: list[str]) -> str:
    message = f"an argument of {factory} must be one of {', '.join(map(repr, names))}; got {name!r}."
    if others := [each for each in FACTORIES.get(name, ()) if each != factory]:
        return f"{message} Algorithms that have it: {', '.join(sorted(set(others)))}."
    suggestion = closest(name, names)
    return f"{message} Did you mean {suggestion!r}?" if suggestion else message
