"""Metrics over clients: quantiles, the worst tenth, and an evaluator of every client."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from jaxfed.core.checks import check_range
from jaxfed.core.tree import masked_mean, widened
from jaxfed.core.types import Batch, Params, Scalar
from jaxfed.data.batches import ClientData
from jaxfed.data.streams import check_resident
from jaxfed.models import ApplyFn

Measure = Callable[[Any, Batch], Mapping[str, Array]]
"""`measure(params, batch) -> {name: numbers [B]}`, one number for every sample of a batch.

For a model with state, such as batch normalisation's, `params` is the pair (params, model_state).
"""


def quantiles(values: Array, levels: Sequence[float], mask: Array | None = None) -> Array:
    """Return the quantiles [len(levels)] of the values [n] where `mask`, interpolated linearly; NaN of none."""
    mask = jnp.ones(values.shape, bool) if mask is None else mask
    kept = jnp.where(mask, values, jnp.nan)
    return jnp.nanquantile(kept, jnp.asarray(levels, values.dtype))


def worst_mean(
    values: Array, mask: Array | None = None, fraction: float = 0.1, *, lower_is_better: bool = False
) -> Scalar:
    """Return the mean of the worst ⌈fraction·n⌉ of the n values where `mask`, []; NaN of none."""
    check_range("fraction", fraction, above=0.0, most=1.0)
    mask = jnp.ones(values.shape, bool) if mask is None else mask
    values = widened(values)
    badness = jnp.where(mask, values if lower_is_better else -values, -jnp.inf)
    worst, size = jnp.sort(badness, descending=True), _tail(jnp.sum(mask, dtype=jnp.int32), fraction)
    mean = jnp.sum(worst, where=jnp.arange(len(values)) < size) / size.astype(values.dtype)
    return mean if lower_is_better else -mean


def _tail(count: Array, fraction: float) -> Array:
    """Return ⌈fraction·n⌉, int32 []; 0.1 of 10 is 1, whatever the last binary digit of 0.1."""
    return jnp.ceil(count.astype(jnp.float32) * np.float32(fraction) - np.float32(1e-4)).astype(jnp.int32)


class PerClient(NamedTuple):
    """A model measured on every client's own samples.

    Attributes:
        means: name → mean over each client's samples, [N]; NaN for a client without samples.
        counts: samples of every client, int32 [N].
        ids: of the clients, int32 [N].
    """

    means: dict[str, Array]
    counts: Array
    ids: Array


def per_client(measure: Measure, data: ClientData, batch_size: int = 1024) -> Callable[[Params], PerClient]:
    """Return `evaluate(params) -> PerClient`; `params` is what `measure` takes.

    A client without samples keeps its place, with NaN.

    The samples of all clients go through the model in batches of `batch_size` and are summed by client: only the last
    batch is padded, and there is one program.

    Args:
        measure: `measure(params, batch)` -> {name: numbers [B]}.
        data: N clients' samples to evaluate on.
        batch_size: samples at a time; bounds memory.

    Raises:
        ValueError: no sample at all.
    """
    check_range("batch_size", batch_size, least=1, whole=True)
    check_resident(data, "per_client")
    if not int(np.sum(data.lengths)):
        raise ValueError("expected at least one sample to evaluate on, got none; leave the evaluation out")
    index, owner = _walk(data, batch_size)
    num_clients = len(data.lengths)

    @jax.jit
    def sums_of(params: Params, arrays: Batch, index: Array, owner: Array) -> dict[str, Array]:
        values = measure(params, {**{name: array[index] for name, array in arrays.items()}, "mask": owner >= 0})
        wide = {name: each.astype(jnp.promote_types(each.dtype, jnp.float32)) for name, each in values.items()}
        segments = jnp.where(owner >= 0, owner, num_clients)
        return {name: jax.ops.segment_sum(each, segments, num_clients) for name, each in wide.items()}

    def evaluate(params: Params) -> PerClient:
        parts = [sums_of(params, data.arrays, *each) for each in zip(index, owner, strict=True)]
        sums = jax.tree.map(lambda *leaves: functools.reduce(jnp.add, leaves), *parts)
        return means_of(sums, data)

    return evaluate


def means_of(sums: Mapping[str, Array], data: ClientData) -> PerClient:
    """Return the means of sums [N] over every client's samples."""
    means = {name: each / data.lengths.astype(each.dtype) for name, each in sums.items()}
    return PerClient(means, data.lengths, jnp.arange(len(data.lengths), dtype=jnp.int32))


def _walk(data: ClientData, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return every sample and its client, int32 [S, B] each; client −1 for the padding of the last batch."""
    lengths, offsets = np.asarray(data.lengths), np.asarray(data.offsets)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    index = offsets[owner] + np.arange(len(owner)) - (np.cumsum(lengths) - lengths)[owner]
    index = index if data.order is None else np.asarray(data.order)[index]
    missing = -len(owner) % min(batch_size, len(owner))
    index, owner = np.pad(index, (0, missing)), np.pad(owner, (0, missing), constant_values=-1)
    shape = (-1, min(batch_size, len(owner)))
    return index.reshape(shape).astype(np.int32), owner.reshape(shape).astype(np.int32)


LEVELS = {"q10": 0.1, "median": 0.5, "q90": 0.9}


def summary(measured: PerClient, lower_is_better: Sequence[str] = ("loss",)) -> dict[str, Scalar]:
    """Return what to report of a model measured on every client; clients without samples are left out, NaN of none.

    Returns:
        For every name: "name" (mean over all samples), "name/client_mean" (mean over the clients), "name/client_std",
        "name/q10", "name/median", "name/q90" (quantiles over the clients) and "name/worst_10%" (mean of the tenth of
        the clients with the smallest numbers, or the largest ones of what is in `lower_is_better`).
    """
    present = measured.counts > 0
    reported: dict[str, Scalar] = {}

    def average(numbers: Array) -> Scalar:
        return jnp.where(jnp.any(present), masked_mean(numbers, present), jnp.nan)

    for name, means in measured.means.items():
        means = widened(means)
        weights = measured.counts.astype(means.dtype)
        reported[name] = jnp.sum(weights * means, where=present) / jnp.sum(weights)
        reported[f"{name}/client_mean"] = mean = average(means)
        reported[f"{name}/client_std"] = jnp.sqrt(average(jnp.square(means - mean)))
        levels = quantiles(means, list(LEVELS.values()), present)
        reported |= {f"{name}/{level}": each for level, each in zip(LEVELS, levels, strict=True)}
        reported[f"{name}/worst_10%"] = worst_mean(means, present, lower_is_better=name in lower_is_better)
    return reported


def classification(apply: ApplyFn) -> Measure:
    """Return the measure of a classifier: "loss" (cross-entropy, nats) and "accuracy" (0 or 1) of every sample."""

    def measure(params: Params, batch: Batch) -> dict[str, Array]:
        logits = apply(params, batch["x"])
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])
        return {"loss": loss, "accuracy": (jnp.argmax(logits, axis=-1) == batch["y"]).astype(loss.dtype)}

    return measure


def client_evaluator(
    measure: Measure, data: ClientData, batch_size: int = 1024, lower_is_better: Sequence[str] = ("loss",)
) -> Callable[[Params], dict[str, float]]:
    """Return `evaluate(params)` for `jaxfed.Report`: the `summary` of a model over every client's samples.

    Args:
        measure: numbers of every sample, such as `classification(apply)`.
        data: samples to evaluate on, client by client.
        batch_size: samples at a time.
        lower_is_better: names of which a large number is a bad one.
    """
    report = summarised(per_client(measure, data, batch_size), lower_is_better)
    return lambda params: report(params)


def summarised(
    evaluate: Callable[..., PerClient], lower_is_better: Sequence[str], prefix: str = ""
) -> Callable[..., dict[str, float]]:
    """Return a function of the same arguments that returns the `summary` as Python numbers, names with a prefix."""
    summarise = jax.jit(lambda measured: summary(measured, lower_is_better))

    def report(*arguments: Any) -> dict[str, float]:
        return {f"{prefix}{name}": float(each) for name, each in summarise(evaluate(*arguments)).items()}

    return report
