"""Drafts: rolling out windows, one or many branches at a time, over one shared prefix cache.

All branches read the draft's cache through masks; only their own γ rows are kept per branch, and the rows of the branch
that comes true are written to their place afterwards. So R·γ + 1 draft tokens are processed per step, whatever the
length of the prefix: the one is the last token of the old window, whose row nothing has needed so far.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxspec.cache import cached, init_cache, softmax_attention, visible, write
from jaxspec.sampling import greedy
from jaxspec.types import Array, Attend, Cache, Network, Params


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
    ahead = 0 if pending is None else 1
    tokens, lengths = roots.token, roots.position
    if pending is not None:
        tokens = jnp.concatenate([pending.token[:, None], tokens], axis=1)
        lengths = jnp.concatenate([pending.position[:, None], lengths], axis=1)
    own: tuple = ((),) * network.config.num_layers
    drafted = []
    for step in range(window):
        place = pending.position if step == 0 and pending is not None else None
        state = tuple(zip(cache, own, strict=True))
        x, state = network.blocks(
            params, network.embed(params, tokens), lengths + step, state, branching(lengths, place), range(len(own))
        )
        cache, own = (tuple(part) for part in zip(*state, strict=True))
        if step == 0:
            own = tuple(tuple(rows[:, :, ahead:] for rows in layer) for layer in own)
            x, lengths = x[:, :, ahead:], lengths[:, ahead:]
        tokens = greedy(network.logits(params, x))
        drafted.append(tokens)
    return Rollout(jnp.stack(drafted, axis=2), own), cache


def branching(lengths: Array, place: Array | None) -> Attend:
    """Attention of branches to the shared rows below ``lengths`` [B, T] and to their own rows, which they extend.

    ``place`` [B] is where token 0 of every sequence also leaves its row in the shared cache.
    """

    def attend(queries: Array, keys: Array, values: Array, rows: tuple) -> tuple[Array, tuple]:
        shared, own = rows
        new = keys[:, :, :, None], values[:, :, :, None]
        own = tuple(jnp.concatenate(pair, axis=3) for pair in zip(own, new, strict=True)) if own else new
        if place is not None:
            shared = tuple(write(old, row[:, :, :1], place) for old, row in zip(shared, (keys, values), strict=True))
        seen = visible(shared[0].shape[2], lengths)
        return softmax_attention(queries, shared[0], shared[1], seen, own), (shared, own)

    return attend


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
