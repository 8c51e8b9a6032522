"""q-FedAvg: clients with a large loss count for more."""

from typing import Unpack

import jax
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
from jaxfed.core import AnyLossFn, ClientMessage, FederatedAlgorithm, Scalar, check_range, keys, tree
from jaxfed.core.stateful import evaluate


@algorithm_factory
def qfedavg(
    loss_fn: AnyLossFn,
    *,
    client_learning_rate: float | optax.Schedule = 0.1,
    fairness: float = 1.0,
    server_learning_rate: float = 1.0,
    **options: Unpack[LocalOptions],
) -> FederatedAlgorithm:
    """Build q-FedAvg: FedAvg of the objective Σ Fᵢ^(q+1)/(q+1), which evens out the losses of the clients.

    Every client of the cohort Sₜ does the K local steps of FedAvg from x⁰ = xᵗ and sends, with L = 1/ηₜ its estimate
    of the gradient's Lipschitz constant, and fᵢ the mean loss of the round's batches at xᵗ,

        Δᵢ = fᵢ^q·U                             hᵢ = q·fᵢ^(q−1)·‖U‖₂²·L + fᵢ^q
        xᵗ⁺¹ = xᵗ + η_g·Σ over Sₜ of Δᵢ / Σ over Sₜ of hᵢ

    which is the paper's with both multiplied by ηₜ. At q = 0 it is FedAvg. `ClientInfo.delta_norm` is ‖Δᵢ‖₂.

    Args:
        loss_fn: F ≥ 0, `loss_fn(params, batch, key) -> (loss, aux)`.
        client_learning_rate: η₀, or an optax schedule over rounds.
        fairness: q ≥ 0.
        server_learning_rate: η_g.
        **options: see `jaxfed.algorithms.parts.LocalRule`. With a client optimiser L is 1/ηₜ too.

    Raises:
        ValueError: a hyperparameter out of range.

    Source: Li et al., Fair Resource Allocation in Federated Learning, ICLR 2020 (arXiv 1905.10497), Algorithm 2.
    """
    check_range("fairness", fairness, least=0.0)
    check_range("server_learning_rate", server_learning_rate, above=0.0)
    rule = LocalRule(client_learning_rate=client_learning_rate, **options)
    solver = Solver(loss_fn, gradients.plain, rule)

    def client(context: ClientContext) -> ClientResult:
        local = solver(context)
        square = jnp.square(tree.norm(local.delta))
        loss = loss_at_start(loss_fn, context).astype(square.dtype) + 1e-10
        lipschitz = jnp.where(square > 0, square / context.learning_rate.astype(square.dtype), 0.0)
        weight = jnp.power(loss, fairness)
        scale = fairness * jnp.power(loss, fairness - 1.0) * lipschitz + weight
        moved = tree.scale(weight, local.delta)
        return ClientResult(local._replace(delta=moved), ClientMessage(moved, average=scale))

    return compose(client, server.fair_mean(server_learning_rate), solver)


def loss_at_start(loss_fn: AnyLossFn, context: ClientContext) -> Scalar:
    """Return the mean loss at xᵗ over the batches of the round that have samples, []."""
    mask = context.batches["mask"]
    if not mask.shape[0]:
        return jnp.zeros(())

    def of_batch(number_and_batch: tuple) -> Scalar:
        number, batch = number_and_batch
        key = keys.step_key(context.key, number)
        return evaluate(loss_fn, context.server.params, context.model_state, context.fetch(batch), key)[0]

    losses = jax.lax.map(of_batch, (jnp.arange(mask.shape[0]), context.batches))
    mean: Scalar = tree.masked_mean(losses, jnp.any(mask, axis=1))
    return mean
