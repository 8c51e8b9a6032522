"""Rollouts of a streaming draft: every pass verifies the last guess of each branch and grows the next.

A pass runs a branch's newest token c and its k guesses p₁..p_k. The main stream gives the token after each; guesses are
right as far as they equal these, so η = 1 + (number of right guesses) tokens are final, and the streams of the last
right token guess on. The tokens are those of the plain draft, up to the rounding of a wider pass; there are J ≤ γ
passes, Σ η = γ for every branch.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxspec.drafts._branches import Scratch, attend_scratch
from jaxspec.drafts._streaming import StreamingNetwork, forward, own_streams
from jaxspec.drafts.proposer import Proposer
from jaxspec.drafts.records import Branches, Notes, Pending
from jaxspec.models.attention import visible, write
from jaxspec.models.base import Array, Attend, Cache, Params, Rows
from jaxspec.models.config import Scores
from jaxspec.verify.seen import Seen, is_token


class RolloutTask(NamedTuple):
    """What does not change along a rollout: the arguments of ``Plain.roll``, and where the branches' rows lie."""

    network: StreamingNetwork
    params: Params
    roots: Pending
    proposer: Proposer
    scratch: Scratch


class Passed(NamedTuple):
    """Outputs of a pass over M tokens of every branch.

    Attributes:
        tokens: the main stream's next token after each: [B, R, M].
        guesses: of its streams, at the tokens behind: [B, R, M, k].
        notes: of ``tokens``.
        cache: rows.
    """

    tokens: Array
    guesses: Array
    notes: Notes
    cache: Cache


class Rolling(NamedTuple):
    """Branches during a rollout.

    Attributes:
        done: number of final tokens of each branch: [B, R].
        newest: the last of them, the root at first: [B, R].
        guesses: what may follow: [B, R, k].
        seen: tokens that each branch holds: marks [B, R, V].
        tokens: final tokens, behind them anything: [B, R, γ].
        notes: theirs.
        passes: J so far: [B, R].
        cache: rows.
    """

    done: Array
    newest: Array
    guesses: Array
    seen: Seen
    tokens: Array
    notes: Notes
    passes: Array
    cache: Cache


def rollout(task: RolloutTask, cache: Cache, pending: Pending | None) -> tuple[Branches, Cache]:
    """Do as ``Plain.roll`` with a streaming network."""

    def grow(old: Rolling) -> Rolling:
        tokens = jnp.concatenate([old.newest[..., None], old.guesses], axis=2)
        passed = _pass(task, old.cache, old.done, tokens, old.seen, None)
        right = jnp.cumprod((old.guesses == passed.tokens[:, :, :-1]).astype(jnp.int32), axis=2)
        return _grown(old, passed, 1 + jnp.sum(right, axis=2))

    first = _first(task, cache, pending)
    last = jax.lax.while_loop(lambda rolling: jnp.any(rolling.done < task.scratch.window), grow, first)
    return Branches(last.tokens, last.notes.of_passes(), last.passes), last.cache


def _first(task: RolloutTask, cache: Cache, pending: Pending | None) -> Rolling:
    """Run the pass over the roots: one token of each branch is final, there was nothing to verify."""
    root, window, seen = task.roots.token, task.scratch.window, task.proposer.seen
    none = jnp.zeros_like(root)
    passed = _pass(task, cache, none, root[..., None], seen, pending)
    blank = lambda leaf: jnp.zeros((*leaf.shape[:2], window, *leaf.shape[3:]), leaf.dtype)  # noqa: E731
    tokens, notes = blank(passed.tokens), jax.tree.map(blank, passed.notes)
    start = Rolling(none, root, passed.guesses[:, :, 0], seen, tokens, notes, none, cache)
    return _grown(start, passed, jnp.ones_like(root))


def _pass(task: RolloutTask, cache: Cache, count: Array, tokens: Array, seen: Seen, pending: Pending | None) -> Passed:
    """Run tokens [B, R, M] of branches that have ``count`` [B, R] final ones before the first of them."""
    (network, params, roots, proposer, scratch), (batch, branches, main) = task, tokens.shape
    numbers, streams = count[..., None] + jnp.arange(main)[None, None], network.count
    positions = (roots.position[..., None] + numbers).reshape(batch, -1)
    below, above = (_attend(scratch, roots.position, numbers, pending, each) for each in (0, streams))
    run, first = (tokens.reshape(batch, -1), positions), 0 if pending is None else 1
    if pending is not None:
        run = tuple(jnp.concatenate([a[:, None], b], axis=1) for a, b in zip(pending, run, strict=True))  # type: ignore[assignment]
    x, cache = forward(network, params, *run, cache, (below, above), first)
    ahead = (positions[..., None] + 2 + jnp.arange(streams)[None, None]).reshape(batch, -1)
    drawn_at, kept = jnp.concatenate([positions + 1, ahead], axis=1), branches * main
    wider = proposer._replace(seen=_along(seen, tokens, streams))
    drawn, notes = wider(network.logits(params, x[:, :, first:]), drawn_at, noted=kept)
    following, guesses = drawn[:, :kept], drawn[:, kept:]
    apart = lambda leaf: leaf.reshape(batch, branches, main, *leaf.shape[2:])  # noqa: E731
    return Passed(apart(following), guesses.reshape(*tokens.shape, streams), jax.tree.map(apart, notes), cache)


def _along(seen: Seen, tokens: Array, streams: int) -> Seen:
    """Return marks at each of tokens [B, R, M] and at its streams, from those of the first: [B, R·M·(1 + k), V]."""
    if seen.marks is None:
        return seen
    added = jax.lax.associative_scan(jnp.logical_or, is_token(tokens, seen.marks.shape[-1]), axis=2)
    along = (seen.marks[:, :, None] | added).reshape(len(tokens), -1, seen.marks.shape[-1])
    return Seen(jnp.concatenate([along, jnp.repeat(along, streams, axis=1)], axis=1))


def _grown(old: Rolling, passed: Passed, grown: Array) -> Rolling:
    """Return the branches after a pass in which the first ``grown`` [B, R] of the main stream's tokens are final."""
    tokens, window = passed.tokens, old.tokens.shape[2]
    put = lambda kept, new: _put(kept, new, old.done)  # noqa: E731
    last = jnp.take_along_axis(tokens, grown[..., None] - 1, axis=2)[..., 0]
    following = jnp.take_along_axis(passed.guesses, grown[..., None, None] - 1, axis=2)[:, :, 0]
    return Rolling(
        jnp.minimum(old.done + grown, window),
        last,
        following,
        old.seen.add(tokens, grown),
        put(old.tokens, tokens),
        jax.tree.map(put, old.notes, passed.notes),
        old.passes + (old.done < window).astype(jnp.int32),
        passed.cache,
    )


def _put(kept: Array, new: Array, start: Array) -> Array:
    """Write values [B, R, M, …] into kept [B, R, γ, …] from index ``start`` [B, R] on; those behind γ are dropped."""
    offset = jnp.arange(kept.shape[2])[None, None] - start[..., None]
    inside = (offset >= 0) & (offset < new.shape[2])
    tail = (1,) * (kept.ndim - 3)
    index = jnp.clip(offset, 0, new.shape[2] - 1).reshape(*offset.shape, *tail)
    return jnp.where(inside.reshape(*offset.shape, *tail), jnp.take_along_axis(new, index, axis=2), kept)


def _attend(scratch: Scratch, lengths: Array, numbers: Array, pending: Pending | None, streams: int) -> Attend:
    """Return attention of branches with rows ``numbers`` [B, R, M] to write, and of ``streams`` at each of them.

    Args:
        scratch: where the branches' rows lie.
        lengths: shared rows that a branch sees: [B, R].
        numbers: of the main stream's tokens.
        pending: token 0 of every sequence belongs to no branch and leaves its row in the shared part.
        streams: k; their keys and values are not cached.
    """
    batch, branches, main = numbers.shape
    first, kept = int(pending is not None), branches * main

    def seen(reach: int | None) -> Array:
        shift = jnp.arange(1 + streams)[None, None, None]
        positions = (lengths[..., None] + numbers)[..., None] + shift
        shared = jnp.broadcast_to((lengths - 1)[..., None, None], positions.shape)
        mask = _rows_seen(scratch, shared, numbers, lengths, None if reach is None else (positions, reach))
        parts = mask[:, :, :, 0], mask[:, :, :, 1:]
        rows = jnp.concatenate([part.reshape(batch, -1, scratch.capacity) for part in parts], axis=1)
        if pending is not None:
            rows = jnp.concatenate([visible(scratch.capacity, pending.position[:, None], reach), rows], axis=1)
        if not streams:
            return rows
        own = jnp.asarray(own_streams(kept, streams))
        beside = jnp.pad(own, ((first + kept, 0), (0, 0)))[None]
        return jnp.concatenate([rows, jnp.broadcast_to(beside, (batch, *beside.shape[1:]))], axis=2)

    def attend(queries: Array, keys: Array, values: Array, rows: Rows, scores: Scores = Scores()) -> tuple[Array, Rows]:
        rows = tuple(_extended(scratch, *each, numbers, pending) for each in zip(rows, (keys, values), strict=True))  # type: ignore[assignment]
        used = jnp.max(lengths if pending is None else jnp.maximum(pending.position[:, None] + 1, lengths))
        beside = (keys[:, :, first + kept :], values[:, :, first + kept :]) if streams else None
        return attend_scratch(scratch, used, queries, rows, seen(scores.window), scores, beside), rows

    return attend


def _rows_seen(
    scratch: Scratch, shared: Array, numbers: Array, lengths: Array, reach: tuple[Array, int] | None
) -> Array:
    """Return which rows of the cache main and lookahead tokens see: [B, R, M, 1 + k, S]."""
    mine, row = (jnp.asarray(each) for each in scratch.rows())
    index, row = jnp.arange(scratch.capacity)[None, None, None, None], row[None, None, None, None]
    own = mine[None, :, None, None] & (row <= numbers[..., None, None])
    before = index <= shared[..., None]
    if reach is not None:
        positions, window = reach
        own &= lengths[..., None, None, None] + row > positions[..., None] - window
        before &= index > positions[..., None] - window
    return own | before


def _extended(scratch: Scratch, rows: Array, new: Array, numbers: Array, pending: Pending | None) -> Array:
    """Return rows with those of the main stream's tokens, which each branch has at numbers of its own."""
    batch, branches, main = numbers.shape
    if pending is not None:
        rows, new = write(rows, new[:, :, :1], pending.position), new[:, :, 1:]
    groups, size = rows.shape[1], rows.shape[3]
    fresh = new[:, :, : branches * main].reshape(batch, groups, branches, main, size)
    held = jax.lax.slice_in_dim(rows, scratch.start, scratch.start + scratch.total * scratch.window, axis=2)
    held = held.reshape(batch, groups, scratch.window, scratch.total, size)
    own = held[:, :, :, scratch.first : scratch.first + branches]
    over = jax.vmap(_put, (1, 1, None), 1)(jnp.swapaxes(own, 2, 3), fresh, numbers[:, :, 0])
    held = jax.lax.dynamic_update_slice_in_dim(held, jnp.swapaxes(over, 2, 3), scratch.first, axis=3)
    return jax.lax.dynamic_update_slice_in_dim(rows, held.reshape(batch, groups, -1, size), scratch.start, axis=2)
