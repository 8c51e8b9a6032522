"""Which tokens a text already holds, for the repetition penalty."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxspec.models.base import Array


class Seen(NamedTuple):
    """Marks of the tokens that a text holds.

    Attributes:
        marks: [..., V] bool; None where no repetition is penalised, and then every method returns the same.
    """

    marks: Any = None

    def add(self, tokens: Array, count: Array) -> "Seen":
        """Add the first ``count`` [B] of ``tokens`` [B, T] to marks [B, V]; likewise with more leading axes."""
        if self.marks is None:
            return self
        new = jax.lax.broadcasted_iota(jnp.int32, tokens.shape, tokens.ndim - 1) < count[..., None]
        return Seen(self.marks | jnp.any(is_token(tokens, self.marks.shape[-1]) & new[..., None], axis=-2))

    def along(self, window: Array) -> "Seen":
        """Return marks [B, γ+1, V] at each position of a window [B, γ]: of the text [B, V] and the window before it."""
        if self.marks is None:
            return self
        drafted = jax.lax.associative_scan(jnp.logical_or, is_token(window, self.marks.shape[-1]), axis=1)
        return Seen(self.marks[:, None] | jnp.pad(drafted, ((0, 0), (1, 0), (0, 0))))

    def with_token(self, tokens: Array) -> "Seen":
        """Add one more token of each branch, tokens [B, R], to marks [B, R, V]."""
        return self if self.marks is None else Seen(self.marks | is_token(tokens, self.marks.shape[-1]))

    def at(self, index: Array) -> "Seen":
        """Return the marks [B, R, V] at positions ``index`` [B, R] of marks [B, T, V]."""
        return self if self.marks is None else Seen(jnp.take_along_axis(self.marks, index[..., None], axis=1))

    def as_branch(self) -> "Seen":
        """Return marks [B, V] as those of one branch: [B, 1, V]."""
        return self if self.marks is None else Seen(self.marks[:, None])

    def columns(self, columns: range) -> "Seen":
        """Return some of the marks [B, T, V]."""
        return self if self.marks is None else Seen(self.marks[:, columns.start : columns.stop])

    def last(self) -> "Seen":
        """Return the marks at the last position: [B, T, V] → [B, 1, V]."""
        return self if self.marks is None else Seen(self.marks[:, -1:])


def is_token(tokens: Array, vocabulary: int) -> Array:
    """Mark each of tokens [...] in the vocabulary: [..., V] bool."""
    return tokens[..., None] == jnp.arange(vocabulary).reshape(*(1,) * tokens.ndim, -1)
