"""LeNet as federated experiments use it: two 5×5 convolutions and three dense layers."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from jaxfed.models._convolution import conv_general_dilated
from jaxfed.models._dense import MLP
from jaxfed.models._pooling import relu_max_pool


class ConvPool(nnx.Module):
    """Unpadded 5×5 convolution, max-pooling 2×2, bias, relu; the bias comes after the pooling, equal and cheaper.

    Attributes:
        conv: kernel [5, 5, C, features].
        bias: [features].
    """

    def __init__(self, channels: int, features: int, *, rngs: nnx.Rngs) -> None:
        self.conv = nnx.Conv(
            channels, features, (5, 5), padding="VALID", use_bias=False,
            conv_general_dilated=conv_general_dilated, rngs=rngs,
        )  # fmt: skip
        self.bias = nnx.Param(jnp.zeros(features))

    def __call__(self, x: Array) -> Array:
        """Return [B, ⌊(H−4)/2⌋, ⌊(W−4)/2⌋, features] of x [B, H, W, C]."""
        return relu_max_pool(self.conv(x), self.bias[...])


class LeNet(nnx.Module):
    """conv 5×5 (64) – pool – conv 5×5 (64) – pool – dense 384 – dense 192 – logits, relu between them.

    Ten classes: 573,578 parameters at [28, 28, 1] and 797,962 at [32, 32, 3].

    Attributes:
        features: the two convolutions, each with its pooling.
        head: the dense layers.
    """

    def __init__(self, shape: Sequence[int] = (28, 28, 1), classes: int = 10, *, rngs: nnx.Rngs) -> None:
        height, width, channels = shape
        side = [((extent - 4) // 2 - 4) // 2 for extent in (height, width)]
        if min(side) < 1:
            raise ValueError(f"expected images [H, W, C] of at least 16 × 16, got {tuple(shape)}")
        self.features = nnx.List([ConvPool(channels, 64, rngs=rngs), ConvPool(64, 64, rngs=rngs)])
        self.head = MLP((side[0] * side[1] * 64, 384, 192, classes), activation=jax.nn.relu, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """Return logits [B, classes] of images [B, H, W, C]."""
        for layer in self.features:
            x = layer(x)
        return self.head(x)
