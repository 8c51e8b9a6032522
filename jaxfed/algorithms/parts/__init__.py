"""What algorithms are composed of: gradients, corrections, the local solver, server updates."""

from jaxfed.algorithms.parts import corrections, gradients, optimisers, server_updates
from jaxfed.algorithms.parts._compose import ClientResult, compose, stepping

__all__ = [
    "ClientResult",
    "compose",
    "corrections",
    "gradients",
    "optimisers",
    "server_updates",
    "stepping",
]
