"""FedGamma: SCAFFOLD's control variates with the gradient of FedSAM."""

from typing import Unpack

import optax

from jaxfed.algorithms._scaffold import control_variates
from jaxfed.algorithms.parts import LocalOptions, LocalRule, Solver, algorithm_factory, gradients
from jaxfed.core import AnyLossFn, FederatedAlgorithm


@algorithm_factory
def fedgamma(
    loss_fn: AnyLossFn,
    *,
    client_learning_rate: float | optax.Schedule = 0.1,
    ascent_radius: float = 0.01,
    server_learning_rate: float = 1.0,
    nominal_steps: float | None = None,
    **options: Unpack[LocalOptions],
) -> FederatedAlgorithm:
    """Build FedGamma: xₖ₊₁ = xₖ − ηₜ·(∇Fᵢ(xₖ + e; ξ) + c − cᵢ), e = ρ·g₁/(‖g₁‖₂ + 1e-7); cᵢ, c, server as in SCAFFOLD.

    Args:
        loss_fn: F, `loss_fn(params, batch, key) -> (loss, aux)`.
        client_learning_rate: η₀, or an optax schedule over rounds.
        ascent_radius: ρ.
        server_learning_rate: η_g.
        nominal_steps: K in cᵢ', the same for all clients; by default each client's own number of steps.
        **options: see `jaxfed.algorithms.parts.LocalRule`.

    Raises:
        ValueError: a hyperparameter out of range.

    Source: Dai et al., FedGAMMA: Federated Learning with Global Sharpness-Aware Minimization, TNNLS 2023.
    """
    rule = LocalRule(client_learning_rate=client_learning_rate, **options)
    return control_variates(
        Solver(loss_fn, gradients.perturbed(ascent_radius), rule), server_learning_rate, nominal_steps
    )
