"""Looking into compiled programs: every equation of a jaxpr and of those inside it."""

from collections.abc import Iterator

import jax
from jax.extend.core import Jaxpr, JaxprEqn, jaxprs_in_params


def equations(jaxpr: Jaxpr) -> Iterator[JaxprEqn]:
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner)


def traced(function, *arguments) -> list[JaxprEqn]:
    return list(equations(jax.make_jaxpr(function)(*arguments).jaxpr))
