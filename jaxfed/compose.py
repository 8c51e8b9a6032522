"""Puts parts together: a client function and a server update make a federated algorithm."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from jaxfed import cohort as cohorts
from jaxfed import corrections, tree
from jaxfed.algorithm import (
    ClientRow,
    ClientUpdate,
    Cohort,
    FederatedAlgorithm,
    Plan,
    RoundInfo,
    Server,
    ServerUpdate,
)
from jaxfed.checks import check_range
from jaxfed.local import LocalResult, LocalRule
from jaxfed.types import Batch, Key, Params, Scalar


class ClientContext(NamedTuple):
    """What a client function is given.

    Attributes:
      server: what the server broadcasts.
      start: x⁰, where the client begins: xᵗ, or further on under relaxed initialisation.
      memory: the algorithm's own part of the client's row.
      batches: named arrays [K, B, ...].
      learning_rate: ηₜ.
      key: the client's key of this round.
    """

    server: Server
    start: Params
    memory: PyTree
    batches: Batch
    learning_rate: Scalar
    key: Key


class ClientResult(NamedTuple):
    """What a client function returns: its local training, the message for the server, and the memory it keeps."""

    local: LocalResult
    message: PyTree
    memory: PyTree


def compose(
    client: Callable[[ClientContext], ClientResult],
    server_update: ServerUpdate,
    rule: LocalRule,
    *,
    init_memory: Callable[[Params], PyTree] = lambda params: (),
) -> FederatedAlgorithm:
    """Make an algorithm of what one client does and what the server does with the mean message.

    Args:
      client: one client's round, written for a single client.
      server_update: from the mean message to the next parameters.
      rule: gives ηₜ and the relaxed initialisation.
      init_memory: memory of a client that was never drawn, from the initial parameters.
    """
    relaxed = rule.relaxation > 0.0

    def init(params: Params, num_clients: int) -> Server:
        check_range("num_clients", num_clients, least=1)
        params = jax.tree.map(jnp.asarray, params)
        return Server(params, jnp.int32(0), jnp.int32(num_clients), server_update.init(params))

    def init_client(params: Params) -> ClientRow:
        params = jax.tree.map(jnp.asarray, params)
        return ClientRow(init_memory(params), params if relaxed else ())

    def client_update(server: Server, member: Cohort, key: Key) -> ClientUpdate:
        start, row = server.params, member.rows
        if relaxed:
            start = corrections.relaxed_start(start, row.last_params, rule.relaxation)
        context = ClientContext(server, start, row.memory, member.batches, rule.learning_rate(server.round), key)
        local, message, memory = client(context)
        return ClientUpdate(message, ClientRow(memory, local.params if relaxed else ()), local.info)

    def update(server: Server, message: Any, num_used: Array) -> Server:
        participation = num_used.astype(jnp.result_type(float)) / server.num_clients.astype(jnp.result_type(float))
        after = server_update.apply(server.params, server.extra, message, participation)
        params, extra = tree.where(num_used > 0, after, (server.params, server.extra))
        return server._replace(params=params, extra=extra, round=server.round + 1)

    def step(
        server: Server, cohort: Cohort, key: Key, *, plan: Plan = cohorts.vmap()
    ) -> tuple[Server, ClientRow, RoundInfo]:
        _check_cohort(cohort)

        def member_update(member: Cohort, client_key: Key) -> ClientUpdate:
            return client_update(server, member, client_key)

        result = plan(member_update, cohort, jax.random.fold_in(key, server.round))
        info = RoundInfo(result.client, result.num_used, result.excluded, rule.learning_rate(server.round))
        return update(server, result.message, result.num_used), result.rows, info

    return FederatedAlgorithm(init, init_client, step, client_update, update)


def _check_cohort(cohort: Cohort) -> None:
    """Shapes only, so it costs nothing in a compiled round: [C] ids, [C, K, B] mask, [C, K, B, ...] arrays."""
    if "mask" not in cohort.batches:
        raise ValueError(f'cohort.batches needs "mask", bool [C, K, B], beside {sorted(cohort.batches)}')
    expected = cohort.batches["mask"].shape
    if len(expected) != 3 or cohort.ids.shape != expected[:1]:
        raise ValueError(f'expected ids [C] and "mask" [C, K, B], got {cohort.ids.shape} and {expected}')
    for name, array in cohort.batches.items():
        if array.shape[:3] != expected:
            raise ValueError(f"batch array {name!r} must begin with [C, K, B] = {expected}, got {array.shape}")
