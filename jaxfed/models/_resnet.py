"""ResNet-18 with group normalisation, so that it holds nothing but parameters."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from jaxfed.core.checks import check_choice
from jaxfed.models._convolution import conv_general_dilated
from jaxfed.models._pooling import max_pool_overlapping

WIDTHS = (64, 128, 256, 512)
STEMS = {"imagenet": (7, 2), "cifar": (3, 1)}


class ConvNorm(nnx.Module):
    """Convolution without bias, padded by ⌊taps/2⌋ on every side, then group normalisation in two groups."""

    def __init__(self, channels: int, features: int, taps: int, stride: int = 1, *, rngs: nnx.Rngs) -> None:
        self.conv = nnx.Conv(
            channels, features, (taps, taps), stride, padding=taps // 2, use_bias=False,
            conv_general_dilated=conv_general_dilated, rngs=rngs,
        )  # fmt: skip
        self.norm = nnx.GroupNorm(features, num_groups=2, epsilon=1e-5, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """[B, ⌈H/stride⌉, ⌈W/stride⌉, features] of x [B, H, W, C]."""
        return self.norm(self.conv(x))


class ResidualBlock(nnx.Module):
    """Two 3×3 convolutions beside a shortcut, which is a 1×1 convolution where the shape changes.

    Attributes:
        first: carries the stride.
        second: keeps the shape.
        shortcut: None where x itself is added.
    """

    def __init__(self, channels: int, features: int, stride: int, *, rngs: nnx.Rngs) -> None:
        self.first = ConvNorm(channels, features, 3, stride, rngs=rngs)
        self.second = ConvNorm(features, features, 3, rngs=rngs)
        same = stride == 1 and channels == features
        self.shortcut = None if same else ConvNorm(channels, features, 1, stride, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """[B, ⌈H/stride⌉, ⌈W/stride⌉, features] of x [B, H, W, C]."""
        y = self.second(jax.nn.relu(self.first(x)))
        return jax.nn.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class ResNet18(nnx.Module):
    """Stem, four stages of two blocks with 64, 128, 256 and 512 features, mean over positions, logits.

    The ImageNet stem is a 7×7 convolution of stride 2 and max-pooling 3×3 of stride 2 (11,181,642 parameters with three
    channels and ten classes); the CIFAR stem a 3×3 convolution.

    Attributes:
        stem: the first convolution.
        pooled: whether max-pooling follows it.
        blocks: the eight blocks.
        head: the logits' dense layer.

    Source: He et al., Deep Residual Learning, 2016; Hsieh et al., 2020, for group normalisation in federated learning.
    """

    def __init__(
        self,
        classes: int = 10,
        channels: int = 3,
        stem: Literal["imagenet", "cifar"] = "imagenet",
        *,
        rngs: nnx.Rngs,
    ) -> None:
        check_choice("stem", stem, STEMS)
        self.stem = ConvNorm(channels, WIDTHS[0], *STEMS[stem], rngs=rngs)
        self.pooled = stem == "imagenet"
        blocks, width = [], WIDTHS[0]
        for features in WIDTHS:
            blocks.append(ResidualBlock(width, features, 1 if features == WIDTHS[0] else 2, rngs=rngs))
            blocks.append(ResidualBlock(features, features, 1, rngs=rngs))
            width = features
        self.blocks = nnx.List(blocks)
        self.head = nnx.Linear(width, classes, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """Return logits [B, classes] of images [B, H, W, channels]."""
        x = jax.nn.relu(self.stem(x))
        x = max_pool_overlapping(x) if self.pooled else x
        for block in self.blocks:
            x = block(x)
        return self.head(jnp.mean(x, axis=(1, 2)))
