"""Parts that algorithms are composed of: gradients, corrections, the local solver, server updates, and `compose`."""

from jaxfed.algorithms.parts import corrections, gradients, optimisers, server_updates
from jaxfed.algorithms.parts._compose import ClientResult, compose, finish_round, make_step, received_as
from jaxfed.algorithms.parts._factory import algorithm_factory
from jaxfed.algorithms.parts._local import (
    ClientContext,
    LocalOptions,
    LocalResult,
    LocalRule,
    Solver,
    mean_direction,
)

__all__ = [
    "ClientContext",
    "ClientResult",
    "LocalOptions",
    "LocalResult",
    "LocalRule",
    "Solver",
    "algorithm_factory",
    "compose",
    "corrections",
    "finish_round",
    "gradients",
    "make_step",
    "mean_direction",
    "optimisers",
    "received_as",
    "server_updates",
]
