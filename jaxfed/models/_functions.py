"""From any Flax NNX module to plain functions, and from these to loss and evaluation."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array

from jaxfed.core.tree import masked_mean
from jaxfed.core.types import Batch, Key, LossFn, Params, Scalar

ApplyFn = Callable[[Params, Array], Array]
"""`apply(params, x) -> output`, arrays [B, ...]."""


def functional(module: nnx.Module) -> tuple[Params, ApplyFn]:
    """Split a Flax NNX module, once, into its parameters (nested dicts of arrays) and a pure apply function.

    The module must hold nothing but parameters; raises ValueError otherwise (batch statistics and dropout's random
    state would need to be carried, which a loss function for a client cannot do).
    """
    graph, state, *rest = nnx.split(module, nnx.Param, ...)
    if jax.tree.leaves(rest):
        raise ValueError(f"expected a module of parameters only, got also {rest}; use GroupNorm or no dropout")

    def apply(params: Params, x: Array) -> Array:
        filled = jax.tree.map(lambda leaf: leaf, state)
        nnx.replace_by_pure_dict(filled, params)
        return nnx.merge(graph, filled, *rest)(x)

    return nnx.to_pure_dict(state), apply


def cross_entropy(apply: ApplyFn) -> LossFn:
    """Return a classifier's loss function: softmax cross-entropy of batch["y"] (int [B]) given batch["x"], masked mean.

    A language model has y int [B, T] and logits [B, T, vocabulary]; a sample's loss is the mean over its positions.
    Its aux is {"accuracy": fraction of correct samples, or positions}.
    """

    def loss_fn(params: Params, batch: Batch, key: Key) -> tuple[Scalar, Any]:
        del key
        logits = apply(params, batch["x"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])
        correct = jnp.argmax(logits, axis=-1) == batch["y"]
        positions = tuple(range(1, losses.ndim))
        mask = batch["mask"]
        accuracy = masked_mean(jnp.mean(correct, axis=positions), mask)
        return masked_mean(jnp.mean(losses, axis=positions), mask), {"accuracy": accuracy}

    return loss_fn


def evaluator(apply: ApplyFn, samples: Batch, batch_size: int = 1024) -> Callable[[Params], dict[str, Scalar]]:
    """Return `evaluate(params)` -> {"loss", "accuracy"}: means of a classifier over all samples.

    Args:
        apply: logits of inputs.
        samples: "x" [n, ...] and "y" int [n] or [n, T], n ≥ 1.
        batch_size: samples at a time, which bounds the memory taken.

    Raises:
        ValueError: no sample, or arrays of different length.
    """
    lengths = {name: len(array) if np.ndim(array) else 0 for name, array in samples.items()}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise ValueError(f"expected arrays of one length n ≥ 1 to evaluate on, got lengths {lengths}")

    def measure(params: Params, sample: Batch) -> tuple[Scalar, Array]:
        logits = apply(params, sample["x"][None])[0]
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, sample["y"])
        return loss, jnp.argmax(logits, axis=-1) == sample["y"]

    @jax.jit
    def evaluate(params: Params, samples: Batch) -> dict[str, Scalar]:
        losses, correct = jax.lax.map(lambda sample: measure(params, sample), samples, batch_size=batch_size)
        return {"loss": jnp.mean(losses), "accuracy": jnp.mean(correct)}

    return lambda params: evaluate(params, samples)
