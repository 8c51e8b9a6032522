"""FedCM: client steps with momentum along the last round's mean direction."""

from typing import Unpack

import optax

from jaxfed.algorithms.parts import (
    ClientContext,
    ClientResult,
    LocalOptions,
    LocalRule,
    Solver,
    algorithm_factory,
    compose,
    corrections,
    gradients,
    mean_direction,
)
from jaxfed.algorithms.parts import server_updates as server
from jaxfed.algorithms.parts.gradients import Estimator
from jaxfed.core import AnyLossFn, ClientMessage, FederatedAlgorithm, check_range


def client_momentum(
    loss_fn: AnyLossFn,
    estimate: Estimator,
    rule: LocalRule,
    momentum_weight: float,
    server_learning_rate: float,
    nominal_steps: float | None,
) -> FederatedAlgorithm:
    """Compose an algorithm whose clients descend along α·g + (1−α)·D and send U and −U/(K·ηₜ): FedCM, MoFedSAM."""
    check_range("momentum_weight", momentum_weight, above=0.0, most=1.0)
    check_range("server_learning_rate", server_learning_rate, above=0.0)
    if nominal_steps is not None:
        check_range("nominal_steps", nominal_steps, above=0.0)
    solver = Solver(loss_fn, gradients.scaled(estimate, momentum_weight), rule)

    def client(context: ClientContext) -> ClientResult:
        local = solver(context, corrections.momentum(context.server.extra, momentum_weight))
        direction = mean_direction(context, local, context.server.extra, nominal_steps)
        return ClientResult(local, ClientMessage(local.delta, average=direction))

    return compose(client, server.momentum_mean(server_learning_rate), solver)


@algorithm_factory
def fedcm(
    loss_fn: AnyLossFn,
    *,
    client_learning_rate: float | optax.Schedule = 0.1,
    momentum_weight: float = 0.1,
    server_learning_rate: float = 1.0,
    nominal_steps: float | None = None,
    **options: Unpack[LocalOptions],
) -> FederatedAlgorithm:
    """Build FedCM: xₖ₊₁ = xₖ − ηₜ·(α·∇Fᵢ(xₖ; ξ) + (1−α)·D), D = mean over the last cohort of −U/(K·ηₜ₋₁), 0 at first.

    The server does xᵗ⁺¹ = xᵗ + η_g·mean over Sₜ of U. Clients keep nothing. A client without a step, or of a round with
    ηₜ = 0, sends D as it was; under a client optimiser −U/(K·ηₜ) is the mean of its inputs.

    Args:
        loss_fn: F, `loss_fn(params, batch, key) -> (loss, aux)`.
        client_learning_rate: η₀, or an optax schedule over rounds.
        momentum_weight: α in (0, 1], the weight of the fresh gradient; at 1 this is FedAvg.
        server_learning_rate: η_g.
        nominal_steps: K in D, the same for all clients; by default each client's own number of steps.
        **options: see `jaxfed.algorithms.parts.LocalRule`.

    Raises:
        ValueError: a hyperparameter out of range.

    Source: Xu et al., FedCM: Federated Learning with Client-level Momentum, 2021 (arXiv 2106.10874), Algorithm 2.
    """
    rule = LocalRule(client_learning_rate=client_learning_rate, **options)
    return client_momentum(loss_fn, gradients.plain, rule, momentum_weight, server_learning_rate, nominal_steps)
