"""FedRep, and the common form of algorithms whose clients keep some layers to themselves: FedPer, FedBN."""

from collections.abc import Callable
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import optax

from jaxfed.algorithms.parts import (
    ClientContext,
    ClientResult,
    LocalOptions,
    LocalResult,
    LocalRule,
    Solver,
    algorithm_factory,
    compose,
    gradients,
)
from jaxfed.algorithms.parts import server_updates as server
from jaxfed.core import AnyLossFn, ClientMessage, FederatedAlgorithm, Params, check_range, keys, trainable


def personal_layers(
    solver: Solver, personal: trainable.Mask, server_learning_rate: float, personal_steps: int | None
) -> FederatedAlgorithm:
    """Compose FedAvg of some leaves of the parameters; each client trains the others too, and keeps them.

    Args:
        solver: of the local steps.
        personal: which leaves clients keep, see `jaxfed.trainable.Mask`.
        server_learning_rate: η_g.
        personal_steps: the first steps of a round train the personal leaves only, and the others the shared ones only;
            None trains both in all steps.
    """
    check_range("server_learning_rate", server_learning_rate, above=0.0)

    def own(params: Params) -> Params:
        return trainable.split(params, personal)[0]

    def client(context: ClientContext) -> ClientResult:
        shared = trainable.split(context.start, personal)[1]
        start = context._replace(start=trainable.join(context.memory, shared))
        local = solver(start) if personal_steps is None else in_turn(solver, start, personal, personal_steps)
        kept, after = trainable.split(local.params, personal)
        moved = optax.tree.sub(after, shared)
        return ClientResult(local._replace(delta=moved), ClientMessage(moved), kept)

    def joined(params: Params, memory: Params) -> Params:
        return trainable.join(memory, trainable.split(params, personal)[1])

    update = server.part_mean(server_learning_rate)
    return compose(client, update, solver, init_memory=own, personal=joined)


def in_turn(solver: Solver, context: ClientContext, personal: trainable.Mask, personal_steps: int) -> LocalResult:
    """Train the personal leaves for the first steps of a round and the others for the rest."""
    own, shared = trainable.split(context.start, personal)
    first, rest = _cut(context.batches, slice(personal_steps)), _cut(context.batches, slice(personal_steps, None))

    def train(part: Params, held: Params, batches: Any, key: Any, model_state: Any) -> LocalResult:
        part_solver = Solver(trainable.holding(solver.loss_fn, held), solver.estimate, solver.rule)
        return part_solver(context._replace(start=part, batches=batches, key=key, model_state=model_state))

    one = train(own, shared, first, context.key, context.model_state)
    number = context.batches["mask"].shape[0]
    two = train(shared, one.params, rest, keys.step_key(context.key, jnp.int32(number)), one.model_state)
    params = trainable.join(one.params, two.params)
    parts = [each.steps for each in (one, two) if each.steps.active.shape[0]]
    steps = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts) if parts else one.steps
    return two._replace(params=params, delta=optax.tree.sub(params, context.start), steps=steps, path=None)


def _cut(batches: Any, steps: slice) -> Any:
    return {name: array[steps] for name, array in batches.items()}


@algorithm_factory
def fedrep(
    loss_fn: AnyLossFn,
    *,
    personal: Callable[[str], bool],
    personal_steps: int | None,
    client_learning_rate: float | optax.Schedule = 0.1,
    server_learning_rate: float = 1.0,
    **options: Unpack[LocalOptions],
) -> FederatedAlgorithm:
    """Build FedRep: clients share a representation, and each keeps a head of its own.

    With the leaves of the parameters in two parts, the shared φ and the personal hᵢ, a client of the cohort Sₜ does

        hᵢ ← hᵢ − ηₜ·∇_h Fᵢ(φ, hᵢ; ξ)          in its first steps, from what it kept, with φ = φᵗ
        φ  ← φ − ηₜ·∇_φ Fᵢ(φ, hᵢ; ξ)           in the rest of them
        φᵗ⁺¹ = φᵗ + η_g·mean over Sₜ of (φ_K − φᵗ)

    Nothing of hᵢ is sent. In the server hᵢ stays what it was at first, the head of clients that were never drawn;
    `jaxfed.personal.own_model(algorithm)` evaluates every client with its own.

    Args:
        loss_fn: F, `loss_fn(params, batch, key) -> (loss, aux)`, of all parameters.
        personal: `personal(path) -> bool`: which leaves a client keeps, by paths such as "head/kernel".
        personal_steps: number of first steps for hᵢ; None trains both parts in all steps, which is FedPer.
        client_learning_rate: η₀, or an optax schedule over rounds.
        server_learning_rate: η_g.
        **options: see `jaxfed.algorithms.parts.LocalRule`.

    Raises:
        ValueError: a hyperparameter out of range; from `init_client`, personal leaves that are none or all.

    Source: Collins et al., Exploiting Shared Representations for Personalized Federated Learning, ICML 2021,
    Algorithm 1; Arivazhagan et al., Federated Learning with Personalization Layers, 2019 (arXiv 1912.00818).
    """
    if personal_steps is not None:
        check_range("personal_steps", personal_steps, least=1, whole=True)
    rule = LocalRule(client_learning_rate=client_learning_rate, **options)
    solver = Solver(loss_fn, gradients.plain, rule)
    return personal_layers(solver, personal, server_learning_rate, personal_steps)
