"""How far a draft's distribution Q is from the target's P, over the same vocabulary; nats per token."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from jaxspec.models.base import Array

#: Smallest acceptance of which a logarithm is taken.
LEAST_ACCEPTANCE = 1e-5
#: How fast ``lk_hybrid`` turns from KL to TV as acceptance grows.
TURN = 3.0


def soft_cross_entropy(log_q: Array, log_p: Array) -> Array:
    """Return −Σ P·log Q."""
    return -jnp.sum(jnp.exp(log_p) * log_q, axis=0)


def hard_cross_entropy(log_q: Array, log_p: Array) -> Array:
    """Return −log Q of P's most likely token."""
    top = jnp.argmax(log_p, axis=0)[None] == jnp.arange(len(log_p)).reshape(-1, *(1,) * (log_p.ndim - 1))
    return -jnp.sum(jnp.where(top, log_q, 0.0), axis=0)


def kl(log_q: Array, log_p: Array) -> Array:
    """Return Σ P·log(P / Q)."""
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=0)


def reverse_kl(log_q: Array, log_p: Array) -> Array:
    """Return Σ Q·log(Q / P)."""
    return kl(log_p, log_q)


def jensen_shannon(log_q: Array, log_p: Array) -> Array:
    """Return ½·KL(P ‖ M) + ½·KL(Q ‖ M), M = (P + Q) / 2."""
    middle = jnp.logaddexp(log_q, log_p) - jnp.log(2.0)
    return 0.5 * (kl(middle, log_p) + kl(middle, log_q))


def acceptance(log_q: Array, log_p: Array) -> Array:
    """Return α = Σ min(P, Q), the probability that speculative sampling accepts a token of Q."""
    return jnp.sum(jnp.minimum(jnp.exp(log_q), jnp.exp(log_p)), axis=0)


def total_variation(log_q: Array, log_p: Array) -> Array:
    """Return 1 − α."""
    return 1.0 - acceptance(log_q, log_p)


def negative_log_acceptance(log_q: Array, log_p: Array) -> Array:
    """Return −log α."""
    return -jnp.log(jnp.maximum(acceptance(log_q, log_p), LEAST_ACCEPTANCE))


def lk_hybrid(log_q: Array, log_p: Array) -> Array:
    """Return λ·KL + (1 − λ)·TV with λ = exp(−3·α), no gradient through λ (arXiv 2602.23881)."""
    share = jnp.exp(-TURN * jax.lax.stop_gradient(acceptance(log_q, log_p)))
    return share * kl(log_q, log_p) + (1.0 - share) * total_variation(log_q, log_p)


#: From (log Q, log P), each [V, ...], to [...], by the names of vllm-project/speculators, where it has them.
DIVERGENCES: dict[str, Callable[[Array, Array], Array]] = {
    "soft_ce": soft_cross_entropy,
    "ce": hard_cross_entropy,
    "kl_div": kl,
    "rkl": reverse_kl,
    "jsd": jensen_shannon,
    "tv": total_variation,
    "nla": negative_log_acceptance,
    "lk_hybrid": lk_hybrid,
}


#: The cross-entropy against the whole distribution of the target.
SOFT = (("soft_ce", 1.0),)


def check_divergence(parts: Sequence[tuple[str, float]]) -> None:
    """Check the names of a weighted sum of divergences; raise ValueError for an unknown one, or for none."""
    names = [name for name, _ in parts]
    if not names or not set(names) <= set(DIVERGENCES):
        raise ValueError(f"expected divergences out of {', '.join(DIVERGENCES)}, got {', '.join(names) or 'none'}")


def weighted(parts: Sequence[tuple[str, float]], logits: Array, teacher: Array) -> Array:
    """Return a weighted sum of divergences of logits [V, B, T] from a teacher's: [B, T]."""
    log_q, log_p = jax.nn.log_softmax(logits, axis=0), jax.nn.log_softmax(teacher, axis=0)
    return sum((weight * DIVERGENCES[name](log_q, log_p) for name, weight in parts), jnp.zeros(logits.shape[1:]))
