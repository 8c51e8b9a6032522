"""Drafts: rolling out windows, one or many branches at a time, over one shared prefix cache.

R·γ + 1 draft tokens are processed per step, whatever the length of the prefix: the one is the last token of the old
window, whose row nothing has needed so far.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxspec.drafts import _lookahead as lookahead
from jaxspec.drafts.branches import Branches, Drafted, Notes, Pending, Proposer, Scratch, branching, take
from jaxspec.models.attention import cached, fill, write
from jaxspec.models.base import Array, Cache, Network, Params
from jaxspec.verify import Message
from jaxspec.verify.acceptance import Acceptance
from jaxspec.verify.target import Request


def rollout(
    network: Network,
    params: Params,
    cache: Cache,
    roots: Pending,
    window: int,
    proposer: Proposer,
    pending: Pending | None = None,
    place: tuple[int, int] | None = None,
) -> tuple[Branches, Cache]:
    """Continues every root by ``window`` tokens.

    Args:
        network: the draft; one with streams takes fewer passes for the same tokens.
        params: its parameters.
        cache: the draft's rows, shared by all branches; R·γ at its end are scratch.
        roots: first tokens of the branches and their positions, each [B, R]; branch b sees the rows below its position.
        window: γ, tokens to draft for every branch.
        proposer: how they are drawn.
        pending: a token that is run along with the first step so that the cache gets its row.
        place: of the first branch in a scratch for so many, where another rollout has filled the rest; default (0, R).

    Returns:
        The branches, and the cache with the pending row and the branches' rows in its scratch.
    """
    branches = roots.token.shape[1]
    first_place, places = place or (0, branches)
    scratch = Scratch(places, window, cache[0][0].shape[2], first_place, branches)
    if network.streams is not None:
        return lookahead.rollout(lookahead.Task(network, params, roots, proposer, scratch), cache, pending)

    def run(
        say: Array | None, tokens: Array, positions: Array, number: Array | int, cache: Cache, pending: Pending | None
    ) -> tuple[tuple[Array, Array | None, Cache], tuple[Array, Notes]]:
        attend = branching(scratch, roots.position, number, pending)
        x = network.embed(params, tokens)
        x, cache = network.blocks(params, x, positions, cache, attend, range(network.config.num_layers))
        own = proposer._replace(seen=say)
        said, notes = own(network.logits(params, x[:, :, -branches:]), roots.position + number + 1)
        return (said, own.after(said).seen, cache), (said, notes)

    def step(
        carry: tuple[Array, Array | None, Cache], number: Array
    ) -> tuple[tuple[Array, Array | None, Cache], tuple[Array, Notes]]:
        tokens, seen, cache = carry
        return run(seen, tokens, roots.position + number, number, cache, None)

    if pending is None:
        (_, _, cache), drafted = jax.lax.scan(step, (roots.token, proposer.seen, cache), jnp.arange(window))
    else:
        tokens, at = (jnp.concatenate([a[:, None], b], axis=1) for a, b in zip(pending, roots, strict=True))
        carry, first = run(proposer.seen, tokens, at, 0, cache, pending)
        (_, _, cache), rest = jax.lax.scan(step, carry, jnp.arange(1, window))
        drafted = jax.tree.map(lambda one, many: jnp.concatenate([one[None], many]), first, rest)
    tokens, notes = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 2), drafted)
    return Branches(tokens, notes, jnp.full_like(roots.token, window)), cache


class Window(NamedTuple):
    """A window to verify: ``tokens`` [B, γ] and the law they were drawn from, where the rule wants it."""

    tokens: Array
    law: Any


def commit(cache: Cache, drafted: Drafted, position: Array) -> tuple[Window, Message | None, Cache]:
    """Makes a drafted window the next one: its rows are written from ``position`` [B] on. Also its other candidates."""
    rows = jax.tree.map(lambda old, new: write(old, new, position), cache, drafted.rows)
    return Window(drafted.tokens, drafted.notes.law), drafted.notes.likely, rows


@partial(jax.jit, static_argnames=("network", "acceptance", "window", "capacity", "num_candidates"))
def first_window(
    network: Network,
    acceptance: Acceptance,
    params: Params,
    request: Request,
    window: int,
    capacity: int,
    num_candidates: int = 0,
) -> tuple[Window, Message | None, Cache]:
    """Runs the prompts through the draft and drafts the first window."""
    cache = fill(network, params, request.tokens, capacity)
    last = jnp.take_along_axis(request.tokens, request.lengths[:, None] - 1, axis=1)[:, 0]
    proposer = Proposer(acceptance, request.sampling, request.seen, num_candidates)
    return drafted_next(network, params, cache, Pending(last, request.lengths - 1), window, proposer)


def drafted_next(
    network: Network,
    params: Params,
    cache: Cache,
    root: Pending,
    window: int,
    proposer: Proposer,
    pending: Pending | None = None,
) -> tuple[Window, Message | None, Cache]:
    """Drafts one window after ``root`` and commits it; the proposer has ``seen`` [B, V]."""
    own = proposer if proposer.seen is None else proposer._replace(seen=proposer.seen[:, None])
    drafted, cache = drafted_after(network, params, cache, root, window, own, pending)
    return commit(cache, drafted, root.position)


def drafted_after(
    network: Network,
    params: Params,
    cache: Cache,
    root: Pending,
    window: int,
    proposer: Proposer,
    pending: Pending | None = None,
) -> tuple[Drafted, Cache]:
    """Drafts one window; its rows are in the scratch only."""
    roots = Pending(root.token[:, None], root.position[:, None])
    rolled, cache = rollout(network, params, cache, roots, window, proposer, pending)
    return take(rolled, cache, jnp.zeros_like(root.token)), cache


def extend(network: Network, params: Params, cache: Cache, tokens: Array, position: Array) -> tuple[Array, Cache]:
    """Gives the cache the rows of tokens [B, T] from ``position`` [B] on; what the draft says after each: [V, B, T]."""
    positions = position[:, None] + jnp.arange(tokens.shape[1])[None]
    x = network.embed(params, tokens)
    x, cache = network.blocks(params, x, positions, cache, cached(positions), range(network.config.num_layers))
    return network.logits(params, x), cache
