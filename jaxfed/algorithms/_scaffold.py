"""SCAFFOLD: control variates that take the clients' drift out of their gradients."""

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
from jaxfed.core import AnyLossFn, ClientMessage, FederatedAlgorithm, check_range


def control_variates(solver: Solver, server_learning_rate: float, nominal_steps: float | None) -> FederatedAlgorithm:
    """Compose an algorithm whose clients keep a control variate cᵢ and add c − cᵢ to every gradient."""
    check_range("server_learning_rate", server_learning_rate, above=0.0)
    if nominal_steps is not None:
        check_range("nominal_steps", nominal_steps, above=0.0)

    def client(context: ClientContext) -> ClientResult:
        own, shared = context.memory, context.server.extra
        local = solver(context, corrections.control_variate(shared, own))
        # A client that has not moved has D = c, which leaves its control variate unchanged.
        control = corrections.updated_control(own, shared, mean_direction(context, local, shared, nominal_steps))
        return ClientResult(local, ClientMessage(local.delta, total=optax.tree.sub(control, own)), control)

    return compose(client, server.control_mean(server_learning_rate), solver, init_memory=optax.tree.zeros_like)


@algorithm_factory
def scaffold(
    loss_fn: AnyLossFn,
    *,
    client_learning_rate: float | optax.Schedule = 0.1,
    server_learning_rate: float = 1.0,
    nominal_steps: float | None = None,
    **options: Unpack[LocalOptions],
) -> FederatedAlgorithm:
    """Build SCAFFOLD.

    Every client of the cohort Sₜ, from x⁰ = xᵗ, with the server's control variate c of the round's start:

        xₖ₊₁ = xₖ − ηₜ·(∇Fᵢ(xₖ; ξ) + c − cᵢ)
        cᵢ'  = cᵢ − c − U/(K·ηₜ)                U = x_K − x⁰, after the K steps
        xᵗ⁺¹ = xᵗ + η_g·mean over Sₜ of U
        c    ← c + 1/N · Σ over Sₜ of (cᵢ' − cᵢ)

    A client without a step, or of a round with ηₜ = 0, keeps its cᵢ. Under a client optimiser −U/(K·ηₜ) is the mean of
    its inputs ∇Fᵢ(xₖ; ξ) + c − cᵢ.

    Args:
        loss_fn: F, `loss_fn(params, batch, key) -> (loss, aux)`.
        client_learning_rate: η₀, or an optax schedule over rounds.
        server_learning_rate: η_g.
        nominal_steps: K in cᵢ', the same for all clients; by default each client's own number of steps.
        **options: see `jaxfed.algorithms.parts.LocalRule`.

    Raises:
        ValueError: a hyperparameter out of range.

    Source: Karimireddy et al., SCAFFOLD: Stochastic Controlled Averaging for Federated Learning, ICML 2020,
    Algorithm 1, option II.
    """
    rule = LocalRule(client_learning_rate=client_learning_rate, **options)
    return control_variates(Solver(loss_fn, gradients.plain, rule), server_learning_rate, nominal_steps)
