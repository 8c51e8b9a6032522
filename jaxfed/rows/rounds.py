"""Compiled rounds: one round as one program, and many rounds as one program without a word from the host."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

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
from jaxfed.data.batches import Batching, ClientData, draw_indices
from jaxfed.layout.sharding import Shardings, constrain
from jaxfed.rows import DeviceStore

INDEX = "index of the sample"

KEPT = 4
"""Programs of past runs that are kept: another run of the same recipe is not compiled again."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Static configuration of a round: what it is made of.

    Attributes:
      algorithm: init and step.
      batching: how samples become batches.
      plan: how the cohort is laid out.
      longest: samples of the longest client.
      seed: of batches and of the loss function's keys.
      lazy: samples are gathered step by step; else a round's at once, which a plan over a mesh needs.
    """

    # Told apart by ==, since a mapping, or a plan of a user's own, need not have a hash.
    algorithm: FederatedAlgorithm = dataclasses.field(hash=False)
    batching: Batching
    plan: Plan = dataclasses.field(hash=False)
    longest: int
    seed: int
    lazy: bool = True


class World(NamedTuple):
    """What a run only reads: the clients' samples, and how much each client counts, [N] or None."""

    data: ClientData
    weights: Array | None = None


def cohort_of(recipe: Recipe, world: World, round_number: Array, ids: Array, rows: ClientRow) -> Cohort:
    """The cohort of a round; its batches are drawn here, on the device, as indices where `play` fetches."""
    key = keys.round_key(keys.batch_key(recipe.seed), round_number)
    index, mask = draw_indices(world.data, ids, key, recipe.batching, recipe.longest)
    indices = {INDEX: index, "mask": mask}
    batches = indices if recipe.lazy else fetched(world.data, indices)
    weights = None if world.weights is None else world.weights[jnp.maximum(ids, 0)]
    return Cohort(ids, rows, batches, weights)


def one_round(
    recipe: Recipe, server: Server, rows: ClientRow, world: World, ids: Array
) -> tuple[Server, ClientRow, RoundInfo]:
    """Batches drawn and one step: (server, rows [C, ...], info)."""
    cohort = cohort_of(recipe, world, server.round, ids, rows)
    return play(recipe, server, cohort, world)


def play(recipe: Recipe, server: Server, cohort: Cohort, world: World) -> tuple[Server, ClientRow, RoundInfo]:
    """One step on a cohort that is drawn."""
    fetch = functools.partial(fetched, world.data) if recipe.lazy else identity_fetch
    return recipe.algorithm.step(server, cohort, keys.training_key(recipe.seed), plan=recipe.plan, fetch=fetch)


def play_alone(
    recipe: Recipe, server: Server, row: ClientRow, data: ClientData, client: Array, noise_key: Key
) -> ClientUpdate:
    """What one client does in the server's round, where its own samples are all there is.

    Its batches, keys and steps are those that it has in a cohort; noise that nobody else may know is made of a key of
    its own.

    Args:
      recipe: `recipe.longest` is the client's own number of samples; `recipe.plan` plays no part.
      server: as broadcast.
      row: the client's.
      data: of this client alone.
      client: its id, int32 [].
      noise_key: of entropy that only the client has; used where `parts.secret`.
    """

    def own(key: Key) -> Key:
        return keys.client_key(keys.round_key(key, server.round), client)

    index, mask = recipe.batching.slots(own(keys.batch_key(recipe.seed)), data.lengths[0], recipe.longest)
    member, fetch = Cohort(client, row, {INDEX: index, "mask": mask}), functools.partial(fetched, data)
    parts = recipe.algorithm.parts
    secret = {"noise_key": noise_key} if parts is not None and parts.secret else {}
    return recipe.algorithm.client_update(server, member, own(keys.training_key(recipe.seed)), fetch, **secret)


def fetched(data: ClientData, batch: Batch) -> Batch:
    """Samples [..., B, ...] in the place of their indices."""
    return {**{name: array[batch[INDEX]] for name, array in data.arrays.items()}, "mask": batch["mask"]}


BlockFn = Callable[[Server, PyTree, World, Array, Array], tuple[Server, PyTree, RoundInfo]]
"""`block(server, population, world, ids [R, C], count) -> (server, population, infos [R, ...])`, the first `count`."""


def row_like(recipe: Recipe, server: Server) -> ClientRow:
    """Shapes and dtypes of a client's row as the algorithm has it, however it is stored."""
    return jax.eval_shape(recipe.algorithm.init_client, server.params, server.model_state)


def block(recipe: Recipe, store: DeviceStore, places: Shardings) -> BlockFn:
    """Compile R rounds into one program; rows are gathered, in the algorithm's dtypes, and written back inside it.

    The number of rounds done is an argument, so one program serves every block of at most R. The population is donated:
    its rows are updated in place.
    """
    round_once = jax.jit(functools.partial(one_round, recipe))  # jitted here as well: its trace is used twice below

    def rows_of(server: Server, population: PyTree, ids: Array) -> ClientRow:
        return optax.tree.cast_like(store.gather(population, ids), row_like(recipe, server))

    def body(number: Array, carry: tuple, world: World, ids: Array) -> tuple:
        server, population, infos = carry
        here = ids[number]
        server, rows, info = round_once(server, rows_of(server, population, here), world, here)
        infos = jax.tree.map(lambda all_rounds, this: all_rounds.at[number].set(this), infos, info)
        return server, constrain(store.scatter(population, here, rows), places.spread), infos

    def run(server: Server, population: PyTree, world: World, ids: Array, count: Array) -> tuple:
        rows = jax.eval_shape(rows_of, server, population, ids[0])
        _, _, info = jax.eval_shape(round_once, server, rows, world, ids[0])
        empty = jax.tree.map(lambda leaf: jnp.zeros((len(ids), *leaf.shape), leaf.dtype), info)
        start = server, population, empty
        server, population, infos = jax.lax.fori_loop(0, count, lambda n, c: body(n, c, world, ids), start)
        return server, population, constrain(infos, places.everywhere)

    return jax.jit(run, donate_argnums=1)


RoundFn = Callable[[Server, ClientRow, World, Array], tuple[Server, ClientRow, RoundInfo]]
"""`round(server, rows [C, ...] as stored, world, ids [C]) -> (server, new rows as stored, info)`."""


def single(recipe: Recipe) -> RoundFn:
    """Compile one round for rows that lie outside, and go back in the dtypes in which they came."""

    def run(server: Server, rows: ClientRow, world: World, ids: Array) -> tuple[Server, ClientRow, RoundInfo]:
        used = optax.tree.cast_like(rows, row_like(recipe, server))
        server, new, info = one_round(recipe, server, used, world, ids)
        return server, optax.tree.cast_like(new, rows), info

    return jax.jit(run)


kept_block = functools.lru_cache(KEPT)(block)
kept_single = functools.lru_cache(KEPT)(single)
