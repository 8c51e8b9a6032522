"""FedSAM: FedAvg with the gradient after an ascent step."""

from typing import Unpack

import optax

from jaxfed.algorithms._fedavg import averaging, averaging_server
from jaxfed.algorithms.parts import LocalOptions, LocalRule, Solver, algorithm_factory, gradients
from jaxfed.core import AnyLossFn, FederatedAlgorithm


@algorithm_factory
def fedsam(
    loss_fn: AnyLossFn,
    *,
    client_learning_rate: float | optax.Schedule = 0.1,
    ascent_radius: float = 0.1,
    server_learning_rate: float = 1.0,
    **options: Unpack[LocalOptions],
) -> FederatedAlgorithm:
    """Build FedSAM: xₖ₊₁ = xₖ − ηₜ·∇Fᵢ(xₖ + e; ξ), e = ρ·g₁/(‖g₁‖₂ + 1e-7) with g₁ = ∇Fᵢ(xₖ; ξ); server as in FedAvg.

    Args:
        loss_fn: F, `loss_fn(params, batch, key) -> (loss, aux)`.
        client_learning_rate: η₀, or an optax schedule over rounds.
        ascent_radius: ρ.
        server_learning_rate: η_g.
        **options: see `jaxfed.algorithms.parts.LocalRule`.

    Raises:
        ValueError: a hyperparameter out of range.

    Source: Qu et al., Generalized Federated Learning via Sharpness Aware Minimization, ICML 2022, Algorithm 1.
    """
    rule = LocalRule(client_learning_rate=client_learning_rate, **options)
    solver = Solver(loss_fn, gradients.perturbed(ascent_radius), rule)
    return averaging(solver, averaging_server(server_learning_rate, None))
