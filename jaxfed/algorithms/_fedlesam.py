"""FedLESAM: sharpness-aware steps whose ascent is how the server moved since a client last took part."""

from typing import Unpack

import optax

from jaxfed.algorithms._fedavg import averaging_server
from jaxfed.algorithms.parts import (
    ClientContext,
    ClientResult,
    LocalOptions,
    LocalRule,
    Solver,
    algorithm_factory,
    compose,
    gradients,
)
from jaxfed.core import AnyLossFn, ClientMessage, FederatedAlgorithm, check_range, tree


@algorithm_factory
def fedlesam(
    loss_fn: AnyLossFn,
    *,
    client_learning_rate: float | optax.Schedule = 0.1,
    ascent_radius: float = 0.1,
    server_learning_rate: float = 1.0,
    **options: Unpack[LocalOptions],
) -> FederatedAlgorithm:
    """Build FedLESAM: one gradient a step, at a point shifted along the estimated ascent of the global loss.

    Every client of the cohort Sₜ keeps vᵢ, the parameters that it received when it last took part (at first x of the
    start), and from x⁰ = xᵗ does

        e    = ρ·(vᵢ − xᵗ)/(‖vᵢ − xᵗ‖₂ + 1e-7)      once a round
        xₖ₊₁ = xₖ − ηₜ·∇Fᵢ(xₖ + e; ξ)
        vᵢ   ← xᵗ

    with the server of FedAvg. The loss that is reported is that at xₖ + e.

    Args:
        loss_fn: F, `loss_fn(params, batch, key) -> (loss, aux)`.
        client_learning_rate: η₀, or an optax schedule over rounds.
        ascent_radius: ρ.
        server_learning_rate: η_g.
        **options: see `jaxfed.algorithms.parts.LocalRule`.

    Raises:
        ValueError: a hyperparameter out of range.

    Source: Fan et al., Locally Estimated Global Perturbations are Better than Local Perturbations for Federated
    Sharpness-aware Minimization, ICML 2024, Algorithm 1.
    """
    check_range("ascent_radius", ascent_radius, least=0.0)
    rule = LocalRule(client_learning_rate=client_learning_rate, **options)
    solver = Solver(loss_fn, gradients.shifted, rule)

    def client(context: ClientContext) -> ClientResult:
        received = context.server.params
        # In float32 or wider: in float16 the inverse of 1e-7, for a client that received nothing yet, is infinite.
        away = tree.widened(optax.tree.sub(context.memory, received))
        ascent = optax.tree.cast_like(gradients.normalised(away, ascent_radius), received)
        local = solver(context, memory=ascent)
        return ClientResult(local, ClientMessage(local.delta), received)

    update = averaging_server(server_learning_rate, None)
    return compose(client, update, solver, init_memory=lambda params: params)
