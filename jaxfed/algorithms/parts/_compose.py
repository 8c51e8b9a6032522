"""Puts parts together: a client function and a server update make a federated algorithm."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from jaxfed.algorithms.parts import corrections
from jaxfed.algorithms.parts.local import ClientContext, LocalResult, Solver
from jaxfed.algorithms.parts.optimisers import check_descends
from jaxfed.core import tree
from jaxfed.core.checks import check_range
from jaxfed.core.losses import check_params
from jaxfed.core.protocol import (
    ClientFn,
    ClientInfo,
    ClientRow,
    ClientUpdate,
    Cohort,
    CohortResult,
    FederatedAlgorithm,
    Fetch,
    Insides,
    Message,
    Plan,
    Received,
    RoundInfo,
    Server,
    ServerUpdate,
    StepFn,
    as_given,
)
from jaxfed.core.stateful import policy_of
from jaxfed.core.types import Key, Params, Scalar
from jaxfed.layout import plans


class ClientResult(NamedTuple):
    """What a client function returns: its local training, the message for the server, and the memory it keeps."""

    local: LocalResult
    message: Message
    memory: PyTree = ()


def compose(
    client: Callable[[ClientContext], ClientResult],
    server_update: ServerUpdate,
    solver: Solver,
    *,
    init_memory: Callable[[Params], PyTree] = lambda params: (),
    advance: Callable[[PyTree, PyTree], PyTree] = tree.total,
) -> FederatedAlgorithm:
    """Make an algorithm of what one client does and what the server does with the cohort's message.

    Args:
      client: one client's round, written for a single client.
      server_update: from the cohort's message to the next parameters.
      solver: what `client` trains with; gives ηₜ, the relaxed initialisation and the policy for model state.
      init_memory: memory of a client that was never drawn, from the initial parameters.
      advance: see `Insides`; by default all of the memory is what the server sums up.
    """
    rule, policy = solver.rule, policy_of(solver.loss_fn)
    relaxed, local, averaged = rule.relaxation > 0.0, policy == "local", policy == "average"

    def init(params: Params, num_clients: int, model_state: PyTree = ()) -> Server:
        check_range("num_clients", num_clients, least=1)
        check_params(params)
        params, model_state = jax.tree.map(jnp.asarray, (params, model_state))
        _check_state(policy, model_state)
        if rule.client_optimiser is not None:
            check_descends("client_optimiser", rule.client_optimiser, params)
        return Server(params, jnp.int32(0), jnp.int32(num_clients), server_update.init(params), model_state)

    def init_client(params: Params, model_state: PyTree = ()) -> ClientRow:
        check_params(params)
        params, model_state = jax.tree.map(jnp.asarray, (params, model_state))
        _check_state(policy, model_state)
        return ClientRow(init_memory(params), params if relaxed else (), model_state if local else ())

    def client_update(server: Server, member: Cohort, key: Key, fetch: Fetch = as_given) -> ClientUpdate:
        start, row = server.params, member.rows
        if relaxed:
            start = corrections.relaxed_start(start, row.last_params, rule.relaxation)
        model_state = row.model_state if local else server.model_state
        learning_rate = rule.learning_rate(server.round)
        given = ClientContext(server, start, row.memory, model_state, member.batches, fetch, learning_rate, key)
        found = client(given)
        after = found.local.model_state
        row = ClientRow(found.memory, found.local.params if relaxed else (), after if local else (), row.uplink)
        found = found._replace(message=found.message._replace(model_state=after if averaged else ()))
        return ClientUpdate(found.message, row, client_info(found, member))

    def update(server: Server, message: Message, num_used: Array) -> Server:
        counts = (number.astype(jnp.result_type(float)) for number in (num_used, server.num_clients))
        after = server_update.apply(server.params, server.extra, Received(message, *counts))
        state = message.model_state if averaged else server.model_state
        before = server.params, server.extra, server.model_state
        params, extra, state = tree.where(num_used > 0, (*after, state), before)
        return server._replace(params=params, extra=extra, model_state=state, round=server.round + 1)

    def message(params: Params) -> Message:
        return Message(**{name: optax.tree.zeros_like(params) for name in ("delta", *server_update.reads)})

    insides = Insides(rule.learning_rate, message, advance, plans.MEAN, averaged, solver.loss_fn)
    step = stepping(client_update, update, insides)
    return FederatedAlgorithm(init, init_client, step, client_update, update, insides=insides)


def stepping(
    client_update: Callable[..., ClientUpdate], server_update: Callable[..., Server], insides: Insides
) -> StepFn:
    """One round of its two halves: all clients of the cohort, their messages made one, the server."""

    def step(
        server: Server, cohort: Cohort, key: Key, *, plan: Plan = plans.vmap(), fetch: Fetch = as_given
    ) -> tuple[Server, ClientRow, RoundInfo]:
        _check_cohort(cohort)

        def member_update(member: Cohort, client_key: Key) -> ClientUpdate:
            return client_update(server, member, client_key, fetch)

        round_key = jax.random.fold_in(key, server.round)
        run = functools.partial(plans.gathered, plan) if insides.aggregate.gathers else plan
        result = run(member_update, cohort, round_key)
        message, used = insides.aggregate.combine(result, cohort, round_key)
        rows = result.rows if used is result.used else tree.where(used, result.rows, cohort.rows)
        result = result._replace(used=used, rows=rows)
        info = round_info(result, message, cohort, insides.learning_rate(server.round))
        if _narrow((server.params, server.model_state)):
            message = tree.cast_like(message, _sent(member_update, cohort, round_key))
        received = info.num_used if insides.aggregate.noise is None else jnp.maximum(info.num_used, 1)
        return server_update(server, message, received), rows, info

    return step


def _narrow(values: PyTree) -> bool:
    """Whether some of it is added up in a wider dtype than its own."""
    return any(leaf.dtype != tree.wide(leaf.dtype) for leaf in jax.tree.leaves(values))


def _sent(client: ClientFn, cohort: Cohort, key: Key) -> Message:
    """Shapes and dtypes of one client's message."""
    return jax.eval_shape(lambda: client(jax.tree.map(lambda leaf: leaf[0], cohort), key).message)


def client_info(found: ClientResult, member: Cohort) -> ClientInfo:
    """Facts about one client: means over the steps that had data."""
    steps, mask = found.local.steps, member.batches["mask"]
    loss, gradient_norm, aux = tree.masked_mean(steps[:3], steps.active)
    norms = tree.norm(found.local.delta), tree.norm(found.memory)
    padding = 1.0 - jnp.mean(mask.astype(jnp.float32))
    samples = jnp.sum(mask, dtype=jnp.int32)
    size = jnp.float32(sum(leaf.nbytes for leaf in jax.tree.leaves(found.message)))
    return ClientInfo(loss, gradient_norm, *norms, found.local.num_steps, padding, samples, size, aux)


def round_info(result: CohortResult, message: Message, cohort: Cohort, learning_rate: Scalar) -> RoundInfo:
    """Facts about one round; ‖Uᵢ − Ū‖² is averaged as mean ‖Uᵢ‖² − ‖Ū‖². Means over no client are NaN."""
    num_used = jnp.sum(result.used, dtype=jnp.int32)
    client = tree.masked_mean(result.clients, result.used)
    squares = plans.weighted_sum(jnp.square(result.clients.delta_norm), cohort, result.used)
    mean_square = squares / jnp.where(result.weight > 0, result.weight, 1).astype(squares.dtype)
    spread = jnp.maximum(mean_square - jnp.square(tree.norm(message.delta)), 0.0)
    client, spread = jax.tree.map(lambda mean: jnp.where(num_used > 0, mean, jnp.nan), (client, spread))
    return RoundInfo(client, result.clients, result.used, result.excluded, num_used, spread, learning_rate)


def _check_state(policy: str | None, model_state: PyTree) -> None:
    whole = [leaf.dtype for leaf in jax.tree.leaves(model_state) if not jnp.issubdtype(leaf.dtype, jnp.inexact)]
    if policy == "average" and whole:
        raise ValueError(f"model state must be floating-point to be averaged, got {whole[0]}; keep it local or frozen")
    if bool(jax.tree.leaves(model_state)) != (policy is not None):
        given, remedy = ("no", "pass model_state=...") if policy else ("a", "wrap the loss function in jaxfed.Stateful")
        raise ValueError(f"expected model state just where the loss function is Stateful, got {given} state; {remedy}")


def _check_cohort(cohort: Cohort) -> None:
    """Shapes only, so it costs nothing in a compiled round: [C] ids, [C, K, B] mask, [C, K, B, ...] arrays."""
    if "mask" not in cohort.batches:
        raise ValueError(f'cohort.batches needs "mask", bool [C, K, B], beside {sorted(cohort.batches)}')
    expected = cohort.batches["mask"].shape
    if len(expected) != 3 or cohort.ids.shape != expected[:1]:
        raise ValueError(f'expected ids [C] and "mask" [C, K, B], got {cohort.ids.shape} and {expected}')
    if cohort.weights is not None and cohort.weights.shape != cohort.ids.shape:
        raise ValueError(f"expected weights [C] = {cohort.ids.shape}, got {cohort.weights.shape}")
    for name, array in cohort.batches.items():
        if array.shape[:3] != expected:
            raise ValueError(f"batch array {name!r} must begin with [C, K, B] = {expected}, got {array.shape}")
