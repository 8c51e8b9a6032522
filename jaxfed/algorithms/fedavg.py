"""FedAvg, and the shape of every algorithm whose clients keep nothing between rounds."""

from typing import Unpack

import optax

from jaxfed import gradients, server
from jaxfed.algorithm import FederatedAlgorithm, ServerUpdate, recorded
from jaxfed.checks import check_range
from jaxfed.compose import ClientContext, ClientResult, compose
from jaxfed.local import LocalOptions, LocalRule, solver
from jaxfed.types import LossFn


def averaging(estimate: gradients.Estimator, rule: LocalRule, server_update: ServerUpdate) -> FederatedAlgorithm:
    """Clients send U = x_K − x⁰ and keep nothing: FedAvg, FedProx and their kin, by gradient, rule and server."""
    solve = solver(estimate, rule)

    def client(context: ClientContext) -> ClientResult:
        local = solve(context.start, context.batches, context.key, learning_rate=context.learning_rate)
        return ClientResult(local, message=local.delta, memory=())

    return compose(client, server_update, rule)


def server_side(server_learning_rate: float, server_optimiser: optax.GradientTransformation | None) -> ServerUpdate:
    """The mean scaled by η_g, or an optax optimiser, which brings a learning rate of its own."""
    check_range("server_learning_rate", server_learning_rate, above=0.0)
    if server_optimiser is None:
        return server.mean(server_learning_rate)
    if server_learning_rate != 1.0:
        raise ValueError("server_optimiser has its own learning rate: leave server_learning_rate at 1.0")
    return server.optimiser(server_optimiser)


@recorded
def fedavg(
    loss_fn: LossFn,
    *,
    client_learning_rate: float = 0.1,
    server_learning_rate: float = 1.0,
    server_optimiser: optax.GradientTransformation | None = None,
    **options: Unpack[LocalOptions],
) -> FederatedAlgorithm:
    """FedAvg: xₖ₊₁ = xₖ − ηₜ·∇Fᵢ(xₖ; ξ) on the clients, xᵗ⁺¹ = xᵗ + η_g·mean over Sₜ of (x_K − x⁰) on the server.

    Args:
      loss_fn: F, `loss_fn(params, batch, key) -> (loss, aux)`.
      client_learning_rate: η₀.
      server_learning_rate: η_g.
      server_optimiser: an optax optimiser of the pseudo-gradient −U instead of η_g (`optax.adam(...)`: FedAdam).
      **options: see `jaxfed.local.LocalRule`.

    Raises:
      ValueError: a hyperparameter out of range.

    Source: McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, AISTATS 2017,
    Algorithm 1 (with an unweighted mean over the cohort).
    """
    rule = LocalRule(client_learning_rate=client_learning_rate, **options)
    return averaging(gradients.plain(loss_fn), rule, server_side(server_learning_rate, server_optimiser))
