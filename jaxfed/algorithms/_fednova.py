"""FedNova: messages normalised by the number of local steps, which may differ between clients."""

from typing import Unpack

import jax.numpy as jnp
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
from jaxfed.core import AnyLossFn, ClientMessage, FederatedAlgorithm, check_range, tree


@algorithm_factory
def fednova(
    loss_fn: AnyLossFn,
    *,
    client_learning_rate: float | optax.Schedule = 0.1,
    server_learning_rate: float = 1.0,
    **options: Unpack[LocalOptions],
) -> FederatedAlgorithm:
    """Build FedNova: FedAvg in which a client that does more local steps does not pull the server further.

    Every client of the cohort Sₜ does its own Kᵢ steps xₖ₊₁ = xₖ − ηₜ·∇Fᵢ(xₖ; ξ) from x⁰ = xᵗ and sends dᵢ = U/Kᵢ:

        xᵗ⁺¹ = xᵗ + η_g·τ̄·mean over Sₜ of dᵢ        τ̄ = mean over Sₜ of Kᵢ

    With equal Kᵢ this is FedAvg. `ClientInfo.delta_norm` is ‖dᵢ‖₂. Clients of unequal numbers of samples under
    `jaxfed.Epochs`, or `jaxfed.Stragglers`, do unequal numbers of steps.

    Args:
        loss_fn: F, `loss_fn(params, batch, key) -> (loss, aux)`.
        client_learning_rate: η₀, or an optax schedule over rounds.
        server_learning_rate: η_g.
        **options: see `jaxfed.algorithms.parts.LocalRule`. A client optimiser's steps count as one each, too.

    Raises:
        ValueError: a hyperparameter out of range.

    Source: Wang et al., Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization,
    NeurIPS 2020, equation 7 with aᵢ = (1, …, 1), the local solver being SGD.
    """
    check_range("server_learning_rate", server_learning_rate, above=0.0)
    rule = LocalRule(client_learning_rate=client_learning_rate, **options)
    solver = Solver(loss_fn, gradients.plain, rule)

    def client(context: ClientContext) -> ClientResult:
        local = solver(context)
        steps = local.num_steps.astype(context.learning_rate.dtype)
        mean_step = tree.scale(1.0 / jnp.maximum(steps, 1.0), local.delta)
        return ClientResult(local._replace(delta=mean_step), ClientMessage(mean_step, average=steps))

    return compose(client, server.normalised_mean(server_learning_rate), solver)
