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


class NextCharacter(nnx.Module):
    """An embedding of each of the last characters and an MLP over them: logits of the character that follows.

    Attributes:
      embedding: one vector of `width` numbers per character of the vocabulary.
      mlp: one hidden layer over the `context` vectors side by side.
    """

    def __init__(self, vocabulary: int, context: int, width: int = 16, hidden: int = 192, *, rngs: nnx.Rngs) -> None:
        self.embedding = nnx.Embed(vocabulary, width, rngs=rngs)
        self.mlp = MLP((context * width, hidden, vocabulary), rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """Logits [B, vocabulary] of characters int [B, context]."""
        return self.mlp(self.embedding(x))


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


def evaluator(apply: ApplyFn, samples: Batch, batch_size: int = 4096) -> Callable[[Params], dict[str, Scalar]]:
    """Return `evaluate(params)` -> {"loss", "accuracy"}: means of a classifier over all samples.

    Args:
      apply: logits of inputs.
      samples: "x" [n, ...] and "y" int [n], n ≥ 1.
      batch_size: samples at a time, which bounds the memory taken.
    """

    def measure(params: Params, sample: Batch) -> tuple[Scalar, Array]:
        logits = apply(params, sample["x"][None])[0]
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, sample["y"])
        return loss, jnp.argmax(logits) == sample["y"]

    @jax.jit
    def evaluate(params: Params, samples: Batch) -> dict[str, Scalar]:
        losses, correct = jax.lax.map(lambda sample: measure(params, sample), samples, batch_size=batch_size)
        return {"loss": jnp.mean(losses), "accuracy": jnp.mean(correct)}

    return lambda params: evaluate(params, samples)
