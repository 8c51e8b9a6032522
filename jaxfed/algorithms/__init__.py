"""The algorithms, each a composition of the same parts, and the registry that resolves their names."""

from collections.abc import Callable

from jaxfed.algorithm import FederatedAlgorithm
from jaxfed.algorithms.fedavg import fedavg
from jaxfed.algorithms.fedprox import fedprox
from jaxfed.algorithms.fedspeed import fedspeed
from jaxfed.checks import check_choice

registry: dict[str, Callable[..., FederatedAlgorithm]] = {
    "fedavg": fedavg,
    "fedprox": fedprox,
    "fedspeed": fedspeed,
}
"""Factories by name: `registry[name](loss_fn, **hyperparameters)`."""


def get(name: str) -> Callable[..., FederatedAlgorithm]:
    """Return the factory called `name`; raise ValueError with the nearest name if there is none."""
    check_choice("algorithm", name, registry)
    return registry[name]


__all__ = ["fedavg", "fedprox", "fedspeed", "get", "registry"]
