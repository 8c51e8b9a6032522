"""FedAvg, and the common form of algorithms whose clients have no state."""

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
    gradients,
)
from jaxfed.algorithms.parts import server_updates as server
from jaxfed.core import AnyLossFn, ClientMessage, FederatedAlgorithm, ServerUpdate


def averaging(solver: Solver, server_update: ServerUpdate) -> FederatedAlgorithm:
    """Compose an algorithm whose clients send U = x_K − x⁰ and have no state: FedAvg, FedProx, FedSAM, FedAdam."""

    def client(context: ClientContext) -> ClientResult:
        local = solver(context)
        return ClientResult(local, ClientMessage(local.delta))

    return compose(client, server_update, solver)


def averaging_server(
    server_learning_rate: float, server_optimiser: optax.GradientTransformation | None
) -> ServerUpdate:
    """Return the mean scaled by η_g, or an optax optimiser, which has its own learning rate."""
    server.check_step(server_learning_rate, server_optimiser)
    return server.mean(server_learning_rate) if server_optimiser is None else server.optimiser(server_optimiser)


@algorithm_factory
def fedavg(
    loss_fn: AnyLossFn,
    *,
    client_learning_rate: float | optax.Schedule = 0.1,
    server_learning_rate: float = 1.0,
    server_optimiser: optax.GradientTransformation | None = None,
    **options: Unpack[LocalOptions],
) -> FederatedAlgorithm:
    """Build FedAvg: xₖ₊₁ = xₖ − ηₜ·∇Fᵢ(xₖ; ξ) on the clients, xᵗ⁺¹ = xᵗ + η_g·mean over Sₜ of (x_K − x⁰) on the server.

    Args:
        loss_fn: F, `loss_fn(params, batch, key) -> (loss, aux)`.
        client_learning_rate: η₀, or an optax schedule over rounds.
        server_learning_rate: η_g.
        server_optimiser: a whole optax optimiser of the pseudo-gradient −U instead of η_g: `optax.yogi(...)` gives
            FedYogi, `optax.adagrad(...)` FedAdagrad, `optax.sgd(1.0, momentum=0.9)` FedAvgM.
        **options: see `jaxfed.algorithms.parts.LocalRule`.

    Raises:
        ValueError: a hyperparameter out of range.

    Source: McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, AISTATS 2017,
    Algorithm 1 (with an unweighted mean over the cohort).
    """
    rule = LocalRule(client_learning_rate=client_learning_rate, **options)
    return averaging(Solver(loss_fn, gradients.plain, rule), averaging_server(server_learning_rate, server_optimiser))
