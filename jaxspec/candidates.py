"""Candidates: which next windows are worth rolling out before the verdict is known.

The target's early exit sends a ``Message``; a policy turns it into the roots of branches: pairs (position r, token v),
"r tokens of the window are accepted, then v comes".
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxspec.types import Array


class Message(NamedTuple):
    """What crosses the token channel after the prefix: ids and log-probabilities, never hidden states.

    Attributes:
        tokens: top-κ of the exit at each of γ+1 positions, the drafted token excluded: [B, γ+1, κ] int32.
        scores: their log-probabilities under the exit: [B, γ+1, κ].
        drafted: log p^E(ŷᵣ₊₁) at the first γ positions: [B, γ].
    """

    tokens: Array
    scores: Array
    drafted: Array


class Roots(NamedTuple):
    """Roots of branches: after ``accepted`` tokens of the window comes ``tokens``; both [B, R] int32."""

    accepted: Array
    tokens: Array


#: A policy: from a message to the R roots to roll out, or None where nothing is rolled out ahead.
Policy = Callable[[Message], Roots]


def message_like(batch: int, window: int, num_candidates: int) -> Message:
    """Shapes and dtypes of a message."""
    slots = batch, window + 1, num_candidates
    shape: Any = jax.ShapeDtypeStruct
    return Message(shape(slots, jnp.int32), shape(slots, jnp.float32), shape((batch, window), jnp.float32))


def message(logits: Array, window: Array, num_candidates: int) -> Message:
    """Builds the message from exit logits [V, B, γ+1] and the window ŷ [B, γ].

    A correction at a position r < γ can never be the drafted token ŷᵣ₊₁, so that token is masked before the top-κ is
    taken: one free slot at each of these positions.
    """
    log_exit = jnp.moveaxis(jax.nn.log_softmax(logits, axis=0), 0, -1)
    drafted = jnp.pad(window, ((0, 0), (0, 1)), constant_values=-1)
    is_drafted = jnp.arange(logits.shape[0])[None, None] == drafted[:, :, None]
    scores, tokens = jax.lax.top_k(jnp.where(is_drafted, -jnp.inf, log_exit), num_candidates)
    chosen = jnp.sum(jnp.where(is_drafted, log_exit, 0.0), axis=-1)[:, :-1]
    return Message(tokens.astype(jnp.int32), scores, chosen)


@lru_cache
def mirror(budget: int | None = None, sharpness: float = 5.0) -> Policy:
    """The exit's top-κ at every position, ranked, the best ``budget`` (R) of them; all (γ+1)·κ without a budget.

    score(r, v) = Σ_{j≤r} log q(ŷⱼ | j) + log q(v | r): how likely it is that exactly r tokens are accepted and v comes
    next. Greedy verification asks which token is the target's most likely one, and of that the exit is surer than its
    law says: q ∝ (p^E)^β over the tokens that the message holds for a position.

    Args:
        budget: R, branches rolled out for each sequence.
        sharpness: β; 1 is the exit's own law.

    Raises:
        ValueError: a budget below 1, or a sharpness that is not positive.

    Source: Mirror-SD (arXiv 2510.13161), §3; ranking under a budget is ours.
    """
    if budget is not None and budget < 1:
        raise ValueError(f"expected a branch budget >= 1, got {budget}; without a limit pass None")
    if not sharpness > 0:
        raise ValueError(f"expected sharpness > 0, got {sharpness}")

    def policy(received: Message) -> Roots:
        drafted, scores = _sharpened(received, sharpness)
        reach = jnp.pad(jnp.cumsum(drafted, axis=1), ((0, 0), (1, 0)))
        scores = reach[:, :, None] + scores
        batch, positions, kappa = scores.shape
        count = positions * kappa if budget is None else min(budget, positions * kappa)
        best = jax.lax.top_k(scores.reshape(batch, -1), count)[1].astype(jnp.int32)
        return Roots(best // kappa, jnp.take_along_axis(received.tokens.reshape(batch, -1), best, axis=1))

    return policy


def _sharpened(received: Message, sharpness: float) -> tuple[Array, Array]:
    """log q of the drafted tokens [B, γ] and of the candidates [B, γ+1, κ]."""
    drafted = jnp.pad(received.drafted, ((0, 0), (0, 1)), constant_values=-jnp.inf)[:, :, None]
    known = jnp.concatenate([drafted, received.scores], axis=2) * sharpness
    law = jax.nn.log_softmax(known, axis=2)
    return law[:, :-1, 0], law[:, :, 1:]
