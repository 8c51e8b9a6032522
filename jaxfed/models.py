"""Small Flax networks for examples, and the way from any Flax NNX module to plain functions."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array

from jaxfed.tree import masked_mean
from jaxfed.types import Batch, Key, LossFn, Params, Scalar

ApplyFn = Callable[[Params, Array], Array]
"""`apply(params, x) -> output`, arrays [B, ...]."""


class MLP(nnx.Module):
    """Dense layers of the given sizes with tanh between them; two sizes give softmax regression's logits.

    Attributes:
      layers: the dense layers.
    """

    def __init__(self, sizes: Sequence[int], *, rngs: nnx.Rngs) -> None:
        pairs = zip(sizes[:-1], sizes[1:], strict=True)
        self.layers = nnx.List([nnx.Linear(fan_in, fan_out, rngs=rngs) for fan_in, fan_out in pairs])

    def __call__(self, x: Array) -> Array:
        """Logits [B, sizes[-1]] of inputs [B, ...], which are flattened."""
        x = x.reshape(x.shape[0], -1)
        for layer in self.layers[:-1]:
            x = jnp.tanh(layer(x))
        return self.layers[-1](x)


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
    """Loss function of a classifier: softmax cross-entropy of batch["y"] (int [B]) given batch["x"], masked mean.

    Its aux is {"accuracy": fraction of the samples present}.
    """

    def loss_fn(params: Params, batch: Batch, key: Key) -> tuple[Scalar, Any]:
        del key
        logits = apply(params, batch["x"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])
        correct = jnp.argmax(logits, axis=-1) == batch["y"]
        mask = batch["mask"]
        return masked_mean(losses, mask), {"accuracy": masked_mean(correct, mask)}

    return loss_fn
