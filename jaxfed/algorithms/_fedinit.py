"""FedInit: FedAvg whose clients begin away from their last result."""

from typing import Unpack

import optax

from jaxfed.algorithms._fedavg import averaging, averaging_server
from jaxfed.algorithms.parts import LocalOptions, LocalRule, Solver, algorithm_factory, gradients
from jaxfed.core import AnyLossFn, FederatedAlgorithm


@algorithm_factory
def fedinit(  # type: ignore[misc]  # one of the options has another default here
    loss_fn: AnyLossFn,
    *,
    client_learning_rate: float | optax.Schedule = 0.1,
    server_learning_rate: float = 1.0,
    relaxation: float = 0.1,
    **options: Unpack[LocalOptions],
) -> FederatedAlgorithm:
    """Build FedInit: FedAvg from x⁰ = xᵗ + β·(xᵗ − wᵢ), wᵢ the client's last result.

    Every other algorithm takes `relaxation` as well.

    Args:
        loss_fn: F, `loss_fn(params, batch, key) -> (loss, aux)`.
        client_learning_rate: η₀, or an optax schedule over rounds.
        server_learning_rate: η_g.
        relaxation: β ≥ 0.
        **options: see `jaxfed.algorithms.parts.LocalRule`.

    Raises:
        ValueError: a hyperparameter out of range.

    Source: Sun et al., Understanding How Consistency Works in Federated Learning via Stage-wise Relaxed Initialization,
    NeurIPS 2023, Algorithm 1.
    """
    rule = LocalRule(client_learning_rate=client_learning_rate, relaxation=relaxation, **options)
    return averaging(Solver(loss_fn, gradients.plain, rule), averaging_server(server_learning_rate, None))
