"""FedSMOO: FedDyn's duals, and a second pair of duals that aligns the clients' ascent steps."""

from typing import NamedTuple, Unpack

import optax

from jaxfed.algorithms._feddyn import check_prox
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
)
from jaxfed.algorithms.parts import server_updates as server
from jaxfed.core import AnyLossFn, ClientMessage, FederatedAlgorithm, Params


class Duals(NamedTuple):
    """State of a client: the duals hᵢ of the parameters and μᵢ of the ascent step."""

    params: Params
    ascent: Params


@algorithm_factory(since_0_1=("server_learning_rate",))
def fedsmoo(
    loss_fn: AnyLossFn,
    *,
    client_learning_rate: float | optax.Schedule = 0.1,
    prox_weight: float = 0.1,
    ascent_radius: float = 0.1,
    server_learning_rate: float = 1.0,
    server_optimiser: optax.GradientTransformation | None = None,
    **options: Unpack[LocalOptions],
) -> FederatedAlgorithm:
    """Build FedSMOO.

    Every client of the cohort Sₜ, from x⁰ = xᵗ, with the server's direction s of the last round:

        e    = ρ·g/(‖g‖₂ + 1e-7)                g = ∇Fᵢ(xₖ; ξ) − μᵢ − s
        μᵢ   ← μᵢ + e − s                       every step
        xₖ₊₁ = xₖ − ηₜ·(∇Fᵢ(xₖ + e; ξ) + w·(xₖ − x⁰ + hᵢ))
        hᵢ   ← hᵢ + U                           after the K steps
        xᵗ⁺¹ = mean over Sₜ of x_K + mean over all clients of h
        s    = ρ·μ̄/(‖μ̄‖₂ + 1e-7)               μ̄ = mean over Sₜ of μᵢ

    Args:
        loss_fn: F, `loss_fn(params, batch, key) -> (loss, aux)`.
        client_learning_rate: η₀, or an optax schedule over rounds.
        prox_weight: w = 1/λ, > 0.
        ascent_radius: ρ.
        server_learning_rate: η_g of xᵗ⁺¹ = xᵗ + η_g·(y − xᵗ), y the result above.
        server_optimiser: a whole optax optimiser of the pseudo-gradient xᵗ − y instead of η_g.
        **options: see `jaxfed.algorithms.parts.LocalRule`.

    Raises:
        ValueError: a hyperparameter out of range.

    Source: Sun et al., Dynamic Regularized Sharpness Aware Minimization in Federated Learning, ICML 2023, Algorithm 1.
    """
    rule = LocalRule(client_learning_rate=client_learning_rate, prox_weight=prox_weight, **options)
    check_prox(rule)
    solver = Solver(loss_fn, gradients.aligned(ascent_radius), rule)

    def client(context: ClientContext) -> ClientResult:
        held, extra = context.memory, server.inner_state(context.server.extra)
        aligning = gradients.Ascent(held.ascent, extra.ascent)
        local = solver(context, corrections.dual(held.params, prox_weight), aligning)
        duals = Duals(corrections.updated_dual(held.params, local.delta), local.memory.own)
        moved, change = optax.tree.sub(local.params, context.server.params), optax.tree.sub(duals.params, held.params)
        return ClientResult(local, ClientMessage(moved, average=duals.ascent, total=change), duals)

    def no_duals(params: Params) -> Duals:
        return Duals(optax.tree.zeros_like(params), optax.tree.zeros_like(params))

    def advance(duals: Duals, change: Params) -> Duals:
        return duals._replace(params=optax.tree.add(duals.params, change))

    update = server.stepped(server.aligned_dual_mean(ascent_radius), server_learning_rate, server_optimiser)
    return compose(client, update, solver, init_memory=no_duals, advance=advance)
