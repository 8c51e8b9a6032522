"""Metrics over clients: statistics that merge, quantiles and the worst tenth, and an evaluator of every client."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from jaxfed.core.checks import check_range
from jaxfed.core.tree import masked_mean, widened
from jaxfed.core.types import Batch, Params, Scalar
from jaxfed.data.batches import ClientData
from jaxfed.models import ApplyFn

Measure = Callable[[Params, Batch], Mapping[str, Array]]
"""`measure(params, batch) -> {name: numbers [B]}`, one number for every sample of a batch."""


class Statistics(NamedTuple):
    """Count, mean, variance, range and a histogram of numbers; those of two sets merge into those of their union.

    Attributes:
        size: n, int32 [].
        mean: x̄, []; 0 where n = 0.
        deviation: Σ(x − x̄)², [].
        least: the smallest number, []; +∞ where n = 0.
        most: the largest number, []; −∞ where n = 0.
        edges: rising edges of the histogram's bins, [bins + 1]; numbers outside count in the first or the last bin.
        counts: numbers in every bin, int32 [bins].
        sums: their sums, [bins].
    """

    size: Array
    mean: Scalar
    deviation: Scalar
    least: Scalar
    most: Scalar
    edges: Array
    counts: Array
    sums: Array


def statistics(values: Array, edges: Array, mask: Array | None = None) -> Statistics:
    """Statistics of the numbers `values` [n] that `mask` [n] marks (all, without one), in the bins of `edges`."""
    mask = jnp.ones(values.shape, bool) if mask is None else mask
    values = widened(values)
    edges, count = edges.astype(values.dtype), jnp.sum(mask, dtype=jnp.int32)
    present = jnp.where(mask, values, 0)
    mean = jnp.sum(present) / jnp.maximum(count, 1).astype(values.dtype)
    deviation = jnp.sum(jnp.square(jnp.where(mask, values - mean, 0)))
    least, most = jnp.min(values, initial=jnp.inf, where=mask), jnp.max(values, initial=-jnp.inf, where=mask)
    place = jnp.clip(jnp.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)
    counts = jnp.zeros(len(edges) - 1, jnp.int32).at[place].add(mask.astype(jnp.int32))
    sums = jnp.zeros(len(edges) - 1, values.dtype).at[place].add(present)
    return Statistics(count, mean, deviation, least, most, edges, counts, sums)


def merge(left: Statistics, right: Statistics) -> Statistics:
    """Statistics of both sets together, as if they had been one; both need the same edges.

    With δ = x̄_b − x̄_a: x̄ = x̄_a + δ·n_b/n and Σ(x − x̄)² = S_a + S_b + δ²·n_a·n_b/n (Chan, Golub & LeVeque 1979).
    """
    size, dtype = left.size + right.size, left.mean.dtype
    share = right.size.astype(dtype) / jnp.maximum(size, 1).astype(dtype)
    distance = right.mean - left.mean
    return Statistics(
        size,
        left.mean + distance * share,
        left.deviation + right.deviation + jnp.square(distance) * left.size.astype(dtype) * share,
        jnp.minimum(left.least, right.least),
        jnp.maximum(left.most, right.most),
        left.edges,
        left.counts + right.counts,
        left.sums + right.sums,
    )


def variance(found: Statistics) -> Scalar:
    """Σ(x − x̄)²/n, []; 0 of no numbers."""
    return found.deviation / jnp.maximum(found.size, 1).astype(found.deviation.dtype)


def histogram_quantile(found: Statistics, level: float) -> Scalar:
    """The number below which the fraction `level` lies, [], read off the histogram: wrong by a bin's width at most.

    NaN of no numbers.
    """
    check_range("level", level, least=0.0, most=1.0)
    dtype = found.edges.dtype
    reached = jnp.cumsum(found.counts).astype(dtype)
    wanted = jnp.asarray(level, dtype) * found.size.astype(dtype)
    at = jnp.clip(jnp.searchsorted(reached, wanted), 0, len(found.counts) - 1)
    inside = jnp.maximum(found.counts[at].astype(dtype), 1)
    fraction = 1 - (reached[at] - wanted) / inside
    lower, upper = jnp.maximum(found.edges[at], found.least), jnp.minimum(found.edges[at + 1], found.most)
    return jnp.where(found.size > 0, lower + jnp.clip(fraction, 0, 1) * (upper - lower), jnp.nan)


def histogram_worst(found: Statistics, fraction: float = 0.1, *, lower_is_better: bool = False) -> Scalar:
    """Mean of the worst `fraction` of the numbers, []; of the bin that is cut, the bin's mean stands for its part.

    NaN of no numbers.
    """
    check_range("fraction", fraction, above=0.0, most=1.0)
    counts, sums = (found.counts[::-1], found.sums[::-1]) if lower_is_better else (found.counts, found.sums)
    counts, wanted = counts.astype(sums.dtype), _tail(found.size, fraction).astype(sums.dtype)
    taken = jnp.clip(wanted - (jnp.cumsum(counts) - counts), 0, counts)
    return jnp.sum(taken * sums / jnp.maximum(counts, 1)) / wanted


def quantiles(values: Array, levels: Sequence[float], mask: Array | None = None) -> Array:
    """Exact quantiles [len(levels)] of the numbers [n] that `mask` marks, interpolated linearly; NaN of none."""
    mask = jnp.ones(values.shape, bool) if mask is None else mask
    kept = jnp.where(mask, values, jnp.nan)
    return jnp.nanquantile(kept, jnp.asarray(levels, values.dtype))


def worst_mean(
    values: Array, mask: Array | None = None, fraction: float = 0.1, *, lower_is_better: bool = False
) -> Scalar:
    """Mean of the worst ⌈fraction·n⌉ of the n numbers that `mask` marks, []: smallest or largest ones; NaN of none."""
    check_range("fraction", fraction, above=0.0, most=1.0)
    mask = jnp.ones(values.shape, bool) if mask is None else mask
    values = widened(values)
    badness = jnp.where(mask, values if lower_is_better else -values, -jnp.inf)
    worst, size = jnp.sort(badness, descending=True), _tail(jnp.sum(mask, dtype=jnp.int32), fraction)
    mean = jnp.sum(worst, where=jnp.arange(len(values)) < size) / size.astype(values.dtype)
    return mean if lower_is_better else -mean


def _tail(count: Array, fraction: float) -> Array:
    """⌈fraction·n⌉, int32 []; a fraction such as 0.1 of 10 is 1, whatever its last binary digit."""
    return jnp.ceil(count.astype(jnp.float32) * np.float32(fraction) - np.float32(1e-4)).astype(jnp.int32)


class PerClient(NamedTuple):
    """A model measured on every client's own samples.

    Attributes:
        means: name → mean over each client's samples, [N]; NaN for a client without samples.
        counts: samples of every client, int32 [N].
    """

    means: dict[str, Array]
    counts: Array


def per_client(measure: Measure, data: ClientData, batch_size: int = 1024) -> Callable[[Params], PerClient]:
    """Return `evaluate(params) -> PerClient`.

    The samples of all clients go through the model one after the other, `batch_size` at a time, and are added up by
    owner: however unequal the clients, nothing is padded but the last batch, and one program does it.

    Args:
        measure: numbers [B] of the samples of a batch.
        data: N clients' samples to evaluate on.
        batch_size: samples at a time, which bounds the memory taken.

    Raises:
        ValueError: no sample at all.
    """
    check_range("batch_size", batch_size, least=1, whole=True)
    if not int(np.sum(data.lengths)):
        raise ValueError("expected at least one sample to evaluate on, got none; leave the evaluation out")
    index, owner = _walk(data, batch_size)
    num_clients = len(data.lengths)

    @jax.jit
    def sums_of(params: Params, arrays: Batch, index: Array, owner: Array) -> dict[str, Array]:
        found = measure(params, {**{name: array[index] for name, array in arrays.items()}, "mask": owner >= 0})
        wide = {name: each.astype(jnp.promote_types(each.dtype, jnp.float32)) for name, each in found.items()}
        segments = jnp.where(owner >= 0, owner, num_clients)
        return {name: jax.ops.segment_sum(each, segments, num_clients) for name, each in wide.items()}

    def evaluate(params: Params) -> PerClient:
        parts = [sums_of(params, data.arrays, *each) for each in zip(index, owner, strict=True)]
        sums = jax.tree.map(lambda *leaves: functools.reduce(jnp.add, leaves), *parts)
        return PerClient({name: each / data.lengths.astype(each.dtype) for name, each in sums.items()}, data.lengths)

    return evaluate


def _walk(data: ClientData, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Every client's samples and their owner, int32 [S, B] each; in the last batch −1 as the owner of no sample."""
    lengths, offsets = np.asarray(data.lengths), np.asarray(data.offsets)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    index = offsets[owner] + np.arange(len(owner)) - (np.cumsum(lengths) - lengths)[owner]
    index = index if data.order is None else np.asarray(data.order)[index]
    missing = -len(owner) % min(batch_size, len(owner))
    index, owner = np.pad(index, (0, missing)), np.pad(owner, (0, missing), constant_values=-1)
    shape = (-1, min(batch_size, len(owner)))
    return index.reshape(shape).astype(np.int32), owner.reshape(shape).astype(np.int32)


LEVELS = {"q10": 0.1, "median": 0.5, "q90": 0.9}


def summary(found: PerClient, lower_is_better: Sequence[str] = ("loss",)) -> dict[str, Scalar]:
    """What to report of a model measured on every client; clients without samples count nowhere, NaN without any.

    Returns:
        For every name: "name" (mean over all samples), "name/client_mean" (mean over the clients), "name/client_std",
        "name/q10", "name/median", "name/q90" (quantiles over the clients) and "name/worst_10%" (mean of the tenth of
        the clients with the smallest numbers, or the largest ones of what is in `lower_is_better`).
    """
    present = found.counts > 0
    told: dict[str, Scalar] = {}

    def average(numbers: Array) -> Scalar:
        return jnp.where(jnp.any(present), masked_mean(numbers, present), jnp.nan)

    for name, means in found.means.items():
        means = widened(means)
        weights = found.counts.astype(means.dtype)
        told[name] = jnp.sum(weights * means, where=present) / jnp.sum(weights)
        told[f"{name}/client_mean"] = mean = average(means)
        told[f"{name}/client_std"] = jnp.sqrt(average(jnp.square(means - mean)))
        levels = quantiles(means, list(LEVELS.values()), present)
        told |= {f"{name}/{level}": each for level, each in zip(LEVELS, levels, strict=True)}
        told[f"{name}/worst_10%"] = worst_mean(means, present, lower_is_better=name in lower_is_better)
    return told


def classification(apply: ApplyFn) -> Measure:
    """Measure of a classifier: "loss" (softmax cross-entropy, nats) and "accuracy" (0 or 1) of every sample."""

    def measure(params: Params, batch: Batch) -> dict[str, Array]:
        logits = apply(params, batch["x"])
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])
        return {"loss": loss, "accuracy": (jnp.argmax(logits, axis=-1) == batch["y"]).astype(loss.dtype)}

    return measure


def client_evaluator(
    measure: Measure, data: ClientData, batch_size: int = 1024, lower_is_better: Sequence[str] = ("loss",)
) -> Callable[[Params], dict[str, float]]:
    """Return `evaluate(params)` for `jaxfed.simulate`: a model on every client's own samples, see `summary`.

    Args:
        measure: numbers of every sample, such as `classification(apply)`.
        data: samples to evaluate on, client by client.
        batch_size: samples at a time.
        lower_is_better: names of which a large number is a bad one.
    """
    evaluate = per_client(measure, data, batch_size)
    summarise = jax.jit(lambda found: summary(found, lower_is_better))
    return lambda params: {name: float(each) for name, each in summarise(evaluate(params)).items()}
