"""Compose a client function and a server update into a federated algorithm."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from jaxfed.algorithms.parts import corrections
from jaxfed.algorithms.parts._local import ClientContext, LocalResult, Solver
from jaxfed.algorithms.parts.optimisers import check_descends
from jaxfed.core import keys, tree
from jaxfed.core.checks import check_range, equals
from jaxfed.core.losses import check_params
from jaxfed.core.protocol import (
    ClientFn,
    ClientInfo,
    ClientMessage,
    ClientRow,
    ClientUpdate,
    Cohort,
    CohortResult,
    FederatedAlgorithm,
    Fetch,
    Parts,
    Plan,
    Received,
    RoundInfo,
    Server,
    ServerUpdate,
    StepFn,
    identity_fetch,
)
from jaxfed.core.stateful import policy_of
from jaxfed.core.types import Key, Params, Scalar
from jaxfed.layout import plans


class ClientResult(NamedTuple):
    """Result of a client function: its local training, the message for the server, and the memory it keeps."""

    local: LocalResult
    message: ClientMessage
    memory: PyTree = ()


def compose(
    client: Callable[[ClientContext], ClientResult],
    server_update: ServerUpdate,
    solver: Solver,
    *,
    init_memory: Callable[[Params], PyTree] = lambda params: (),
    advance: Callable[[PyTree, PyTree], PyTree] = optax.tree.add,
    personal: Callable[[Params, PyTree], Params] = lambda params, memory: params,
) -> FederatedAlgorithm:
    """Compose an algorithm from the client's and the server's part of a round.

    Args:
        client: `client(context) -> ClientResult`, one client's round, written for a single client.
        server_update: from the cohort's message to the next parameters.
        solver: the solver that `client` calls; determines ηₜ, relaxed initialisation and the policy for model state.
        init_memory: memory of a client that was never drawn, from the initial parameters.
        advance: see `jaxfed.core.Parts`; by default the server sums up the whole memory.
        personal: `personal(params, memory) -> params`: the parameters that a client itself uses, from the server's and
            its memory; by default the server's.
    """
    rule, policy = solver.rule, policy_of(solver.loss_fn)
    relaxed, local, averaged = not equals(rule.relaxation, 0.0), policy == "local", policy == "average"

    def init(params: Params, num_clients: int, model_state: PyTree = ()) -> Server:
        check_range("num_clients", num_clients, least=1, whole=True)
        params, model_state = _arrays(policy, params, model_state)
        if rule.client_optimiser is not None:
            check_descends("client_optimiser", rule.client_optimiser, params)
        return Server(params, jnp.int32(0), jnp.int32(num_clients), server_update.init(params), model_state)

    def init_client(params: Params, model_state: PyTree = ()) -> ClientRow:
        params, model_state = _arrays(policy, params, model_state)
        return ClientRow(init_memory(params), params if relaxed else (), model_state if local else ())

    def client_update(server: Server, member: Cohort, key: Key, fetch: Fetch = identity_fetch) -> ClientUpdate:
        start, row = server.params, member.rows
        if relaxed:
            start = corrections.relaxed_start(start, row.last_params, rule.relaxation)
        model_state = row.model_state if local else server.model_state
        learning_rate = rule.learning_rate(server.round)
        context = ClientContext(server, start, row.memory, model_state, member.batches, fetch, learning_rate, key)
        result = client(context)
        after = result.local.model_state
        row = ClientRow(result.memory, result.local.params if relaxed else (), after if local else (), row.uplink)
        result = result._replace(message=result.message._replace(model_state=after if averaged else ()))
        return ClientUpdate(result.message, row, client_info(result, member))

    def update(server: Server, message: ClientMessage, num_used: Array) -> Server:
        counts = (number.astype(jnp.result_type(float)) for number in (num_used, server.num_clients))
        after = server_update.apply(server.params, server.extra, Received(message, *counts))
        state = message.model_state if averaged else server.model_state
        before = server.params, server.extra, server.model_state
        params, extra, state = tree.where(num_used > 0, (*after, state), before)
        return server._replace(params=params, extra=extra, model_state=state, round=server.round + 1)

    def own_model(server: Server, row: ClientRow) -> tuple[Params, PyTree]:
        return personal(server.params, row.memory), row.model_state if local else server.model_state

    parts = Parts(rule.learning_rate, advance, plans.MEAN, averaged, solver.loss_fn, personal=own_model)
    step = make_step(client_update, update, parts)
    return FederatedAlgorithm(init, init_client, step, client_update, update, parts=parts)


def make_step(client_update: Callable[..., ClientUpdate], server_update: Callable[..., Server], parts: Parts) -> StepFn:
    """Compose one round from its two halves: all clients of the cohort, then aggregate and server."""

    def step(
        server: Server, cohort: Cohort, key: Key, *, plan: Plan = plans.vmap(), fetch: Fetch = identity_fetch
    ) -> tuple[Server, ClientRow, RoundInfo]:
        _check_cohort(cohort)

        def member_update(member: Cohort, client_key: Key) -> ClientUpdate:
            return client_update(server, member, client_key, fetch)

        round_key = keys.round_key(key, server.round)
        run = functools.partial(plans.gathered, plan) if parts.aggregate.gathers else plan
        result = run(member_update, cohort, round_key)
        sent = _sent(member_update, cohort, round_key) if _narrow((server.params, server.model_state)) else None
        return finish_round(server_update, parts, server, cohort, round_key, result, sent)

    return step


def finish_round(
    server_update: Callable[..., Server],
    parts: Parts,
    server: Server,
    cohort: Cohort,
    key: Key,
    result: CohortResult,
    sent: ClientMessage | None,
) -> tuple[Server, ClientRow, RoundInfo]:
    """Return server, rows and info from the result of a plan: what a server does once its clients have answered.

    Args:
        server_update: of the algorithm.
        parts: of the algorithm.
        server: before the round.
        cohort: of the round.
        key: of the round.
        result: of the plan; of `plans.gathered` if the aggregate needs all messages.
        sent: one client's message, or its shapes, where the sums are wider than what clients send.
    """
    message, used = parts.aggregate.combine(result, cohort, key)
    if used is not result.used:
        weight = plans.weighted_sum(jnp.ones(used.shape), cohort, used)
        result = result._replace(used=used, rows=tree.where(used, result.rows, cohort.rows), weight=weight)
    info = round_info(result, message, cohort, parts.learning_rate(server.round))
    if sent is not None:
        message = optax.tree.cast_like(message, sent)
    received = info.num_used if parts.aggregate.noise is None else jnp.maximum(info.num_used, 1)
    return server_update(server, message, received), result.rows, info


def received_as(update: ClientUpdate, sent: ClientMessage, parts: Parts) -> ClientUpdate:
    """Return a client's update whose message the server receives as `sent`.

    Where the server keeps a running sum of changes of rows, the client's row moves by the change that was received.
    """
    memory = update.row.memory
    if jax.tree.leaves(sent.total):
        memory = parts.advance(memory, optax.tree.sub(sent.total, update.message.total))
    return update._replace(message=sent, row=update.row._replace(memory=memory))


def _narrow(values: PyTree) -> bool:
    """Return whether some leaves are summed in a wider dtype than their own."""
    return any(leaf.dtype != tree.wide(leaf.dtype) for leaf in jax.tree.leaves(values))


def _sent(client: ClientFn, cohort: Cohort, key: Key) -> ClientMessage:
    """Return shapes and dtypes of one client's message."""
    return jax.eval_shape(lambda: client(jax.tree.map(lambda leaf: leaf[0], cohort), key).message)


def client_info(result: ClientResult, member: Cohort) -> ClientInfo:
    """Compute a client's metrics: means over the steps that had data."""
    steps, mask = result.local.steps, member.batches["mask"]
    loss, gradient_norm, aux = tree.masked_mean(steps[:3], steps.active)
    norms = tree.norm(result.local.delta), tree.norm(result.memory)
    padding = 1.0 - jnp.mean(mask.astype(jnp.float32))
    samples = jnp.sum(mask, dtype=jnp.int32)
    size = jnp.float32(sum(leaf.nbytes for leaf in jax.tree.leaves(result.message)))
    return ClientInfo(loss, gradient_norm, *norms, result.local.num_steps, padding, samples, size, aux)


def round_info(result: CohortResult, message: ClientMessage, cohort: Cohort, learning_rate: Scalar) -> RoundInfo:
    """Compute a round's metrics; means over no client are NaN."""
    num_used = jnp.sum(result.used, dtype=jnp.int32)
    client = tree.masked_mean(result.clients, result.used)
    squares = plans.weighted_sum(jnp.square(result.clients.delta_norm), cohort, result.used)
    mean_square = squares / jnp.where(result.weight > 0, result.weight, 1).astype(squares.dtype)
    spread = jnp.maximum(mean_square - jnp.square(tree.norm(message.delta)), 0.0)
    client, spread = jax.tree.map(lambda mean: jnp.where(num_used > 0, mean, jnp.nan), (client, spread))
    return RoundInfo(cohort.ids, client, result.clients, result.used, result.excluded, num_used, spread, learning_rate)


def _arrays(policy: str | None, params: Params, model_state: PyTree) -> tuple[Params, PyTree]:
    """Return both with arrays as leaves; raise TypeError or ValueError if an algorithm of this policy refuses them."""
    check_params(params)
    params, model_state = jax.tree.map(jnp.asarray, (params, model_state))
    whole = [leaf.dtype for leaf in jax.tree.leaves(model_state) if not jnp.issubdtype(leaf.dtype, jnp.inexact)]
    if policy == "average" and whole:
        raise ValueError(f"model state must be floating-point to be averaged, got {whole[0]}; keep it local or frozen")
    if bool(jax.tree.leaves(model_state)) != (policy is not None):
        got, remedy = ("no", "pass model_state=...") if policy else ("a", "wrap the loss function in jaxfed.Stateful")
        raise ValueError(
            f"expected model state if the loss function is Stateful, and none otherwise, got {got} state; {remedy}"
        )
    return params, model_state


def _check_cohort(cohort: Cohort) -> None:
    """Raise ValueError unless shapes are ids [C], mask [C, K, B] and arrays [C, K, B, ...]."""
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
