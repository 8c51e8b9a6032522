"""MoFedSAM: FedCM's client momentum with the gradient of FedSAM."""

from typing import Unpack

import optax

from jaxfed.algorithms._fedcm import client_momentum
from jaxfed.algorithms.parts import LocalOptions, LocalRule, algorithm_factory, gradients
from jaxfed.core import AnyLossFn, FederatedAlgorithm


@algorithm_factory
def mofedsam(
    loss_fn: AnyLossFn,
    *,
    client_learning_rate: float | optax.Schedule = 0.1,
    ascent_radius: float = 0.1,
    momentum_weight: float = 0.1,
    server_learning_rate: float = 1.0,
    nominal_steps: float | None = None,
    **options: Unpack[LocalOptions],
) -> FederatedAlgorithm:
    """Build MoFedSAM: xₖ₊₁ = xₖ − ηₜ·(α·∇Fᵢ(xₖ + e; ξ) + (1−α)·D), e = ρ·g₁/(‖g₁‖₂ + 1e-7); D and server as in FedCM.

    Args:
        loss_fn: F, `loss_fn(params, batch, key) -> (loss, aux)`.
        client_learning_rate: η₀, or an optax schedule over rounds.
        ascent_radius: ρ; e comes from the plain gradient, not from the momentum.
        momentum_weight: α in (0, 1], the weight of the fresh gradient.
        server_learning_rate: η_g.
        nominal_steps: K in D, the same for all clients; by default each client's own number of steps.
        **options: see `jaxfed.algorithms.parts.LocalRule`.

    Raises:
        ValueError: a hyperparameter out of range.

    Source: Qu et al., Generalized Federated Learning via Sharpness Aware Minimization, ICML 2022, Algorithm 2.
    """
    rule = LocalRule(client_learning_rate=client_learning_rate, **options)
    estimate = gradients.perturbed(ascent_radius)
    return client_momentum(loss_fn, estimate, rule, momentum_weight, server_learning_rate, nominal_steps)
