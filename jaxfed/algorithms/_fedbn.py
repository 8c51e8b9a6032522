"""FedBN: FedAvg whose clients keep their normalisation layers."""

import re
from collections.abc import Callable
from typing import Unpack

import optax

from jaxfed.algorithms._fedrep import personal_layers
from jaxfed.algorithms.parts import LocalOptions, LocalRule, Solver, algorithm_factory, gradients
from jaxfed.core import AnyLossFn, FederatedAlgorithm


def is_normalisation(path: str) -> bool:
    """Return whether a leaf belongs to a normalisation layer by its name: "BatchNorm_0/scale", "bn1/bias", "norm"."""
    return re.search(r"norm|(^|[/_])bn(\d|[/_]|$)", path.lower()) is not None


@algorithm_factory
def fedbn(
    loss_fn: AnyLossFn,
    *,
    client_learning_rate: float | optax.Schedule = 0.1,
    server_learning_rate: float = 1.0,
    personal: Callable[[str], bool] = is_normalisation,
    **options: Unpack[LocalOptions],
) -> FederatedAlgorithm:
    """Build FedBN: FedAvg of all leaves but those of normalisation layers, which every client trains and keeps.

    Running statistics, which are model state, stay with the clients under `jaxfed.Stateful(loss_fn, policy="local")`:
    FedBN is both together.

    Args:
        loss_fn: F, `loss_fn(params, batch, key) -> (loss, aux)`, or a `jaxfed.Stateful`.
        client_learning_rate: η₀, or an optax schedule over rounds.
        server_learning_rate: η_g.
        personal: `personal(path) -> bool`: which leaves are kept; by default those whose path has "norm" or "bn".
        **options: see `jaxfed.algorithms.parts.LocalRule`.

    Raises:
        ValueError: a hyperparameter out of range; from `init_client`, parameters without normalisation layers.

    Source: Li et al., FedBN: Federated Learning on Non-IID Features via Local Batch Normalization, ICLR 2021.
    """
    rule = LocalRule(client_learning_rate=client_learning_rate, **options)
    return personal_layers(Solver(loss_fn, gradients.plain, rule), personal, server_learning_rate, None)
