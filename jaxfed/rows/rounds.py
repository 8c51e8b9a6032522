"""One round as a pure function, and the round of one client on its own: what every engine compiles."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxfed.core import keys
from jaxfed.core.protocol import (
    ClientRow,
    ClientUpdate,
    Cohort,
    FederatedAlgorithm,
    Plan,
    RoundInfo,
    Server,
    identity_fetch,
)
from jaxfed.core.types import Batch, Key
from jaxfed.data.batches import ClientData, draw_indices
from jaxfed.data.batching import Batching
from jaxfed.data.flat import flattened
from jaxfed.data.streams import check_resident, on_host
from jaxfed.layout.sharding import Shardings, put

INDEX = "index of the sample"

PROGRAMS_KEPT = 4
"""Compiled programs that an engine keeps: another run of the same `RoundConfig` is not compiled again."""


@dataclasses.dataclass(frozen=True)
class RoundConfig:
    """Static configuration of a round.

    Attributes:
        algorithm: its `step` is the round.
        batching: how a client's samples become batches.
        plan: how the cohort is laid out over time and devices.
        longest: number of samples of the longest client.
        seed: seed of batches and of the loss function's keys.
        lazy: gather samples step by step; otherwise all of a round at once, which a plan over a mesh needs.
    """

    # Compared by ==: an algorithm holds a mapping, and a user's plan need not have a hash.
    algorithm: FederatedAlgorithm = dataclasses.field(hash=False)
    batching: Batching
    plan: Plan = dataclasses.field(hash=False)
    longest: int
    seed: int
    lazy: bool = True


class World(NamedTuple):
    """What a run only reads: the samples of all clients, and their weights [N] (None: all count the same)."""

    data: ClientData
    weights: Array | None = None


def placed(server: Server, world: World, places: Shardings, *, streams: bool = False) -> tuple[Server, World]:
    """Put what a run begins with on all of its devices; samples flat where the devices are TPUs.

    Args:
        server: before the first round.
        world: what rounds read.
        places: shardings on the devices.
        streams: whether the engine reads samples that stay on the host itself; they are left out.

    Raises:
        ValueError: such samples for another engine.
    """
    if streams and on_host(world.data):
        world = world._replace(data=world.data._replace(arrays={}))
    check_resident(world.data, "a store whose rounds are one program, as DeviceStore's")
    if places.platform == "tpu":
        world = world._replace(data=flattened(world.data))
    return put((server, world), places.everywhere)


def drawn(config: RoundConfig, data: ClientData, round_number: Array, ids: Array) -> Batch:
    """Draw the batches of a round as indices of samples, [C, K, B], with their mask."""
    key = keys.round_key(keys.batch_key(config.seed), round_number)
    index, mask = draw_indices(data, ids, key, config.batching, config.longest)
    return {INDEX: index, "mask": mask}


def cohort_of(
    config: RoundConfig, world: World, round_number: Array, ids: Array, rows: ClientRow, indices: Batch | None = None
) -> Cohort:
    """Return the cohort of a round; its batches are drawn on the device, as indices where `play` gathers samples.

    `indices` are those of batches that were drawn before: of `world.data.arrays`.
    """
    indices = drawn(config, world.data, round_number, ids) if indices is None else indices
    batches = indices if config.lazy else fetched(world.data, indices)
    weights = None if world.weights is None else world.weights[jnp.maximum(ids, 0)]
    return Cohort(ids, rows, batches, weights)


def one_round(
    config: RoundConfig, server: Server, rows: ClientRow, world: World, ids: Array, indices: Batch | None = None
) -> tuple[Server, ClientRow, RoundInfo]:
    """Draw the batches, unless they are given, and do one step; return (server, rows [C, ...], info)."""
    cohort = cohort_of(config, world, server.round, ids, rows, indices)
    return play(config, server, cohort, world)


def play(config: RoundConfig, server: Server, cohort: Cohort, world: World) -> tuple[Server, ClientRow, RoundInfo]:
    """Do one step on a cohort with its batches."""
    fetch = functools.partial(fetched, world.data) if config.lazy else identity_fetch
    return config.algorithm.step(server, cohort, keys.training_key(config.seed), plan=config.plan, fetch=fetch)


def play_alone(
    config: RoundConfig, server: Server, row: ClientRow, data: ClientData, client: Array, noise_key: Key
) -> ClientUpdate:
    """Return the update of one client in the server's round, from its own samples alone.

    Batches, keys and steps are those that the client has in a cohort. Secret noise uses a key of the client's own.

    Args:
        config: `config.longest` is the client's own number of samples; `config.plan` is not used.
        server: as broadcast.
        row: the row of the client.
        data: samples of this client alone.
        client: id of the client, int32 [].
        noise_key: key that only the client has; used where `parts.secret`.
    """

    def own(key: Key) -> Key:
        return keys.client_key(keys.round_key(key, server.round), client)

    index, mask = config.batching.slots(own(keys.batch_key(config.seed)), data.lengths[0], config.longest)
    member, fetch = Cohort(client, row, {INDEX: index, "mask": mask}), functools.partial(fetched, data)
    parts = config.algorithm.parts
    secret = {"noise_key": noise_key} if parts is not None and parts.secret else {}
    return config.algorithm.client_update(server, member, own(keys.training_key(config.seed)), fetch, **secret)


def fetched(data: ClientData, batch: Batch) -> Batch:
    """Replace indices [..., B] by the samples [..., B, ...]."""
    return {**{name: array[batch[INDEX]] for name, array in data.arrays.items()}, "mask": batch["mask"]}


def row_like(config: RoundConfig, server: Server) -> ClientRow:
    """Return shapes and dtypes of a client's row as the algorithm uses it, whatever dtype it is stored in."""
    return jax.eval_shape(config.algorithm.init_client, server.params, server.model_state)
