"""Branches of a draft: what they are, where their rows lie, what they see of each other.

All branches read the draft's cache through masks. The last R·γ rows before the free one are scratch: row n·R + b of
them is the n-th row of branch b. The rows of the branch that comes true are copied to their place afterwards.
"""

from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.models.attention import attend_cache, visible, write
from jaxspec.models.base import Array, Attend, Cache, Rows
from jaxspec.models.config import Scores
from jaxspec.verify import Message, likely
from jaxspec.verify.acceptance import Acceptance
from jaxspec.verify.sampling import SamplingArrays, perturbed


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
    """Rolled out branches: ``tokens`` [B, R, γ], their notes, and the passes that each took, J [B, R]."""

    tokens: Array
    notes: Notes
    passes: Array


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
    sampling: SamplingArrays | None
    seen: Array | None = None
    num_candidates: int = 0

    def __call__(
        self, logits: Array, positions: Array, said: Array | None = None, noted: int | None = None
    ) -> tuple[Array, Notes]:
        """Tokens [B, R] from logits [V, B, R], for ``positions`` [B, R], unless they were ``said``.

        Beside them their notes, or those of the first ``noted`` tokens.
        """
        scores = cache(lambda: perturbed(logits, self.sampling, positions, self.seen))
        drawn, law = self.acceptance.propose(logits, self.sampling, positions, self.seen, scores)
        tokens, law = drawn if said is None else said, jax.tree.map(lambda leaf: leaf[:, :noted], law)
        if not self.num_candidates:
            return tokens, Notes(law, None)
        return tokens, Notes(law, likely(scores()[:, :, :noted], tokens[:, :noted], self.num_candidates))

    def others(self, logits: Array, positions: Array) -> Message:
        """The draft's likeliest tokens there; the target's noise counts."""
        scores = perturbed(logits, self.sampling, positions, self.seen)
        return likely(scores, jnp.full_like(positions, -1), self.num_candidates)

    def after(self, tokens: Array) -> "Proposer":
        """Once branches have said ``tokens`` [B, R]."""
        if self.seen is None:
            return self
        return self._replace(seen=self.seen | (tokens[..., None] == jnp.arange(self.seen.shape[-1])[None, None]))


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

    tokens, notes = jax.tree.map(choose, (rolled.tokens, rolled.notes))
    return Drafted(tokens, notes, jax.tree.map(pick, cache))
