"""Verification: what of a window the target's own choices confirm. Sees tokens only, no model."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxspec.models.base import Array


class Verdict(NamedTuple):
    """Outcome of one verification, per sequence; all a draft needs to go on.

    Attributes:
        num_accepted: A, drafted tokens confirmed, the extra token excluded: [B] int32.
        next_token: c, the correction token, or the bonus token if A = γ: [B] int32.
        position: position of ``next_token`` in the sequence: [B] int32.
    """

    num_accepted: Array
    next_token: Array
    position: Array


def verdict_like(batch: int) -> Verdict:
    """Return shapes and dtypes of a verdict."""
    field: Any = jax.ShapeDtypeStruct((batch,), jnp.int32)
    return Verdict(field, field, field)


def longest_match(window: Array, choices: Array, position: Array) -> Verdict:
    """Return A = length of the longest prefix in which ŷⱼ = yⱼ; c = y_{A+1}.

    Args:
        window: ŷ₁..ŷ_γ, drafted tokens: [B, γ].
        choices: y₁..y_{γ+1}, the target's own tokens after the last committed one and each of the window: [B, γ+1].
        position: of the last committed token: [B].

    Source: Mirror-SD (arXiv 2510.13161), §3, verification.
    """
    agrees = (window == choices[:, :-1]).astype(jnp.int32)
    accepted = jnp.sum(jnp.cumprod(agrees, axis=1), axis=1)
    next_token = jnp.take_along_axis(choices, accepted[:, None], axis=1)[:, 0]
    return Verdict(accepted, next_token, position + accepted + 1)
