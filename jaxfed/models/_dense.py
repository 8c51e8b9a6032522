"""Networks of dense layers: softmax regression, multilayer perceptron, next character."""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array


class MLP(nnx.Module):
    """Dense layers of the given sizes, `activation` between them; two sizes give softmax regression's logits.

    (784, 200, 200, 10) has 199,210 parameters.

    Attributes:
        layers: the dense layers.
        activation: a function of an array, by default `jnp.tanh`; `jax.nn.relu` is another.
    """

    def __init__(
        self, sizes: Sequence[int], *, activation: Callable[[Array], Array] = jnp.tanh, rngs: nnx.Rngs
    ) -> None:
        pairs = zip(sizes[:-1], sizes[1:], strict=True)
        self.layers = nnx.List([nnx.Linear(fan_in, fan_out, rngs=rngs) for fan_in, fan_out in pairs])
        self.activation = activation

    def __call__(self, x: Array) -> Array:
        """Return logits [B, sizes[-1]] of inputs [B, ...], which are flattened."""
        x = x.reshape(x.shape[0], -1)
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
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
        """Return logits [B, vocabulary] of characters int [B, context]."""
        return self.mlp(self.embedding(x))
