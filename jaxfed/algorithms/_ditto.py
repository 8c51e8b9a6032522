"""Ditto: FedAvg, and beside it a model of each client's own, held near the server's."""

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
def ditto(
    loss_fn: AnyLossFn,
    *,
    client_learning_rate: float | optax.Schedule = 0.1,
    personal_learning_rate: float | None = None,
    personal_weight: float = 0.1,
    server_learning_rate: float = 1.0,
    **options: Unpack[LocalOptions],
) -> FederatedAlgorithm:
    """Build Ditto.

    Every client of the cohort Sₜ does the round of FedAvg, and on the same batches K steps on the model vᵢ that it
    keeps for itself:

        vᵢ ← vᵢ − η_p·(∇Fᵢ(vᵢ; ξ) + λ·(vᵢ − xᵗ))

    vᵢ is at first x of the start. Model state is that of the round's model: for batch statistics of vᵢ take a network
    without them, or FedBN. `jaxfed.personal.own_model(algorithm)` evaluates it.

    Args:
        loss_fn: F, `loss_fn(params, batch, key) -> (loss, aux)`.
        client_learning_rate: η₀, or an optax schedule over rounds.
        personal_learning_rate: η_p; by default ηₜ.
        personal_weight: λ ≥ 0: at 0 clients train alone, the larger, the nearer to the server's model.
        server_learning_rate: η_g.
        **options: see `jaxfed.algorithms.parts.LocalRule`; they are those of both models.

    Raises:
        ValueError: a hyperparameter out of range.

    Source: Li et al., Ditto: Fair and Robust Federated Learning Through Personalization, ICML 2021, Algorithm 1.
    """
    check_range("personal_weight", personal_weight, least=0.0)
    if personal_learning_rate is not None:
        check_range("personal_learning_rate", personal_learning_rate, above=0.0)
    rule = LocalRule(client_learning_rate=client_learning_rate, **options)
    own_rule = LocalRule(client_learning_rate=client_learning_rate, prox_weight=personal_weight, **options)
    solver, own_solver = Solver(loss_fn, gradients.plain, rule), Solver(loss_fn, gradients.plain, own_rule)

    def client(context: ClientContext) -> ClientResult:
        local, own = solver(context), context.memory
        rate = context.learning_rate
        if personal_learning_rate is not None:
            rate = tree.scale(personal_learning_rate, optax.tree.ones_like(rate))
        # The proximal term of the solver pulls to its start vᵢ; the rest of the pull to xᵗ is constant in the round.
        towards = tree.scale(personal_weight, optax.tree.sub(own, context.server.params))
        tuned = own_solver(context._replace(start=own, learning_rate=rate), towards)
        return ClientResult(local, ClientMessage(local.delta), tuned.params)

    update = averaging_server(server_learning_rate, None)
    return compose(client, update, solver, init_memory=lambda params: params, personal=lambda params, memory: memory)
