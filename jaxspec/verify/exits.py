"""Exit heads: from the hidden state after ℓₑ layers to logits over the vocabulary.

An exit is a pytree that is callable as ``exit(network, params, x)``. The oracle needs no head of its own: it is the
logit lens at ``exit_layer`` = N, where the prefix is the whole target.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.models.base import Array, Model, Network, Params


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


class FrequentLens(NamedTuple):
    """W·f(h + U·silu(V·n(h) + b)) for K frequent tokens, −∞ for all others: an exit head with rows of its own.

    n divides by the root mean square, f is what the target's head reads (``Network.final``). Tokens without a row are
    never sent to the draft, so that the head costs K/V of the target's.

    Attributes:
        tokens: ids of the rows, [K] int32, ascending.
        head: W [K, E], E features of ``Network.final``.
        down: V [rank, D].
        bias: b [rank].
        up: U [D, rank].
    """

    tokens: Array
    head: Array
    down: Array
    bias: Array
    up: Array

    def __call__(self, network: Network, params: Params, x: Array) -> Array:
        """Logits [V, B, T] float32 of x [D, B, T]."""
        scores = self.scores(network, params, x)
        everything = jnp.full((network.config.vocab_size, *scores.shape[1:]), -jnp.inf, scores.dtype)
        return everything.at[self.tokens].set(scores, indices_are_sorted=True, unique_indices=True)

    def scores(self, network: Network, params: Params, x: Array) -> Array:
        """Logits [K, B, T] float32 of ``tokens``."""
        assert network.final is not None  # checked by init_frequent_lens
        own, wide = self.head.dtype, x.astype(self.head.dtype)
        normed = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=0, keepdims=True) + jnp.asarray(1e-6, own))
        low = jax.nn.silu(jnp.einsum("rd,dbt->rbt", self.down, normed) + self.bias[:, None, None])
        turned = wide + jnp.einsum("dr,rbt->dbt", self.up, low)
        read = network.final(params, turned.astype(x.dtype)).astype(own)
        return jnp.einsum("ke,ebt->kbt", self.head, read, preferred_element_type=jnp.float32)


def init_frequent_lens(target: Model, tokens: Array, rank: int, key: Array) -> FrequentLens:
    """Return an exit head over some tokens that starts as the logit lens; float32.

    Args:
        target: has the rows of these tokens in its head.
        tokens: different ids, ascending.
        rank: of the correction.
        key: of V.

    Raises:
        ValueError: ids that are not different tokens of the target in ascending order, a rank below 1, a network
            without ``final``, or no head in its parameters.
    """
    config, ids = target.network.config, np.asarray(tokens)
    rows = target.params.get("head", target.params.get("embedding")) if isinstance(target.params, dict) else None
    if target.network.final is None or rows is None or len(rows) != config.vocab_size:
        raise ValueError("expected a network with ``final``, and ``head`` or ``embedding`` in its parameters, got none")
    if rank < 1 or not len(ids) or ids[0] < 0 or ids[-1] >= config.vocab_size or np.any(np.diff(ids) <= 0):
        raise ValueError(
            f"expected rank >= 1 and different ids below {config.vocab_size}, ascending, got rank {rank} and "
            f"{len(ids)} ids"
        )
    down = jax.random.normal(key, (rank, config.width)) * config.width**-0.5
    head = jnp.asarray(rows)[ids].astype(jnp.float32) * (config.ends.logit_scale or 1.0)
    return FrequentLens(jnp.asarray(ids, jnp.int32), head, down, jnp.zeros((rank,)), jnp.zeros((config.width, rank)))
