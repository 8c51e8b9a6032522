"""Checks of a run before it starts: schedules, losses that forget the mask, slow convolutions."""

import functools
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxfed.core.protocol import FederatedAlgorithm, Server
from jaxfed.core.stateful import AnyLossFn, evaluate
from jaxfed.core.types import Batch, Key, Params, Scalar
from jaxfed.data.batches import ClientData
from jaxfed.data.batching import Epochs, OwnSteps, Steps, Stragglers, own_steps
from jaxfed.layout.plans import Chunked, Sharded
from jaxfed.rows.rounds import RoundConfig

MOVED = 0.05
"""How far parameters are moved before the check: at zeros, where some models start, all losses are equal."""
ROUNDING = 1e-5
"""Relative change of a loss that counts as rounding."""
CLIENTS = 7
"""Clients of the trial trace; a convolution with one kernel per client has a multiple of so many groups."""

FORGOTTEN = (
    "expected a loss that leaves out samples whose mask is False, got one that changes from {} to {} with the values "
    "of masked samples: clients with a short batch train on padding; average with "
    'jaxfed.masked_mean(losses, batch["mask"]), and use no layer that mixes the samples of a batch (GroupNorm '
    "instead of batch normalisation)"
)
SLOW = (
    "expected a network whose convolutions are matrix products, got {} of lax.conv_general_dilated with a kernel of "
    "every client's own, which XLA runs many times slower; in Flax (NNX and Linen) give every Conv "
    "conv_general_dilated=jaxfed.models.conv_general_dilated, for Equinox and Haiku see docs/own_network.md (dilated "
    "and grouped convolutions have no fast form)"
)


def examine(config: RoundConfig, server: Server, data: ClientData, rounds: int) -> None:
    """Examine a run before its first round.

    Raises:
        ValueError: a learning rate that is negative or no number in one of its rounds.

    Warns:
        UserWarning: a loss that depends on masked samples, where batches can be short; convolutions that would be slow.
    """
    check_learning_rates(config.algorithm, int(server.round), rounds)
    loss_fn = config.algorithm.parts and config.algorithm.parts.loss_fn
    batching = config.batching
    own_steps(batching, jnp.zeros(1, jnp.int32), len(data.lengths))
    while isinstance(batching, Stragglers | OwnSteps):
        batching = batching.batching
    if loss_fn is None or jax.process_count() > 1 or not isinstance(batching, Steps | Epochs):
        return
    if (short := short_batch(batching, np.asarray(data.lengths))) is not None:
        batches = [_batch(data, *short, batching.batch_size, seed) for seed in (0, 1)]
        before, after = mask_losses(loss_fn, server.params, server.model_state, batches)
        if np.isfinite(before) and not abs(after - before) <= ROUNDING * max(abs(before), abs(after)):
            warnings.warn(FORGOTTEN.format(f"{before:.4g}", f"{after:.4g}"), stacklevel=3)
    plan = config.plan.inner if isinstance(config.plan, Sharded) else config.plan
    if jax.default_backend() == "cpu" or (plan != Chunked(1) and jax.default_backend() != "tpu"):
        batch = _batch(data, 0, 1, batching.batch_size, 0)
        if count := slow_convolutions(loss_fn, server.params, server.model_state, batch):
            warnings.warn(SLOW.format(count), stacklevel=3)


def check_learning_rates(algorithm: FederatedAlgorithm, first: int, rounds: int) -> None:
    """Raise ValueError, with the round, if ηₜ of one of the rounds `first` … `rounds`−1 is not finite and ≥ 0."""
    if algorithm.parts is None or first >= rounds:
        return
    numbers = jnp.arange(first, rounds, dtype=jnp.int32)
    rates = np.asarray(jax.vmap(algorithm.parts.learning_rate)(numbers))
    wrong = ~(np.isfinite(rates) & (rates >= 0.0))
    if wrong.any():
        at = int(wrong.argmax())
        raise ValueError(
            f"client_learning_rate: expected a schedule of finite numbers ≥ 0, got {rates[at]!s} in round "
            f"{first + at}; let it end at 0 or above, or take fewer rounds"
        )


def short_batch(batching: Steps | Epochs, lengths: np.ndarray) -> tuple[int, int] | None:
    """Return (client, number of samples) of a batch that is not full, or None."""
    size = batching.batch_size
    left = np.minimum(lengths, size) if isinstance(batching, Steps) else lengths % size
    short = (left > 0) & (left < size)
    client = int(short.argmax())
    return (client, int(left[client])) if short.any() else None


def mask_losses(loss_fn: AnyLossFn, params: Params, model_state: PyTree, batches: list[Batch]) -> tuple[float, float]:
    """Return the losses of two batches near the parameters; the program is kept for the next run of the same loss."""
    key: Any = loss_fn
    try:
        program = _kept(key)
    except TypeError:  # a callable without a hash
        program = _program(loss_fn)
    before, after = (float(program(params, model_state, batch)) for batch in batches)
    return before, after


def slow_convolutions(loss_fn: AnyLossFn, params: Params, model_state: PyTree, batch: Batch) -> int:
    """Return the number of convolutions with one kernel per client in a batched computation, by tracing alone."""
    if all(leaf.ndim < 3 for leaf in jax.tree.leaves((params, model_state))):
        return 0

    def losses(params: Params, model_state: PyTree, batch: Batch) -> Scalar:
        return jax.vmap(functools.partial(_loss, loss_fn, jax.random.key(0)))(params, model_state, batch)

    def of_every_client(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((CLIENTS, *leaf.shape), leaf.dtype)

    traced = jax.make_jaxpr(losses)(*jax.tree.map(of_every_client, (params, model_state, batch)))
    groups = [
        equation.params["feature_group_count"] * equation.params["batch_group_count"]
        for equation in _equations(traced.jaxpr)
        if equation.primitive.name == "conv_general_dilated"
    ]
    return sum(count % CLIENTS == 0 for count in groups)


def _batch(data: ClientData, client: int, count: int, size: int, seed: int) -> Batch:
    """Return a batch [B, ...] of a client with `count` samples; the padding is samples drawn by the seed."""
    start = int(data.offsets[client])
    order = np.arange(start, start + count) if data.order is None else np.asarray(data.order[start : start + count])
    total = len(next(iter(data.arrays.values())))
    index = np.concatenate([order, np.random.default_rng(seed).integers(total, size=size - count)])
    samples: dict[str, Any] = {name: np.asarray(array[index]) for name, array in data.arrays.items()}
    return {**samples, "mask": np.arange(size) < count}


def _loss(loss_fn: AnyLossFn, key: Key, params: Params, model_state: PyTree, batch: Batch) -> Scalar:
    return evaluate(loss_fn, params, model_state, batch, key)[0]


def _program(loss_fn: AnyLossFn) -> Callable[[Params, PyTree, Mapping[str, Any]], Scalar]:
    # The cost is compilation alone: the first round of a convolutional network takes twenty times as long.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None

    @functools.partial(jax.jit, compiler_options=options)
    def near(params: Params, model_state: PyTree, batch: Batch) -> Scalar:
        return _loss(loss_fn, jax.random.key(0), jax.tree.map(_moved, params), model_state, batch)

    return near


def _moved(leaf: jax.Array) -> jax.Array:
    """Return a leaf nearby; a sine compiles faster than random numbers."""
    wave = jnp.sin(jax.lax.iota(jnp.float32, leaf.size)).reshape(leaf.shape)
    return leaf + (MOVED * wave).astype(leaf.dtype)


_kept = functools.lru_cache(4)(_program)


def _equations(jaxpr: Any) -> Iterator[Any]:
    """Yield all equations of a jaxpr, nested ones included, except what is for other platforms."""
    for equation in jaxpr.eqns:
        yield equation
        parts = dict(equation.params)
        if (platforms := parts.get("branches_platforms")) is not None:
            parts["branches"] = parts["branches"][_own_branch(platforms)]
        for inner in jax.tree.leaves(list(parts.values()), is_leaf=lambda each: hasattr(each, "eqns")):
            if hasattr(inner, "eqns"):
                yield from _equations(getattr(inner, "jaxpr", inner))


def _own_branch(platforms: tuple[tuple[str, ...] | None, ...]) -> int:
    """Return which branch of `lax.platform_dependent` this machine runs; None is the default."""
    device = jax.devices()[0].platform
    names = {device, *(("cuda", "rocm") if device == "gpu" else ())}
    own = [number for number, some in enumerate(platforms) if some is not None and names & set(some)]
    return own[0] if own else platforms.index(None)
