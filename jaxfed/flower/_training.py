"""Both halves of a round as compiled functions: the client's training, and the server's step on the replies."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from jaxfed.algorithms.parts import make_step
from jaxfed.core import keys, tree
from jaxfed.core.protocol import ClientRow, ClientUpdate, Cohort, FederatedAlgorithm, Fetch, RoundInfo, Server
from jaxfed.core.types import Key, Params
from jaxfed.data.batches import ClientData
from jaxfed.rows.rounds import RoundConfig, play_alone

ClientRound = Callable[[Server, ClientRow, ClientData, Array, Key], ClientUpdate]
"""`work(server, row, data, client, noise_key) -> update`, for the round that the server is in."""

ServerRound = Callable[[Server, np.ndarray, np.ndarray | None, ClientUpdate, Key], tuple[Server, RoundInfo]]
"""`finish(server, ids [C], weights [C], updates [C, ...], noise_key) -> (server, info)`; id −1: no reply counts."""

NO_ROW = ClientRow((), ())


def server_like(algorithm: FederatedAlgorithm, params: Params, model_state: PyTree = ()) -> Server:
    """Return shapes and dtypes of the broadcast server."""
    return jax.eval_shape(lambda params, model_state: algorithm.init(params, 1, model_state), params, model_state)


def update_like(
    algorithm: FederatedAlgorithm, server: Server, sample: Mapping[str, jax.ShapeDtypeStruct]
) -> ClientUpdate:
    """Return shapes and dtypes of what a client sends, without the row, for samples of these shapes and dtypes."""
    batches = {name: jax.ShapeDtypeStruct((1, 1, *each.shape), each.dtype) for name, each in sample.items()}
    batches["mask"] = jax.ShapeDtypeStruct((1, 1), jnp.bool_)

    def update(batches: Any) -> ClientUpdate:
        row = algorithm.init_client(server.params, server.model_state)
        return algorithm.client_update(server, Cohort(jnp.int32(0), row, batches), jax.random.key(0))

    return jax.eval_shape(update, batches)._replace(row=NO_ROW)


def adds_noise(algorithm: FederatedAlgorithm) -> bool:
    """Return whether the server adds secret noise; its cohorts are then secret too."""
    return algorithm.parts is not None and algorithm.parts.aggregate.noise is not None


def client_round(config: RoundConfig) -> ClientRound:
    """Compile a client's round. If its row is not finite the message is made NaN, so that the server counts neither."""

    def work(server: Server, row: ClientRow, data: ClientData, client: Array, noise_key: Key) -> ClientUpdate:
        update = play_alone(config, server, row, data, client, noise_key)
        finite = tree.all_finite((update.message, update.row))
        return update._replace(
            message=jax.tree.map(lambda leaf: jnp.where(finite, leaf, _invalid(leaf)), update.message)
        )

    return jax.jit(work)


def server_round(config: RoundConfig) -> ServerRound:
    """Compile the server's round: the algorithm's step, with replies instead of local training.

    The replies are passed as batches of the cohort, so that every plan and every aggregate works.

    Raises:
        ValueError: an algorithm that was not composed.
    """
    halves, parts = config.algorithm, config.algorithm.parts
    if parts is None:
        raise ValueError(
            "expected an algorithm with `parts`, got one without; build it with jaxfed.algorithms.parts.compose"
        )

    def finish(
        server: Server, ids: Array, weights: Array | None, updates: ClientUpdate, noise_key: Key
    ) -> tuple[Server, RoundInfo]:
        leaves, structure = jax.tree.flatten(updates)
        replies = {str(at): jnp.expand_dims(leaf, (1, 2)) for at, leaf in enumerate(leaves)}

        def reply(server: Server, member: Cohort, key: Key, fetch: Fetch) -> ClientUpdate:
            return jax.tree.unflatten(structure, [member.batches[str(at)][0, 0] for at in range(len(leaves))])

        step = make_step(reply, halves.server_update, parts)
        cohort = Cohort(ids, NO_ROW, {"mask": jnp.zeros((len(ids), 1, 1), bool), **replies}, weights)
        key = noise_key if adds_noise(halves) else keys.training_key(config.seed)
        server, _, info = step(server, cohort, key, plan=config.plan)
        return server, info

    return jax.jit(finish)


def _invalid(leaf: Array) -> Array:
    return jnp.full_like(leaf, jnp.nan if jnp.issubdtype(leaf.dtype, jnp.inexact) else 0)
