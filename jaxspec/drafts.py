"""Drafts: rolling out windows, one or many branches at a time, over one shared prefix cache.

All branches read the draft's cache through masks. The last R·γ rows before the free one are scratch: row n·R + b of
them is the n-th row of branch b. The rows of the branch that comes true are copied to their place afterwards. So
R·γ + 1 draft tokens are processed per step, whatever the length of the prefix: the one is the last token of the old
window, whose row nothing has needed so far.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.cache import attend_cache, cached, init_cache, visible, write
from jaxspec.sampling import greedy
from jaxspec.types import Array, Attend, Cache, Network, Params, Rows


class Pending(NamedTuple):
    """A token whose row the cache still lacks: ``token`` and ``position``, both [B] int32."""

    token: Array
    position: Array


class Drafted(NamedTuple):
    """One drafted window: ``tokens`` [B, γ], and per layer its key and value rows [B, G, γ, head_size]."""

    tokens: Array
    rows: Cache


def rollout(
    network: Network, params: Params, cache: Cache, roots: Pending, window: int, pending: Pending | None = None
) -> tuple[Array, Cache]:
    """Continues every root by ``window`` tokens.

    Args:
        network: the draft.
        params: its parameters.
        cache: the draft's rows, shared by all branches; R·γ at its end are scratch.
        roots: first tokens of the branches and their positions, each [B, R]; branch b sees the rows below its position.
        window: γ, tokens to draft for every branch.
        pending: a token that is run along with the first step so that the cache gets its row.

    Returns:
        Tokens of the branches [B, R, γ], and the cache with the pending row and the branches' rows in its scratch.
    """
    branches = roots.token.shape[1]
    scratch = Scratch(branches, window, cache[0][0].shape[2])

    def run(tokens: Array, positions: Array, cache: Cache, attend: Attend) -> tuple[Array, Cache]:
        layers = range(network.config.num_layers)
        x, cache = network.blocks(params, network.embed(params, tokens), positions, cache, attend, layers)
        return greedy(network.logits(params, x[:, :, -branches:])), cache

    def step(carry: tuple[Array, Cache], number: Array) -> tuple[tuple[Array, Cache], Array]:
        tokens, cache = carry
        attend = branching(scratch, roots.position, number)
        return run(tokens, roots.position + number, cache, attend), tokens

    tokens, positions = roots
    if pending is not None:
        tokens, positions = (jnp.concatenate([a[:, None], b], axis=1) for a, b in zip(pending, roots, strict=True))
    first = run(tokens, positions, cache, branching(scratch, roots.position, 0, pending))
    (last, cache), drafted = jax.lax.scan(step, first, jnp.arange(1, window))
    return jnp.moveaxis(jnp.concatenate([drafted, last[None]]), 0, 2), cache


class Scratch(NamedTuple):
    """Where the rows of R branches of γ tokens lie in a cache of ``capacity`` rows."""

    branches: int
    window: int
    capacity: int

    @property
    def start(self) -> int:
        """First scratch row."""
        return self.capacity - 1 - self.branches * self.window

    def own(self, number: Array | int) -> Array:
        """Which rows belong to a branch once it has row ``number``: [R, S]."""
        place = np.arange(self.capacity) - self.start
        inside = (place >= 0) & (place < self.branches * self.window)
        mine = inside & (place % self.branches == np.arange(self.branches)[:, None])
        return mine & (place // self.branches <= number)[None]


def branching(scratch: Scratch, lengths: Array, number: Array | int, pending: Pending | None = None) -> Attend:
    """Attention of branches to the shared rows below ``lengths`` [B, R] and to rows of their own, which they extend.

    Args:
        scratch: where the branches' rows lie.
        lengths: shared rows that a branch sees.
        number: own rows that it has so far, the same for all.
        pending: token 0 of every sequence belongs to no branch and leaves its row in the shared part.
    """
    seen = visible(scratch.capacity, lengths) | scratch.own(number)[None]
    if pending is not None:
        before = visible(scratch.capacity, pending.position[:, None] + 1)
        seen = jnp.concatenate([before, seen], axis=1)

    def extended(rows: Array, new: Array) -> Array:
        if pending is not None:
            rows = write(rows, new[:, :, :1], pending.position)
        own = new[:, :, -scratch.branches :]
        return jax.lax.dynamic_update_slice_in_dim(rows, own, scratch.start + number * scratch.branches, axis=2)

    def attend(queries: Array, keys: Array, values: Array, rows: Rows) -> tuple[Array, Rows]:
        rows = extended(rows[0], keys), extended(rows[1], values)
        return attend_cache(queries, rows, seen), rows

    return attend


def take(tokens: Array, cache: Cache, branch: Array) -> Drafted:
    """The window of one ``branch`` [B] of every sequence, from what ``rollout`` gave: ``tokens`` [B, R, γ], cache."""
    batch, branches, window = tokens.shape
    start = Scratch(branches, window, cache[0][0].shape[2]).start

    def pick(rows: Array) -> Array:
        scratch = rows[:, :, start:-1].reshape(batch, rows.shape[1], window, branches, -1)
        return jnp.take_along_axis(scratch, branch[:, None, None, None, None], axis=3)[:, :, :, 0]

    return Drafted(jnp.take_along_axis(tokens, branch[:, None, None], axis=1)[:, 0], jax.tree.map(pick, cache))


def commit(cache: Cache, drafted: Drafted, position: Array) -> tuple[Array, Cache]:
    """Makes a drafted window the next one [B, γ]: its rows are written from ``position`` [B] on."""
    return drafted.tokens, jax.tree.map(lambda old, new: write(old, new, position), cache, drafted.rows)


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
    return drafted_next(network, params, cache, Pending(last[:, 0], lengths - 1), window)


def drafted_next(
    network: Network, params: Params, cache: Cache, root: Pending, window: int, pending: Pending | None = None
) -> tuple[Array, Cache]:
    """Drafts one window [B, γ] after ``root`` and commits it."""
    roots = Pending(root.token[:, None], root.position[:, None])
    tokens, cache = rollout(network, params, cache, roots, window, pending)
    return commit(cache, take(tokens, cache, jnp.zeros_like(root.token)), root.position)
