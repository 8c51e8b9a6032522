"""FedAdam: FedAvg whose server takes an Adam step along the clients' mean change."""

from typing import Unpack

import optax

from jaxfed.algorithms._fedavg import averaging
from jaxfed.algorithms.parts import LocalOptions, LocalRule, Solver, algorithm_factory, gradients
from jaxfed.algorithms.parts import server_updates as server
from jaxfed.core import AnyLossFn, FederatedAlgorithm, check_range


@algorithm_factory
def fedadam(
    loss_fn: AnyLossFn,
    *,
    client_learning_rate: float | optax.Schedule = 0.1,
    server_learning_rate: float = 0.1,
    b1: float = 0.9,
    b2: float = 0.99,
    eps: float = 1e-2,
    **options: Unpack[LocalOptions],
) -> FederatedAlgorithm:
    """Build FedAdam: m ← β₁m + (1−β₁)Ū, v ← β₂v + (1−β₂)Ū², xᵗ⁺¹ = xᵗ + η_g·m/(√v + ε), without bias correction.

    With bias correction, or with another optimiser: `jaxfed.fedavg(..., server_optimiser=optax.adam(...))`.

    Args:
        loss_fn: F, `loss_fn(params, batch, key) -> (loss, aux)`.
        client_learning_rate: η₀, or an optax schedule over rounds.
        server_learning_rate: η_g.
        b1: β₁, decay of the first moment, in [0, 1).
        b2: β₂, decay of the second moment, in [0, 1).
        eps: ε (τ in the paper), outside the root: the larger, the less adaptive.
        **options: see `jaxfed.algorithms.parts.LocalRule`.

    Raises:
        ValueError: a hyperparameter out of range.

    Source: Reddi et al., Adaptive Federated Optimization, ICLR 2021, Algorithm 2.
    """
    check_range("server_learning_rate", server_learning_rate, above=0.0)
    check_range("b1", b1, least=0.0, most=1.0)
    check_range("b2", b2, least=0.0, most=1.0)
    check_range("eps", eps, above=0.0)
    rule = LocalRule(client_learning_rate=client_learning_rate, **options)
    adam = optax.chain(server.scale_by_uncorrected_adam(b1, b2, eps), optax.scale(-server_learning_rate))
    return averaging(Solver(loss_fn, gradients.plain, rule), server.optimiser(adam))
