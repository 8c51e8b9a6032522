"""How drafted tokens are drawn and verified: by matching the target's own draw, or by the ratio of probabilities.

Either way the target has one choice at every position; a window is accepted as far as it agrees with these choices.
"""

from collections.abc import Callable
from functools import lru_cache
from numbers import Integral
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxspec.models.base import Array
from jaxspec.verify.keys import DRAFT, RESIDUAL, gumbel, uniform
from jaxspec.verify.sampling import (
    INVALID,
    SamplingArrays,
    are_numbers,
    draw,
    filtered,
    greedy,
    guess,
    penalised,
    perturbed,
)
from jaxspec.verify.seen import Seen


class DraftProbabilities(NamedTuple):
    """The draft's distribution at each position, over its most likely tokens only.

    Attributes:
        tokens: [B, T, top] int32.
        log_probabilities: [B, T, top].
    """

    tokens: Array
    log_probabilities: Array


class Acceptance(NamedTuple):
    """A rule of acceptance.

    Attributes:
        propose: (draft's logits [V, B, T], sampling, positions, seen, scores) → (tokens [B, T], probabilities or None);
            ``scores()`` returns ``perturbed`` logits, if the caller has them. A token is ``sampling.INVALID`` where the
            logits are not numbers, and its probabilities are zero.
        choose: (target's logits [V, B, γ+1], window [B, γ], probabilities, sampling, positions, seen) → choices
            [B, γ+1].
        rank: (draft's logits [V, B, T], sampling, positions, seen) → scores [V, B, T] that order a node's children in a
            tree; None for a rule that cannot verify a tree.
    """

    propose: Callable[..., tuple[Array, Any]]
    choose: Callable[..., Array]
    rank: Callable[..., Array] | None = None


@lru_cache
def match(shared_noise: bool = True) -> Acceptance:
    """Sample and match: accept a drafted token if it is the one that the target draws with its own noise.

    The output is, token for token, what plain decoding with the same seed gives.

    Args:
        shared_noise: the draft draws with the target's noise, which makes it agree with probability
            (1 − TV)/(1 + TV) at least; otherwise it proposes its most likely tokens.

    Source: Mirror-SD (arXiv 2510.13161), §3; shared noise: arXiv 2408.07978.
    """

    def rank(logits: Array, sampling: SamplingArrays | None, positions: Array, seen: Seen = Seen()) -> Array:
        if shared_noise:
            return perturbed(logits, sampling, positions, seen)
        return logits if sampling is None else penalised(logits, sampling.repetition_penalty, seen)

    def propose(
        logits: Array,
        sampling: SamplingArrays | None,
        positions: Array,
        seen: Seen = Seen(),
        scores: Callable[[], Array] | None = None,
    ) -> tuple[Array, None]:
        if shared_noise and scores is not None:
            return guess(scores()), None
        return guess(rank(logits, sampling, positions, seen)), None

    def choose(
        logits: Array,
        window: Array,
        probabilities: None,
        sampling: SamplingArrays | None,
        positions: Array,
        seen: Seen = Seen(),
    ) -> Array:
        return draw(logits, sampling, positions, seen)

    return Acceptance(propose, choose, rank)


@lru_cache
def ratio(top: int = 64) -> Acceptance:
    """Sample speculatively: accept ŷ ~ q with probability min(1, p(ŷ)/q(ŷ)), else draw y ~ (p − q)₊.

    Both distributions after filters and penalties. The draft draws from its ``top`` most likely tokens, renormalised
    first, so only these cross to the target, and the output has the target's distribution. At temperature 0 it is
    ``match``.

    Raises:
        ValueError: ``top`` is not a whole number >= 1.

    Source: Leviathan et al. (arXiv 2211.17192), §2.3.
    """
    if not isinstance(top, Integral) or isinstance(top, bool) or not 1 <= top < 2**31:
        raise ValueError(f"expected 1 <= top < 2^31 tokens that a draft draws from, a whole number, got {top!r:.80}")

    def propose(
        logits: Array,
        sampling: SamplingArrays | None,
        positions: Array,
        seen: Seen = Seen(),
        scores: Callable[[], Array] | None = None,
    ) -> tuple[Array, DraftProbabilities | None]:
        if sampling is None:
            return guess(logits), None
        valid = are_numbers(logits)
        logits = penalised(logits, sampling.repetition_penalty, seen)
        best, tokens = jax.lax.top_k(jnp.moveaxis(filtered(logits, sampling), 0, -1), min(top, logits.shape[0]))
        probabilities = DraftProbabilities(
            tokens.astype(jnp.int32), jnp.where(valid[..., None], jax.nn.log_softmax(best, axis=-1), -jnp.inf)
        )
        noise = jnp.moveaxis(gumbel(sampling.seed, positions, best.shape[-1], DRAFT), 0, -1)
        noise = jnp.where(sampling.temperature[:, None, None] > 0, noise, 0.0)
        best_of = jnp.argmax(probabilities.log_probabilities + noise, axis=-1)
        drawn = jnp.take_along_axis(probabilities.tokens, best_of[..., None], axis=-1)[..., 0]
        return jnp.where(valid, drawn, INVALID), probabilities

    def choose(
        logits: Array,
        window: Array,
        probabilities: DraftProbabilities,
        sampling: SamplingArrays | None,
        positions: Array,
        seen: Seen = Seen(),
    ) -> Array:
        if sampling is None:
            return greedy(logits)
        logits = penalised(logits, sampling.repetition_penalty, seen)
        chosen = lambda: _by_ratio(logits, window, probabilities, sampling, positions)  # noqa: E731
        warm = sampling.temperature > 0
        return jax.lax.cond(
            jnp.any(warm), lambda: jnp.where(warm[:, None], chosen(), greedy(logits)), lambda: greedy(logits)
        )

    return Acceptance(propose, choose)


def _by_ratio(
    logits: Array, window: Array, probabilities: DraftProbabilities, sampling: SamplingArrays, positions: Array
) -> Array:
    vocabulary = logits.shape[0]
    target = jax.nn.softmax(filtered(logits, sampling), axis=0)
    draft = jnp.pad(dense(probabilities, vocabulary), ((0, 0), (0, 0), (0, 1)))
    is_drafted = jnp.arange(vocabulary)[:, None, None] == jnp.pad(window, ((0, 0), (0, 1)), constant_values=-1)[None]
    of_drafted = lambda mass: jnp.sum(jnp.where(is_drafted, mass, 0.0), axis=0)  # noqa: E731
    odds = acceptance_probability(of_drafted(target), of_drafted(draft))
    noise = gumbel(sampling.seed, positions, vocabulary, RESIDUAL)
    other = greedy(jnp.log(residual(target, draft)) + noise)
    drafted = jnp.pad(window, ((0, 0), (0, 1)))
    inside = jnp.arange(logits.shape[2])[None] < window.shape[1]
    return jnp.where(inside & (uniform(sampling.seed, positions) < odds), drafted, other)


def acceptance_probability(target: Array, draft: Array) -> Array:
    """Return min(1, p(ŷ)/q(ŷ)) of the drafted token's probabilities."""
    return jnp.minimum(1.0, target / jnp.maximum(draft, jnp.finfo(draft.dtype).tiny))


def residual(target: Array, draft: Array) -> Array:
    """Return (p − q)₊ over the vocabulary (axis 0), unnormalised: the distribution of a rejected token's replacement.

    Where nothing is left (p = q, so that nothing is ever rejected, or rounding), p itself.
    """
    left = jnp.maximum(target - draft, 0.0)
    return jnp.where(jnp.sum(left, axis=0, keepdims=True) > 0, left, target)


def dense(probabilities: DraftProbabilities, vocabulary: int) -> Array:
    """Return a draft's distribution over the whole vocabulary: [V, B, T]."""
    batch, length, _ = probabilities.tokens.shape
    rows = jnp.zeros((batch, length, vocabulary), probabilities.log_probabilities.dtype)
    index = jnp.arange(batch)[:, None, None], jnp.arange(length)[None, :, None], probabilities.tokens
    return jnp.moveaxis(rows.at[index].set(jnp.exp(probabilities.log_probabilities)), -1, 0)
