"""Drafts: rolling out windows, one or many branches at a time, over one shared prefix cache.

All branches read the draft's cache through masks. The last R·γ rows before the free one are scratch: row n·R + b of
them is the n-th row of branch b. The rows of the branch that comes true are copied to their place afterwards. So
R·γ + 1 draft tokens are processed per step, whatever the length of the prefix: the one is the last token of the old
window, whose row nothing has needed so far.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.acceptance import Acceptance
from jaxspec.cache import attend_cache, cached, fill, visible, write
from jaxspec.candidates import Message, likely
from jaxspec.config import Scores
from jaxspec.decoding import Request
from jaxspec.sampling import Sampling, perturbed
from jaxspec.types import Array, Attend, Cache, Network, Params, Rows


class Pending(NamedTuple):
    """A token whose row the cache still lacks: ``token`` and ``position``, both [B] int32."""

    token: Array
    position: Array


class Notes(NamedTuple):
    """What comes with drafted tokens, leaves shaped as they are with trailing axes; None where nobody asks for it.

    Attributes:
        law: what they were drawn from, for the rule of acceptance.
        likely: the draft's other candidates, for the policy.
    """

    law: Any
    likely: Message | None


class Branches(NamedTuple):
    """Rolled out branches: ``tokens`` [B, R, γ], and their notes."""

    tokens: Array
    notes: Notes


class Drafted(NamedTuple):
    """One drafted window: ``tokens`` [B, γ], its notes, and per layer its key and value rows [B, G, γ, head_size]."""

    tokens: Array
    notes: Notes
    rows: Cache


class Proposer(NamedTuple):
    """How a draft's tokens are drawn.

    Attributes:
        acceptance: the rule.
        sampling: of each sequence.
        seen: what branches have said, [B, R, V], a branch's root included, where repetitions are penalised.
        num_candidates: κ, other likely tokens that are noted with each; 0: none.
    """

    acceptance: Acceptance
    sampling: Sampling | None
    seen: Array | None = None
    num_candidates: int = 0

    def __call__(self, logits: Array, positions: Array) -> tuple[Array, Notes]:
        """Tokens [B, R] from logits [V, B, R], for ``positions`` [B, R]; and their notes."""
        tokens, law = self.acceptance.propose(logits, self.sampling, positions, self.seen)
        return tokens, Notes(law, self.others(logits, tokens, positions) if self.num_candidates else None)

    def others(self, logits: Array, drafted: Array, positions: Array) -> Message:
        """The draft's likeliest tokens there but for the drafted ones (−1: none); the target's noise counts."""
        scores = perturbed(logits, self.sampling, positions, self.seen)
        return likely(scores, drafted, self.num_candidates)

    def after(self, tokens: Array) -> "Proposer":
        """Once branches have said ``tokens`` [B, R]."""
        if self.seen is None:
            return self
        return self._replace(seen=self.seen | (tokens[..., None] == jnp.arange(self.seen.shape[-1])[None, None]))


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
        network: the draft.
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

    tokens, positions = roots
    if pending is not None:
        tokens, positions = (jnp.concatenate([a[:, None], b], axis=1) for a, b in zip(pending, roots, strict=True))
    carry, first = run(proposer.seen, tokens, positions, 0, cache, pending)
    (_, _, cache), rest = jax.lax.scan(step, carry, jnp.arange(1, window))
    joined = jax.tree.map(lambda one, many: jnp.moveaxis(jnp.concatenate([one[None], many]), 0, 2), first, rest)
    return Branches(*joined), cache


class Scratch(NamedTuple):
    """Where the rows of branches lie in a cache of ``capacity`` rows.

    Attributes:
        total: R, branches that have a place in the scratch.
        window: γ, rows of each.
        capacity: S.
        first: place of the first branch of a rollout.
        branches: branches of that rollout; None: all.
    """

    total: int
    window: int
    capacity: int
    first: int = 0
    branches: int | None = None

    @property
    def rolled(self) -> int:
        """Branches of the rollout."""
        return self.total if self.branches is None else self.branches

    @property
    def start(self) -> int:
        """First scratch row."""
        return self.capacity - 1 - self.total * self.window

    def row(self, number: Array | int) -> Array | int:
        """Where the rollout's rows ``number`` begin."""
        return self.start + number * self.total + self.first

    def own(self, number: Array | int, reach: int | None = None) -> Array:
        """Which rows a branch sees of its own once it has row ``number``, the last ``reach`` at most: [R, S]."""
        place = np.arange(self.capacity) - self.start
        inside = (place >= 0) & (place < self.total * self.window)
        mine = inside & (place % self.total == self.first + np.arange(self.rolled)[:, None])
        row = place // self.total
        seen = (row <= number) if reach is None else (row <= number) & (row > number - reach)
        return mine & seen[None]


def branching(scratch: Scratch, lengths: Array, number: Array | int, pending: Pending | None = None) -> Attend:
    """Attention of branches to the shared rows below ``lengths`` [B, R] and to rows of their own, which they extend.

    Args:
        scratch: where the branches' rows lie.
        lengths: shared rows that a branch sees.
        number: own rows that it has so far, the same for all.
        pending: token 0 of every sequence belongs to no branch and leaves its row in the shared part.
    """

    def seen(reach: int | None) -> Array:
        shared = visible(scratch.capacity, lengths - 1)
        if reach is not None:
            shared &= visible(scratch.capacity, lengths + number, reach)
        branches = shared | scratch.own(number, reach)[None]
        if pending is None:
            return branches
        return jnp.concatenate([visible(scratch.capacity, pending.position[:, None], reach), branches], axis=1)

    def extended(rows: Array, new: Array) -> Array:
        if pending is not None:
            rows = write(rows, new[:, :, :1], pending.position)
        return jax.lax.dynamic_update_slice_in_dim(rows, new[:, :, -scratch.rolled :], scratch.row(number), axis=2)

    def attend(queries: Array, keys: Array, values: Array, rows: Rows, scores: Scores = Scores()) -> tuple[Array, Rows]:
        rows = extended(rows[0], keys), extended(rows[1], values)
        return attend_cache(queries, rows, seen(scores.window), scores), rows

    return attend


def take(rolled: Branches, cache: Cache, branch: Array) -> Drafted:
    """The window of one ``branch`` [B] of every sequence, from what ``rollout`` gave."""
    batch, branches, window = rolled.tokens.shape
    start = Scratch(branches, window, cache[0][0].shape[2]).start

    def pick(rows: Array) -> Array:
        scratch = rows[:, :, start:-1].reshape(batch, rows.shape[1], window, branches, -1)
        return jnp.take_along_axis(scratch, branch[:, None, None, None, None], axis=3)[:, :, :, 0]

    def choose(values: Array) -> Array:
        return jnp.take_along_axis(values, branch.reshape(-1, *(1,) * (values.ndim - 1)), axis=1)[:, 0]

    tokens, notes = jax.tree.map(choose, rolled)
    return Drafted(tokens, notes, jax.tree.map(pick, cache))


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
