"""Exit heads: from the hidden state after ℓₑ layers to logits over the vocabulary.

An exit is a pytree that is callable as ``exit(network, params, x)``. The oracle needs no head of its own: it is the
logit lens at ``exit_layer`` = N, where the prefix is the whole target.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxspec.models.base import Array, Network, Params


class LogitLens(NamedTuple):
    """W_LM·norm(h): the target's own final norm and head applied to the early hidden state."""

    def __call__(self, network: Network, params: Params, x: Array) -> Array:
        """Logits [V, B, T] of x [D, B, T]."""
        return network.logits(params, x)


class AffineLens(NamedTuple):
    """W_LM·norm(h + U·(Vh) + b): a low-rank affine correction before the logit lens.

    Attributes:
        down: V [rank, D].
        up: U [D, rank].
        bias: b [D].
    """

    down: Array
    up: Array
    bias: Array

    def __call__(self, network: Network, params: Params, x: Array) -> Array:
        """Logits [V, B, T] of x [D, B, T]."""
        low = jnp.einsum("rd,dbt->rbt", self.down, x)
        return network.logits(params, x + jnp.einsum("dr,rbt->dbt", self.up, low) + self.bias[:, None, None])


def init_affine_lens(width: int, rank: int, key: Array) -> AffineLens:
    """Return an affine lens that starts as the logit lens: U and b are zero."""
    return AffineLens(
        jax.random.normal(key, (rank, width)) * width**-0.5, jnp.zeros((width, rank)), jnp.zeros((width,))
    )
