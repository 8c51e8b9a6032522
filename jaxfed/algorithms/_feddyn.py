"""FedDyn, and the common form of algorithms whose clients keep a dual variable."""

from collections.abc import Callable
from typing import Literal, NamedTuple, Unpack

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
)
from jaxfed.algorithms.parts import server_updates as server
from jaxfed.core import AnyLossFn, ClientMessage, FederatedAlgorithm, Params, ServerUpdate, check_choice
from jaxfed.core.checks import equals


class DualMean(NamedTuple):
    """How the server averages the duals: the message from (x_K − xᵗ, hᵢ, hᵢ'), and its server update."""

    message: Callable[[Params, Params, Params], ClientMessage]
    server_update: ServerUpdate


DUAL_MEANS = {
    "cohort": DualMean(lambda moved, old, new: ClientMessage(moved, average=new), server.cohort_dual_mean()),
    "population": DualMean(
        lambda moved, old, new: ClientMessage(moved, total=optax.tree.sub(new, old)), server.population_dual_mean()
    ),
}
"""FedSpeed's Algorithm 1, and the rule of FedDyn and the FedSpeed authors' code."""


def check_prox(rule: LocalRule) -> None:
    """Raise ValueError if there is no proximal term to balance the duals."""
    if equals(rule.prox_weight, 0.0):
        raise ValueError(
            "prox_weight must be > 0 with a dual: otherwise nothing balances the dual, and it grows without bound"
        )


def dual_averaging(
    solver: Solver,
    dual_mean: DualMean,
    server_learning_rate: float = 1.0,
    server_optimiser: optax.GradientTransformation | None = None,
) -> FederatedAlgorithm:
    """Compose an algorithm whose clients keep a dual hᵢ, add w·hᵢ to every gradient and U to hᵢ after the round.

    The server takes a step of `server_updates.stepped` towards the mean of x_K plus that of the duals.
    """
    check_prox(solver.rule)

    def client(context: ClientContext) -> ClientResult:
        local = solver(context, corrections.dual(context.memory, solver.rule.prox_weight))
        dual = corrections.updated_dual(context.memory, local.delta)
        moved = optax.tree.sub(local.params, context.server.params)
        return ClientResult(local, dual_mean.message(moved, context.memory, dual), dual)

    update = server.stepped(dual_mean.server_update, server_learning_rate, server_optimiser)
    return compose(client, update, solver, init_memory=optax.tree.zeros_like)


@algorithm_factory(since_0_1=("server_learning_rate",))
def feddyn(
    loss_fn: AnyLossFn,
    *,
    client_learning_rate: float | optax.Schedule = 0.1,
    prox_weight: float = 0.1,
    dual_mean: Literal["cohort", "population"] = "population",
    server_learning_rate: float = 1.0,
    server_optimiser: optax.GradientTransformation | None = None,
    **options: Unpack[LocalOptions],
) -> FederatedAlgorithm:
    """Build FedDyn: xₖ₊₁ = xₖ − ηₜ·(∇Fᵢ(xₖ; ξ) + w·(xₖ − x⁰ + hᵢ)), hᵢ ← hᵢ + U; xᵗ⁺¹ = mean over Sₜ of x_K + mean h.

    Args:
        loss_fn: F, `loss_fn(params, batch, key) -> (loss, aux)`.
        client_learning_rate: η₀, or an optax schedule over rounds.
        prox_weight: w (α in the paper), > 0.
        dual_mean: over whom the server averages the duals, see `jaxfed.fedspeed`; "population" is the paper's.
        server_learning_rate: η_g of xᵗ⁺¹ = xᵗ + η_g·(y − xᵗ), y the result above.
        server_optimiser: a whole optax optimiser of the pseudo-gradient xᵗ − y instead of η_g.
        **options: see `jaxfed.algorithms.parts.LocalRule`.

    Raises:
        ValueError: a hyperparameter out of range.

    Source: Acar et al., Federated Learning Based on Dynamic Regularization, ICLR 2021, Algorithm 1 (h = −∇L/α).
    """
    check_choice("dual_mean", dual_mean, DUAL_MEANS)
    rule = LocalRule(client_learning_rate=client_learning_rate, prox_weight=prox_weight, **options)
    solver = Solver(loss_fn, gradients.plain, rule)
    return dual_averaging(solver, DUAL_MEANS[dual_mean], server_learning_rate, server_optimiser)
