"""Federated algorithms, each a composition of `jaxfed.algorithms.parts`, and a registry of their names."""

from collections.abc import Callable

from jaxfed.algorithms import parts
from jaxfed.algorithms._fedadam import fedadam
from jaxfed.algorithms._fedavg import averaging, fedavg
from jaxfed.algorithms._fedcm import fedcm
from jaxfed.algorithms._feddyn import feddyn
from jaxfed.algorithms._fedgamma import fedgamma
from jaxfed.algorithms._fedprox import fedprox
from jaxfed.algorithms._fedsam import fedsam
from jaxfed.algorithms._fedsmoo import fedsmoo
from jaxfed.algorithms._fedspeed import fedspeed
from jaxfed.algorithms._mofedsam import mofedsam
from jaxfed.algorithms._scaffold import scaffold
from jaxfed.core.checks import check_choice
from jaxfed.core.protocol import FederatedAlgorithm

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
    "averaging",
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
    "parts",
    "registry",
    "scaffold",
]
