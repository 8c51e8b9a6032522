"""The message: likely outcomes of a verification, and the roots of branches that a ranking makes of them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxspec.models.base import Array

#: Parts of a vocabulary that are searched on their own: as many devices, or a divisor of it, need no others for that.
PARTS = 16


class Message(NamedTuple):
    """Likely outcomes of a verification; what crosses the token channel after the prefix, never hidden states.

    Attributes:
        tokens: top-κ at each of γ+1 positions, the drafted token excluded: [B, γ+1, κ] int32.
        scores: their log-probabilities: [B, γ+1, κ].
        drafted: log-probability of ŷᵣ₊₁ at the first γ positions: [B, γ].
    """

    tokens: Array
    scores: Array
    drafted: Array


class Roots(NamedTuple):
    """Roots of branches: after ``accepted`` tokens of the window comes ``tokens``; both [B, R] int32."""

    accepted: Array
    tokens: Array


def message_like(batch: int, window: int, num_candidates: int) -> Message:
    """Return shapes and dtypes of a message."""
    slots = batch, window + 1, num_candidates
    shape: Any = jax.ShapeDtypeStruct
    return Message(shape(slots, jnp.int32), shape(slots, jnp.float32), shape((batch, window), jnp.float32))


def exit_message(logits: Array, window: Array, num_candidates: int) -> Message:
    """Build the message from logits [V, B, γ+1] and the window ŷ [B, γ].

    A correction at a position r < γ can never be the drafted token ŷᵣ₊₁, so that token is masked before the top-κ is
    taken: one free slot at each of these positions.
    """
    best = likely(logits, jnp.pad(window, ((0, 0), (0, 1)), constant_values=-1), num_candidates)
    return Message(best.tokens, best.scores, best.drafted[:, :-1])


def likely(logits: Array, drafted: Array, num_candidates: int) -> Message:
    """Return the best tokens of logits [V, B, T] but the ``drafted`` one [B, T] (−1: none), and its log-probability."""
    log_probabilities = jnp.moveaxis(jax.nn.log_softmax(logits, axis=0), 0, -1)
    is_drafted = jnp.arange(logits.shape[0])[None, None] == drafted[:, :, None]
    scores, tokens = best(jnp.where(is_drafted, -jnp.inf, log_probabilities), num_candidates)
    of_drafted = jnp.where(drafted < 0, -jnp.inf, jnp.sum(jnp.where(is_drafted, log_probabilities, 0.0), axis=-1))
    return Message(tokens, scores, of_drafted)


def best(scores: Array, count: int) -> tuple[Array, Array]:
    """Return the largest of scores [..., V], and their tokens, [..., count] each; the lowest id first among equals.

    They are taken of the best of ``PARTS`` parts, so that of a vocabulary that is split over devices these alone cross.
    """
    size = scores.shape[-1] // PARTS
    if scores.shape[-1] % PARTS or size < count:
        values, tokens = jax.lax.top_k(scores, count)
        return values, tokens.astype(jnp.int32)
    values, places = jax.lax.top_k(scores.reshape(*scores.shape[:-1], PARTS, size), count)
    tokens = places + size * jax.lax.broadcasted_iota(places.dtype, places.shape, places.ndim - 2)
    flat = lambda part: part.reshape(*scores.shape[:-1], PARTS * count)  # noqa: E731
    values, order = jax.lax.top_k(flat(values), count)
    return values, jnp.take_along_axis(flat(tokens), order, axis=-1).astype(jnp.int32)


def join(window: Message, bonus: Message, count: Array) -> Message:
    """Join the message of ``count`` [B] drafted positions, of γ at most, and that of the one behind them, [B, 1, κ]."""
    behind = (jnp.arange(window.tokens.shape[1] + 1)[None] == count[:, None])[..., None]
    both = lambda one, other: jnp.where(behind, other, jnp.pad(one, ((0, 0), (0, 1), (0, 0))))  # noqa: E731
    return Message(both(window.tokens, bonus.tokens), both(window.scores, bonus.scores), window.drafted)


def open_ended(window: Message, count: Array) -> Message:
    """Return the message of ``count`` [B] drafted positions without candidates behind them: tokens −1 there."""
    nothing = jax.tree.map(lambda leaf: jnp.zeros_like(leaf[:, :1]), window)
    return join(window, nothing._replace(tokens=nothing.tokens - 1), count)
