"""Drafts: rolling out windows, one or many branches at a time, over one shared prefix cache.

All branches read the draft's cache through masks; only their own γ rows are kept per branch, and the rows of the branch
that comes true are written to their place afterwards. So R·γ + 1 draft tokens are processed per step, whatever the
length of the prefix: the one is the last token of the old window, whose row nothing has needed so far.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxspec.cache import cached, init_cache, softmax_attention, visible, write
from jaxspec.sampling import greedy
from jaxspec.types import Array, Attend, Cache, Network, Params, Rows


class Pending(NamedTuple):
    """A token whose row the cache still lacks: ``token`` and ``position``, both [B] int32."""

    token: Array
    position: Array


class Rollout(NamedTuple):
    """Branches rolled out: ``tokens`` [B, R, γ], and per layer the key and value rows [B, G, R, γ, head_size]."""

    tokens: Array
    rows: Cache


def rollout(
    network: Network, params: Params, cache: Cache, roots: Pending, window: int, pending: Pending | None = None
) -> tuple[Rollout, Cache]:
    """Continues every root by ``window`` tokens.

    Args:
        network: the draft.
        params: its parameters.
        cache: the draft's rows, shared by all branches.
        roots: first tokens of the branches and their positions, each [B, R]; branch b sees the rows below its position.
        window: γ, tokens to draft for every branch.
        pending: a token that is run along with the first step so that the cache gets its row.

    Returns:
        The branches, and the cache with the pending row.
    """
    positions, x, state = _first_step(network, params, cache, roots, window, pending)
    cache, own = _unzip(state)
    tokens = greedy(network.logits(params, x))

    def step(carry: tuple[Array, Cache], number: Array) -> tuple[tuple[Array, Cache], Array]:
        tokens, own = carry
        x, state = _run(network, params, tokens, positions + number, _zip(cache, own), branching(positions, number))
        return (greedy(network.logits(params, x)), _unzip(state)[1]), tokens

    (last, own), drafted = jax.lax.scan(step, (tokens, own), jnp.arange(1, window))
    return Rollout(jnp.moveaxis(jnp.concatenate([drafted, last[None]]), 0, 2), own), cache


def _first_step(
    network: Network, params: Params, cache: Cache, roots: Pending, window: int, pending: Pending | None
) -> tuple[Array, Array, Any]:
    """The roots, and the pending token beside them: positions and hidden states of the roots, rows shared and own."""
    config, branches = network.config, roots.token.shape[1]
    tokens, positions, place = roots.token, roots.position, None
    if pending is not None:
        tokens = jnp.concatenate([pending.token[:, None], tokens], axis=1)
        positions, place = jnp.concatenate([pending.position[:, None], positions], axis=1), pending.position
    shape = (tokens.shape[0], config.num_kv_heads, tokens.shape[1], window, config.head_size)
    own = tuple((jnp.zeros(shape), jnp.zeros(shape)) for _ in range(config.num_layers))
    attend = branching(positions, jnp.int32(0), place)
    x, state = _run(network, params, tokens, positions, _zip(cache, own), attend)
    cache, own = _unzip(state)
    own = jax.tree.map(lambda rows: rows[:, :, -branches:], own)
    return positions[:, -branches:], x[:, :, -branches:], _zip(cache, own)


def _run(network: Network, params: Params, tokens: Array, positions: Array, state: Any, attend: Attend) -> Any:
    layers = range(network.config.num_layers)
    return network.blocks(params, network.embed(params, tokens), positions, state, attend, layers)


def _zip(cache: Cache, own: Cache) -> tuple[tuple[Rows, Rows], ...]:
    return tuple(zip(cache, own, strict=True))


def _unzip(state: tuple[tuple[Rows, Rows], ...]) -> tuple[Cache, Cache]:
    return tuple(shared for shared, _ in state), tuple(own for _, own in state)


def branching(lengths: Array, number: Array, place: Array | None = None) -> Attend:
    """Attention of branches to the shared rows below ``lengths`` [B, T] and to their own rows, which they extend.

    Args:
        lengths: shared rows that a branch sees.
        number: own rows that it has so far, the same for all.
        place: where token 0 of every sequence also leaves its row in the shared cache: [B].
    """

    def attend(queries: Array, keys: Array, values: Array, rows: tuple[Rows, Rows]) -> tuple[Array, Any]:
        shared, own = rows
        own = _extended(own[0], keys, number), _extended(own[1], values, number)
        if place is not None:
            shared = write(shared[0], keys[:, :, :1], place), write(shared[1], values[:, :, :1], place)
        seen = visible(shared[0].shape[2], lengths)
        own_seen = jnp.arange(own[0].shape[3]) <= number
        return softmax_attention(queries, shared[0], shared[1], seen, own, own_seen), (shared, own)

    return attend


def _extended(own: Array, new: Array, number: Array) -> Array:
    """Own rows [B, G, T, γ, head_size] with row ``number`` set to new [B, G, T, head_size]."""
    return jax.lax.dynamic_update_slice_in_dim(own, new[:, :, :, None], number, axis=3)


def take(rolled: Rollout, branch: Array) -> Rollout:
    """The rollout of one ``branch`` [B] of every sequence, R = 1."""
    tokens = jnp.take_along_axis(rolled.tokens, branch[:, None, None], axis=1)
    pick = branch[:, None, None, None, None]
    return Rollout(tokens, jax.tree.map(lambda rows: jnp.take_along_axis(rows, pick, axis=2), rolled.rows))


def commit(cache: Cache, rolled: Rollout, position: Array) -> tuple[Array, Cache]:
    """Makes the only branch of a rollout the next window [B, γ]: its rows are written from ``position`` [B] on."""
    rows = jax.tree.map(lambda old, new: write(old, new[:, :, 0], position), cache, rolled.rows)
    return rolled.tokens[:, 0], rows


@partial(jax.jit, static_argnames=("network", "window", "capacity"))
def first_window(
    network: Network, params: Params, tokens: Array, lengths: Array, window: int, capacity: int
) -> tuple[Array, Cache]:
    """Runs the prompts [B, P] through the draft and drafts the first window [B, γ]."""
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1])[None], tokens.shape)
    cache = init_cache(network.config, tokens.shape[0], capacity)
    x = network.embed(params, tokens)
    _, cache = network.blocks(params, x, positions, cache, cached(positions), range(network.config.num_layers))
    last = jnp.take_along_axis(tokens, lengths[:, None] - 1, axis=1)
    rolled, cache = rollout(network, params, cache, Pending(last, lengths[:, None] - 1), window)
    return commit(cache, rolled, lengths - 1)
