"""Branches in a draft's key-value cache: where their rows lie, and what they attend to.

All branches read the draft's cache through masks. The last R·γ rows before the free one are scratch: row n·R + b of
them is the n-th row of branch b. The rows of the branch that is taken are copied to their positions afterwards.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.drafts.records import Branches, BranchSlots, Drafted, chosen, notes_of
from jaxspec.models.attention import attend_cache, attend_parts, in_use, visible, write
from jaxspec.models.base import Array, Attend, Cache, Rows
from jaxspec.models.config import Scores


class Scratch(NamedTuple):
    """Where the rows of branches lie in a cache of ``capacity`` rows.

    Attributes:
        total: R, branches that have rows in the scratch.
        window: γ, rows of each.
        capacity: S.
        first: number of a rollout's first branch among them.
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
        """Return the index of the first of the rollout's rows ``number``."""
        return self.start + number * self.total + self.first

    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        """Return which of all rows are a branch's own, [R, S], and their numbers, [S]."""
        index = np.arange(self.capacity) - self.start
        inside = (index >= 0) & (index < self.total * self.window)
        return inside & (index % self.total == self.first + np.arange(self.rolled)[:, None]), index // self.total

    def own(self, number: Array | int, reach: int | None = None) -> Array:
        """Return which own rows a branch sees once it has row ``number``, the last ``reach`` at most: [R, S]."""
        mine, row = self.rows()
        seen = (row <= number) if reach is None else (row <= number) & (row > number - reach)
        return jnp.asarray(mine) & seen[None]


def branching(scratch: Scratch, lengths: Array, number: Array | int, along: Array | None = None) -> Attend:
    """Let branches attend to the shared rows below ``lengths`` [B, R] and to their own rows, which they extend.

    Args:
        scratch: where the branches' rows lie.
        lengths: shared rows that a branch sees.
        number: own rows that it has so far, the same for all.
        along: consecutive positions [B, K] of tokens that are run before the branches and leave shared rows there.
    """

    def seen(reach: int | None) -> Array:
        shared = visible(scratch.capacity, lengths - 1)
        if reach is not None:
            shared &= visible(scratch.capacity, lengths + number, reach)
        branches = shared | scratch.own(number, reach)[None]
        return (
            branches if along is None else jnp.concatenate([visible(scratch.capacity, along, reach), branches], axis=1)
        )

    def extended(rows: Array, new: Array) -> Array:
        if along is not None:
            rows = write(rows, new[:, :, : along.shape[1]], along[:, 0])
        return jax.lax.dynamic_update_slice_in_dim(rows, new[:, :, -scratch.rolled :], scratch.row(number), axis=2)

    def attend(queries: Array, keys: Array, values: Array, rows: Rows, scores: Scores = Scores()) -> tuple[Array, Rows]:
        rows = extended(rows[0], keys), extended(rows[1], values)
        used = jnp.max(lengths if along is None else jnp.maximum(jnp.max(along) + 1, lengths))
        return attend_scratch(scratch, used, queries, rows, seen(scores.window), scores), rows

    return attend


def attend_scratch(
    scratch: Scratch,
    used: Array,
    queries: Array,
    rows: Rows,
    seen: Array,
    scores: Scores,
    beside: Rows | None = None,
) -> Array:
    """Attend to shared rows, of which only those in use are read, to the scratch, and to rows of no cache.

    Args:
        scratch: where the branches' rows lie.
        used: shared rows in use, [].
        queries: of the tokens, [B, G, Q, T, head_size].
        rows: of the layer's cache.
        seen: which of its rows a query sees, and which of those beside: [B, T, S + n].
        scores: of the layer.
        beside: keys and values that are not cached: [B, G, n, head_size] each.
    """

    def some(bound: int, queries: Array, rows: Rows, seen: Array, beside: Rows | None) -> Array:
        spans = slice(0, bound), slice(scratch.start, scratch.capacity - 1)
        parts = [(rows[0][:, :, span], rows[1][:, :, span], seen[:, :, span]) for span in spans]
        parts += [] if beside is None else [(*beside, seen[:, :, scratch.capacity :])]
        return attend_parts(queries, parts, scores)

    def every(queries: Array, rows: Rows, seen: Array, beside: Rows | None) -> Array:
        if beside is None:
            return attend_cache(queries, rows, seen, scores)
        parts = [(*rows, seen[:, :, : scratch.capacity]), (*beside, seen[:, :, scratch.capacity :])]
        return attend_parts(queries, parts, scores)

    return in_use(some, every, used, scratch.start, queries, rows, seen, beside)


def scratch_of(cache: Cache, branches: int, window: int, slots: BranchSlots | None) -> Scratch:
    """Return where the rows of a rollout of so many branches lie; without ``slots`` they fill the scratch."""
    first, total = slots or (0, branches)
    capacity = cache[0][0].shape[2] if cache else 0
    return Scratch(total, window, capacity, first, branches)


def take(rolled: Branches, cache: Cache, branch: Array) -> Drafted:
    """Return the window of one ``branch`` [B] of every sequence, with its rows."""
    batch, branches, window = rolled.tokens.shape
    start = Scratch(branches, window, cache[0][0].shape[2]).start

    def pick(rows: Array) -> Array:
        scratch = rows[:, :, start:-1].reshape(batch, rows.shape[1], window, branches, -1)
        return jnp.take_along_axis(scratch, branch[:, None, None, None, None], axis=3)[:, :, :, 0]

    return Drafted(chosen(branch, rolled.tokens), notes_of(branch, rolled.notes), jax.tree.map(pick, cache))
