"""FedProx: FedAvg with a proximal term that pulls clients to the server's parameters."""

from typing import Unpack

import optax

from jaxfed.algorithms._fedavg import averaging, averaging_server
from jaxfed.algorithms.parts import LocalOptions, LocalRule, Solver, algorithm_factory, gradients
from jaxfed.core import AnyLossFn, FederatedAlgorithm


@algorithm_factory
def fedprox(
    loss_fn: AnyLossFn,
    *,
    client_learning_rate: float | optax.Schedule = 0.1,
    prox_weight: float = 0.1,
    server_learning_rate: float = 1.0,
    server_optimiser: optax.GradientTransformation | None = None,
    **options: Unpack[LocalOptions],
) -> FederatedAlgorithm:
    """Build FedProx: xₖ₊₁ = xₖ − ηₜ·(∇Fᵢ(xₖ; ξ) + w·(xₖ − x⁰)) on the clients, the server as in FedAvg.

    Args:
        loss_fn: F, `loss_fn(params, batch, key) -> (loss, aux)`.
        client_learning_rate: η₀, or an optax schedule over rounds.
        prox_weight: w (μ in the paper, `lamb` in the FedSpeed authors' code); at 0 this is FedAvg.
        server_learning_rate: η_g.
        server_optimiser: an optax optimiser of the pseudo-gradient −U instead of η_g.
        **options: see `jaxfed.algorithms.parts.LocalRule`.

    Raises:
        ValueError: a hyperparameter out of range.

    Source: Li et al., Federated Optimization in Heterogeneous Networks, MLSys 2020, Algorithm 2, with K steps of SGD
    as the inexact local solver.
    """
    rule = LocalRule(client_learning_rate=client_learning_rate, prox_weight=prox_weight, **options)
    return averaging(Solver(loss_fn, gradients.plain, rule), averaging_server(server_learning_rate, server_optimiser))
