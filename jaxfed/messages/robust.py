"""Robust aggregates, which a few poisoned clients can change only by a bounded amount.

All clients have equal weights, because a weight could be misused. What the server sums up (changes of rows)
becomes the number of clients times the same robust value: a running sum is a robust estimate of the sum of the rows.
An aggregate counts the clients whose results arrived and are finite, not the slots of the cohort. A round with fewer
than it needs (`Aggregate.least`) uses none: it leaves the server as it was, with 0 as its "num_used".
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from jaxfed.core import tree
from jaxfed.core.checks import check_range
from jaxfed.core.protocol import Aggregate, ClientMessage, Cohort, CohortResult
from jaxfed.core.types import Key

Location = Callable[[ClientMessage, Array], ClientMessage]
"""`location(messages, used) -> message`: from messages [C, ...] and the clients used, bool [C], to a robust mean.

Messages are in float32 or wider.
"""


def median() -> Aggregate:
    """Take the median of every entry: bounded while fewer than half of the clients are poisoned.

    Source: Yin et al., Byzantine-Robust Distributed Learning, ICML 2018 (arXiv 1803.01498), Option I.
    """

    def location(messages: ClientMessage, used: Array) -> ClientMessage:
        count = jnp.sum(used, dtype=jnp.int32)

        def middle(leaf: Array) -> Array:
            ranked = _ranked(leaf, used)
            low, high = (ranked[jnp.maximum(at, 0)] for at in ((count - 1) // 2, count // 2))
            return (low + high) / jnp.asarray(2, ranked.dtype)

        return jax.tree.map(middle, messages)

    return _located(location, "median")


def trimmed_mean(fraction: float) -> Aggregate:
    """Average every entry without the k largest and k smallest of n clients, k = ⌊β·n⌋, at least 1 if β > 0.

    Args:
        fraction: β in [0, 0.5): of the clients that may be poisoned. With β > 0 a round needs three clients.

    Raises:
        ValueError: `fraction` out of range.

    Source: Yin et al., ICML 2018 (arXiv 1803.01498), Option II.
    """
    check_range("fraction", fraction, least=0.0, most=0.499)

    def location(messages: ClientMessage, used: Array) -> ClientMessage:
        count = jnp.sum(used, dtype=jnp.int32)
        share = jnp.floor(fraction * count.astype(jnp.float32) + 1e-6).astype(jnp.int32)
        cut = jnp.maximum(share, 1) if fraction else share
        rank = jnp.arange(len(used))
        inside = (rank >= cut) & (rank < count - cut)
        return jax.tree.map(lambda leaf: tree.masked_mean(_ranked(leaf, used), inside), messages)

    return _located(location, f"trimmed_mean({fraction})", least=3 if fraction else 1)


def geometric_median(iterations: int = 8, smoothing: float = 1e-6) -> Aggregate:
    """Find the point with the least sum of distances to all messages, by smoothed Weiszfeld steps.

    From the mean:

        z ← Σ wᵢ·mᵢ / Σ wᵢ,    wᵢ = 1 / max(ν, ‖mᵢ − z‖₂)

    The distance is over all that a client sends together.

    Args:
        iterations: steps.
        smoothing: ν > 0.

    Raises:
        ValueError: an argument out of range.

    Source: Pillutla et al., Robust Aggregation for Federated Learning, 2022 (arXiv 1912.13445), Algorithm 2.
    """
    check_range("iterations", iterations, least=1, whole=True)
    check_range("smoothing", smoothing, above=0.0)

    def location(messages: ClientMessage, used: Array) -> ClientMessage:
        def weighted(weights: Array) -> ClientMessage:
            share = jnp.where(used, weights, 0.0)
            share = share / jnp.maximum(jnp.sum(share), 1e-30)
            return tree.masked_sum(tree.scale_rows(share, messages), used)

        def step(number: int, point: ClientMessage) -> ClientMessage:
            distance = jax.vmap(lambda message: tree.norm(optax.tree.sub(message, point)))(messages)
            return weighted(1.0 / jnp.maximum(distance, smoothing))

        return jax.lax.fori_loop(0, int(iterations), step, weighted(jnp.ones(used.shape)))

    return _located(location, f"geometric_median({iterations}, {smoothing})")


def krum(poisoned: int, selected: int = 1) -> Aggregate:
    """Average the `selected` messages that lie closest to their neighbours (multi-Krum; Krum for one).

    The score of a message is the sum of its n − f − 2 smallest squared distances to others. Clients that are not
    selected count as not having taken part: their rows stay as they were, and a running sum that of all rows.

    A round needs n ≥ 2f + 3 clients with finite results, and n ≥ f + m, or poisoned ones would have to be selected.
    With fewer it uses none. With `CoinFlips`, choose P·N well above that.

    Args:
        poisoned: f ≥ 0, clients of a cohort that may be poisoned.
        selected: m ≥ 1.

    Raises:
        ValueError: an argument out of range; by `jaxfed.simulate` or at the first round, a cohort with too few slots.

    Source: Blanchard et al., Machine Learning with Adversaries, NeurIPS 2017, Sections 4 and 5.
    """
    check_range("poisoned", poisoned, least=0, whole=True)
    check_range("selected", selected, least=1, whole=True)
    least = int(max(2 * poisoned + 3, poisoned + selected))

    def combine(result: CohortResult, cohort: Cohort, key: Key) -> tuple[ClientMessage, Array]:
        slots = len(result.used)
        if slots < least:
            raise ValueError(f"expected {least} slots or more for Krum, got {slots}; draw more clients")
        scores = _krum_scores(result.message, result.used, int(poisoned))
        closest = jnp.lexsort((scores, ~result.used))[: int(selected)]
        best = jnp.zeros(slots, bool).at[closest].set(True) & _enough(result.used, least)
        delta, average, total, model_state = tree.widened(result.message)
        delta, average, model_state = tree.masked_mean((delta, average, model_state), best)
        return ClientMessage(delta, average, tree.masked_sum(total, best), model_state), best

    return Aggregate(combine, gathers=True, name=f"krum({poisoned}, {selected})", least=least)


def _krum_scores(messages: ClientMessage, used: Array, poisoned: int) -> Array:
    """Return the sum of the n − f − 2 smallest squared distances of every message [C]; infinite for those not used."""
    squares = jax.vmap(lambda one: jax.vmap(lambda other: _squared(one, other))(messages))(messages)
    other = used[None, :] & used[:, None] & ~jnp.eye(len(used), dtype=bool)
    nearest = jnp.sort(jnp.where(other, squares, jnp.inf), axis=1)
    counted = jnp.sum(used, dtype=jnp.int32) - poisoned - 2
    inside = jnp.arange(len(used)) < counted
    scores = jnp.sum(jnp.where(inside[None, :], nearest, 0.0), axis=1)
    return jnp.where(used, scores, jnp.inf)


def _squared(one: ClientMessage, other: ClientMessage) -> Array:
    return jnp.square(tree.norm(optax.tree.sub(tree.widened(one), tree.widened(other))))


def _enough(used: Array, least: int) -> Array:
    """Return the clients used [C], or none where there are fewer than needed."""
    return used & (jnp.sum(used, dtype=jnp.int32) >= least)


def _ranked(leaf: Array, used: Array) -> Array:
    """Return entries of the clients used in rising order along [C], then infinities."""
    mask = jnp.expand_dims(used, range(1, leaf.ndim))
    return jnp.sort(jnp.where(mask, leaf, jnp.asarray(jnp.inf, leaf.dtype)), axis=0)


def _located(location: Location, name: str, least: int = 1) -> Aggregate:
    def combine(result: CohortResult, cohort: Cohort, key: Key) -> tuple[ClientMessage, Array]:
        used = _enough(result.used, least)
        middle = location(tree.widened(result.message), used)
        middle = tree.where(jnp.any(used), middle, jax.tree.map(jnp.zeros_like, middle))
        count = jnp.sum(used).astype(jnp.float32)
        return middle._replace(total=tree.scale(count, middle.total)), used

    return Aggregate(combine, gathers=True, name=name, least=least)
