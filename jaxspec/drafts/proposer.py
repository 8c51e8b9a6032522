"""How a draft's tokens are drawn from its logits."""

from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxspec.drafts.records import Drafted, Notes
from jaxspec.models.base import Array
from jaxspec.verify.acceptance import Acceptance, DraftProbabilities
from jaxspec.verify.message import Message, best, likely
from jaxspec.verify.sampling import INVALID, SamplingArrays, are_numbers, perturbed
from jaxspec.verify.seen import Seen


class Proposer(NamedTuple):
    """How a draft's tokens are drawn.

    Attributes:
        acceptance: the rule.
        sampling: of each sequence.
        seen: tokens that each branch holds, its root included: marks [B, R, V].
        num_candidates: κ of the draft's own message, for which the scores of drafted tokens are noted; 0: none is made.
    """

    acceptance: Acceptance
    sampling: SamplingArrays | None
    seen: Seen = Seen()
    num_candidates: int = 0

    def __call__(
        self, logits: Array, positions: Array, tokens: Array | None = None, noted: int | None = None
    ) -> tuple[Array, Notes]:
        """Draw tokens [B, R] from logits [V, B, R], for ``positions`` [B, R], unless ``tokens`` are given.

        Also returns their notes, or those of the first ``noted`` tokens.
        """
        scores = cache(lambda: perturbed(logits, self.sampling, positions, self.seen))
        drawn, probabilities = self.acceptance.propose(logits, self.sampling, positions, self.seen, scores)
        tokens = drawn if tokens is None else tokens
        probabilities = jax.tree.map(lambda leaf: leaf[:, :noted], probabilities)
        # A message of R·γ tokens, of which only one window's is ever read, would cost more than to keep the scores.
        kept = jnp.moveaxis(scores()[:, :, :noted], 0, -1) if self.num_candidates else None
        return tokens, Notes(probabilities, kept)

    def told(self, drafted: Drafted) -> Drafted:
        """Return a window with the draft's own message in place of the scores, [B, γ, V], of which it is made."""
        tokens, (probabilities, scores), rows = drafted
        if scores is None:
            return drafted
        message = likely(jnp.moveaxis(scores, -1, 0), tokens, self.num_candidates)
        return Drafted(tokens, Notes(probabilities, message), rows)

    def others(self, logits: Array, positions: Array) -> Message:
        """Return the draft's most likely tokens at ``positions`` [B, T], with the target's noise: [B, T, κ]."""
        scores = perturbed(logits, self.sampling, positions, self.seen)
        return likely(scores, jnp.full_like(positions, -1), self.num_candidates)

    def after(self, tokens: Array) -> "Proposer":
        """Return the proposer once each branch holds one token more, tokens [B, R]."""
        return self._replace(seen=self.seen.with_token(tokens))

    def children(self, logits: Array, position: Array, count: int) -> Array:
        """Return the ``count`` best tokens after each of R nodes of one depth: [B, R, count] from logits [V, B, R].

        ``position`` [B] is that of the children. They compete for one and the same draw of the target, whose noise the
        rule may add; ``INVALID`` where the logits are not numbers.
        """
        scores = self._ranks(logits, position)
        _, found = best(jnp.moveaxis(scores, 0, -1), count)
        return jnp.where(are_numbers(scores)[..., None], found, INVALID)

    def valued(self, logits: Array, position: Array, count: int, sharpness: float = 1.0) -> tuple[Array, Array]:
        """Return what ``children`` does, and log softmax of β times the scores that rank them: [B, R, count] each."""
        scores = sharpness * self._ranks(logits, position)
        valid, total = are_numbers(scores)[..., None], jax.nn.logsumexp(scores, axis=0)[..., None]
        values, found = best(jnp.moveaxis(scores, 0, -1), count)
        return jnp.where(valid, found, INVALID), jnp.where(valid, values - total, -jnp.inf)

    def _ranks(self, logits: Array, position: Array) -> Array:
        assert self.acceptance.rank is not None  # checked by the factory
        return self.acceptance.rank(logits, self.sampling, position[:, None], self.seen)

    def certain(self, logits: Array, tokens: Array, positions: Array) -> Notes:
        """Return notes of tokens that were not drawn, such as looked-up ones: each has probability 1.

        The draft's own message comes from its ``logits`` [V, B, T].
        """
        _, (probabilities, scores) = self(logits, positions, tokens)
        if probabilities is not None:
            order = jnp.arange(probabilities.tokens.shape[2])[None, None]
            filled_up = (jnp.maximum(tokens, 0)[..., None] + order) % logits.shape[0]
            only = (order == 0) & (tokens >= 0)[..., None]
            probabilities = DraftProbabilities(filled_up, jnp.where(only, 0.0, -jnp.inf))
        return Notes(probabilities, scores)
