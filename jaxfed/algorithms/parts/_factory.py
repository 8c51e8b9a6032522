"""The decorator of factories: checks the names of their arguments and records the values."""

import functools
import inspect
from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Any, ParamSpec, get_args, overload

from jaxfed.core.checks import closest, equals, python_number
from jaxfed.core.protocol import FederatedAlgorithm

Arguments = ParamSpec("Arguments")

SIMPLE = (bool, int, float, str, type(None))

FACTORIES: dict[str, list[str]] = {}
"""Names of the factories that have an argument, by the argument's name; used by error messages only."""


Factory = Callable[Arguments, FederatedAlgorithm]


@overload
def algorithm_factory(factory: Factory[Arguments]) -> Factory[Arguments]: ...
@overload
def algorithm_factory(*, since_0_1: Sequence[str]) -> Callable[[Factory[Arguments]], Factory[Arguments]]: ...
def algorithm_factory(factory: Factory[Arguments] | None = None, *, since_0_1: Sequence[str] = ()) -> Any:
    """Record the factory's name and its arguments in `FederatedAlgorithm.hyperparameters`.

    Only numbers, text and None are recorded. The factory raises TypeError for an argument that it does not have, with
    the closest name or the algorithms that have it. With a `client_optimiser`, which has its own learning rate,
    `client_learning_rate` is 1 by default.

    Args:
        factory: the function that is decorated.
        since_0_1: arguments that the factory did not have in release 0.1: not recorded at their default, so that
            checkpoints of that release are continued.
    """
    if factory is None:
        return functools.partial(_recording, since_0_1=since_0_1)
    return _recording(factory, since_0_1)


def _recording(factory: Factory[Arguments], since_0_1: Sequence[str]) -> Factory[Arguments]:
    parameters = inspect.signature(factory).parameters.values()
    options = [each.annotation for each in parameters if each.kind is inspect.Parameter.VAR_KEYWORD]
    names = [each.name for each in parameters if each.kind is not inspect.Parameter.VAR_KEYWORD]
    defaults = {each.name: each.default for each in parameters}
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
        newer = {name for name in since_0_1 if equals(arguments[name], defaults[name])}
        recorded = {name: each for name, each in arguments.items() if isinstance(each, SIMPLE) and name not in newer}
        return factory(*values[0], **values[1])._replace(hyperparameters=MappingProxyType(recorded))

    return build


def _unknown_argument(factory: str, name: str, names: list[str]) -> str:
    message = f"an argument of {factory} must be one of {', '.join(map(repr, names))}; got {name!r}."
    if others := [each for each in FACTORIES.get(name, ()) if each != factory]:
        return f"{message} Algorithms that have it: {', '.join(sorted(set(others)))}."
    suggestion = closest(name, names)
    return f"{message} Did you mean {suggestion!r}?" if suggestion else message
