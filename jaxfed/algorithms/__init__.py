"""The algorithms, each a composition of the same parts, and the registry that resolves their names."""

from collections.abc import Callable

from jaxfed.algorithm import FederatedAlgorithm
from jaxfed.algorithms.fedadam import fedadam
from jaxfed.algorithms.fedavg import fedavg
from jaxfed.algorithms.fedcm import fedcm
from jaxfed.algorithms.feddyn import feddyn
from jaxfed.algorithms.fedgamma import fedgamma
from jaxfed.algorithms.fedprox import fedprox
from jaxfed.algorithms.fedsam import fedsam
from jaxfed.algorithms.fedsmoo import fedsmoo
from jaxfed.algorithms.fedspeed import fedspeed
from jaxfed.algorithms.mofedsam import mofedsam
from jaxfed.algorithms.scaffold import scaffold
from jaxfed.checks import check_choice

registry: dict[str, Callable[..., FederatedAlgorithm]] = {
    "fedadam": fedadam,
    "fedavg": fedavg,
    "fedcm": fedcm,
    "feddyn": feddyn,
    "fedgamma": fedgamma,
    "fedprox": fedprox,
    "fedsam": fedsam,
    "fedsmoo": fedsmoo,
    "fedspeed": fedspeed,
    "mofedsam": mofedsam,
    "scaffold": scaffold,
}
"""Factories by name: `registry[name](loss_fn, **hyperparameters)`."""


def get(name: str) -> Callable[..., FederatedAlgorithm]:
    """Return the factory called `name`; raise ValueError with the nearest name if there is none."""
    check_choice("algorithm", name, registry)
    return registry[name]


__all__ = [
    "fedadam",
    "fedavg",
    "fedcm",
    "feddyn",
    "fedgamma",
    "fedprox",
    "fedsam",
    "fedsmoo",
    "fedspeed",
    "get",
    "mofedsam",
    "registry",
    "scaffold",
]
