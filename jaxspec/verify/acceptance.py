"""How drafted tokens are drawn and judged: by matching the target's own draw, or by the ratio of the two laws.

Either way the target names its ``choices``, one for every place; a window is accepted as far as it agrees with them.
"""

from collections.abc import Callable
from functools import lru_cache
from numbers import Integral
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxspec.models.base import Array
from jaxspec.verify.sampling import (
    DRAFT,
    INVALID,
    RESIDUAL,
    SamplingArrays,
    are_numbers,
    draw,
    filtered,
    greedy,
    guess,
    gumbel,
    penalised,
    perturbed,
    uniform,
)


class Law(NamedTuple):
    """The draft's law at each place, over its most likely tokens: ``tokens`` and ``log_probabilities``, [B, T, top]."""

    tokens: Array
    log_probabilities: Array


class Acceptance(NamedTuple):
    """A rule of acceptance.

    Attributes:
        propose: (draft's logits [V, B, T], sampling, positions, seen, scores) → (tokens [B, T], law or None); scores()
            are ``perturbed`` logits that the caller needs as well, None if it does not. A token is
            ``sampling.INVALID`` where the logits are not numbers, and its law holds no mass.
        choose: (target's logits [V, B, γ+1], window [B, γ], law, sampling, positions, seen) → choices [B, γ+1].
    """

    propose: Callable[..., tuple[Array, Any]]
    choose: Callable[..., Array]


@lru_cache
def match(shared_noise: bool = True) -> Acceptance:
    """Sample and match: a drafted token is accepted if it is the one that the target draws with its own noise.

    The output is, token for token, what plain decoding with the same seed gives.

    Args:
        shared_noise: the draft draws with the target's noise, which makes it agree with probability
            (1 − TV)/(1 + TV) at least; otherwise it proposes its most likely tokens.

    Source: Mirror-SD (arXiv 2510.13161), §3; shared noise: arXiv 2408.07978.
    """

    def propose(
        logits: Array,
        sampling: SamplingArrays | None,
        positions: Array,
        seen: Array | None = None,
        scores: Callable[[], Array] | None = None,
    ) -> tuple[Array, None]:
        if shared_noise:
            return guess(perturbed(logits, sampling, positions, seen) if scores is None else scores()), None
        return guess(logits if sampling is None else penalised(logits, sampling.repetition_penalty, seen)), None

    def choose(
        logits: Array,
        window: Array,
        law: None,
        sampling: SamplingArrays | None,
        positions: Array,
        seen: Array | None = None,
    ) -> Array:
        return draw(logits, sampling, positions, seen)

    return Acceptance(propose, choose)


@lru_cache
def ratio(top: int = 64) -> Acceptance:
    """Speculative sampling: ŷ ~ q is accepted with probability min(1, p(ŷ)/q(ŷ)), else y ~ (p − q)₊ is drawn.

    Both laws after filters and penalties. The draft draws from its ``top`` most likely tokens, renormalised first, so
    only these cross to the target and the law of the output is the target's. At temperature 0 it is ``match``.

    Raises:
        ValueError: ``top`` is no whole number from 1 on.

    Source: Leviathan et al. (arXiv 2211.17192), §2.3.
    """
    if not isinstance(top, Integral) or isinstance(top, bool) or not 1 <= top < 2**31:
        raise ValueError(f"expected 1 <= top < 2^31 tokens that a draft draws from, a whole number, got {top!r:.80}")

    def propose(
        logits: Array,
        sampling: SamplingArrays | None,
        positions: Array,
        seen: Array | None = None,
        scores: Callable[[], Array] | None = None,
    ) -> tuple[Array, Law | None]:
        if sampling is None:
            return guess(logits), None
        valid = are_numbers(logits)
        logits = penalised(logits, sampling.repetition_penalty, seen)
        best, tokens = jax.lax.top_k(jnp.moveaxis(filtered(logits, sampling), 0, -1), min(top, logits.shape[0]))
        law = Law(tokens.astype(jnp.int32), jnp.where(valid[..., None], jax.nn.log_softmax(best, axis=-1), -jnp.inf))
        noise = jnp.moveaxis(gumbel(sampling.seed, positions, best.shape[-1], DRAFT), 0, -1)
        noise = jnp.where(sampling.temperature[:, None, None] > 0, noise, 0.0)
        place = jnp.argmax(law.log_probabilities + noise, axis=-1)
        drawn = jnp.take_along_axis(law.tokens, place[..., None], axis=-1)[..., 0]
        return jnp.where(valid, drawn, INVALID), law

    def choose(
        logits: Array,
        window: Array,
        law: Law,
        sampling: SamplingArrays | None,
        positions: Array,
        seen: Array | None = None,
    ) -> Array:
        if sampling is None:
            return greedy(logits)
        logits = penalised(logits, sampling.repetition_penalty, seen)
        chosen = lambda: _by_ratio(logits, window, law, sampling, positions)  # noqa: E731
        warm = sampling.temperature > 0
        return jax.lax.cond(
            jnp.any(warm), lambda: jnp.where(warm[:, None], chosen(), greedy(logits)), lambda: greedy(logits)
        )

    return Acceptance(propose, choose)


def _by_ratio(logits: Array, window: Array, law: Law, sampling: SamplingArrays, positions: Array) -> Array:
    vocabulary = logits.shape[0]
    target = jax.nn.softmax(filtered(logits, sampling), axis=0)
    draft = jnp.pad(dense(law, vocabulary), ((0, 0), (0, 0), (0, 1)))
    is_drafted = jnp.arange(vocabulary)[:, None, None] == jnp.pad(window, ((0, 0), (0, 1)), constant_values=-1)[None]
    of_drafted = lambda mass: jnp.sum(jnp.where(is_drafted, mass, 0.0), axis=0)  # noqa: E731
    odds = acceptance_probability(of_drafted(target), of_drafted(draft))
    noise = gumbel(sampling.seed, positions, vocabulary, RESIDUAL)
    other = greedy(jnp.log(residual(target, draft)) + noise)
    drafted = jnp.pad(window, ((0, 0), (0, 1)))
    inside = jnp.arange(logits.shape[2])[None] < window.shape[1]
    return jnp.where(inside & (uniform(sampling.seed, positions) < odds), drafted, other)


def acceptance_probability(target: Array, draft: Array) -> Array:
    """min(1, p(ŷ)/q(ŷ)) of the drafted token's probabilities."""
    return jnp.minimum(1.0, target / jnp.maximum(draft, jnp.finfo(draft.dtype).tiny))


def residual(target: Array, draft: Array) -> Array:
    """(p − q)₊ over the vocabulary (axis 0), unnormalised: the law of the token that replaces a rejected one.

    Where nothing is left (p = q, so that nothing is ever rejected, or rounding), p itself.
    """
    left = jnp.maximum(target - draft, 0.0)
    return jnp.where(jnp.sum(left, axis=0, keepdims=True) > 0, left, target)


def dense(law: Law, vocabulary: int) -> Array:
    """A draft's law over the whole vocabulary: [V, B, T]."""
    batch, length, _ = law.tokens.shape
    rows = jnp.zeros((batch, length, vocabulary), law.log_probabilities.dtype)
    places = jnp.arange(batch)[:, None, None], jnp.arange(length)[None, :, None], law.tokens
    return jnp.moveaxis(rows.at[places].set(jnp.exp(law.log_probabilities)), -1, 0)
