"""Federated algorithms, each a composition of `jaxfed.algorithms.parts`, and a registry of their names."""

from collections.abc import Callable

from jaxfed.algorithms import parts
from jaxfed.algorithms._ditto import ditto
from jaxfed.algorithms._fedadam import fedadam
from jaxfed.algorithms._fedavg import averaging, fedavg
from jaxfed.algorithms._fedbn import fedbn
from jaxfed.algorithms._fedcm import fedcm
from jaxfed.algorithms._feddyn import feddyn
from jaxfed.algorithms._fedgamma import fedgamma
from jaxfed.algorithms._fedinit import fedinit
from jaxfed.algorithms._fedlesam import fedlesam
from jaxfed.algorithms._fednova import fednova
from jaxfed.algorithms._fedprox import fedprox
from jaxfed.algorithms._fedrep import fedrep
from jaxfed.algorithms._fedsam import fedsam
from jaxfed.algorithms._fedsmoo import fedsmoo
from jaxfed.algorithms._fedspeed import fedspeed
from jaxfed.algorithms._mofedsam import mofedsam
from jaxfed.algorithms._qfedavg import qfedavg
from jaxfed.algorithms._scaffold import scaffold
from jaxfed.core.checks import check_choice
from jaxfed.core.protocol import FederatedAlgorithm

registry: dict[str, Callable[..., FederatedAlgorithm]] = {
    "fedadam": fedadam,
    "fedavg": fedavg,
    "fedcm": fedcm,
    "feddyn": feddyn,
    "fedgamma": fedgamma,
    "fedinit": fedinit,
    "fedlesam": fedlesam,
    "fednova": fednova,
    "fedprox": fedprox,
    "fedsam": fedsam,
    "fedsmoo": fedsmoo,
    "fedspeed": fedspeed,
    "mofedsam": mofedsam,
    "qfedavg": qfedavg,
    "scaffold": scaffold,
}
"""Factories by name of algorithms that train one model for all: `registry[name](loss_fn, **hyperparameters)`."""

personalised: dict[str, Callable[..., FederatedAlgorithm]] = {"ditto": ditto, "fedbn": fedbn, "fedrep": fedrep}
"""Factories by name of algorithms whose clients keep models or layers of their own, see `jaxfed.personal`."""


def get(name: str) -> Callable[..., FederatedAlgorithm]:
    """Return the factory called `name`; raise ValueError with the nearest name if there is none."""
    factories = registry | personalised
    check_choice("algorithm", name, factories)
    return factories[name]


__all__ = [
    "averaging",
    "ditto",
    "fedadam",
    "fedavg",
    "fedbn",
    "fedcm",
    "feddyn",
    "fedgamma",
    "fedinit",
    "fedlesam",
    "fednova",
    "fedprox",
    "fedrep",
    "fedsam",
    "fedsmoo",
    "fedspeed",
    "get",
    "mofedsam",
    "parts",
    "personalised",
    "qfedavg",
    "registry",
    "scaffold",
]
