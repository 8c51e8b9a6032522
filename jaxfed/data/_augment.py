"""Augmentation of images on the device, as pure functions of a key: they `vmap`, and run inside a scan.

Images are [B, H, W, channels] of any dtype; each image has its own random number. Test data are not augmented.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias, overload

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from jaxfed.core import keys
from jaxfed.core.checks import check_range
from jaxfed.core.stateful import AnyLossFn, Stateful
from jaxfed.core.types import Batch, Key, LossFn, Params, Scalar

Augment: TypeAlias = Callable[[Key, Array], Array]
"""`augment(key, images) -> images` of the same shape; `functools.partial(pad_crop, padding=2)` is one."""


def flip(key: Key, images: Array, probability: float = 0.5) -> Array:
    """Mirror left and right, each image with the given probability."""
    _check(images, probability)
    return jnp.where(_chosen(key, images, probability), images[:, :, ::-1], images)


def pad_crop(key: Key, images: Array, padding: int = 4, probability: float = 0.5) -> Array:
    """Shift by up to `padding` pixels in both directions, with zeros from outside, each image with that probability.

    This is zero-padding on all sides and a crop of the old size at an offset that is uniform over (2·padding + 1)².
    """
    _check(images, probability)
    check_range("padding", padding, least=0)
    moved, offset = jax.random.split(key)
    middle = jnp.full(2, padding)
    corners = jax.random.randint(offset, (len(images), 2), 0, 2 * padding + 1)
    corners = jnp.where(_chosen(moved, images, probability)[:, :, 0, 0], corners, middle)
    padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))

    def crop(image: Array, corner: Array) -> Array:
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), images.shape[1:])

    return jax.vmap(crop)(padded, corners)


def in_turn(*augments: Augment) -> Augment:
    """Apply one augmentation after the other, each with its own key: `in_turn(flip, pad_crop)`."""

    def augment(key: Key, images: Array) -> Array:
        for number, each in enumerate(augments):
            images = each(keys.numbered_key(key, number), images)
        return images

    return augment


@overload
def augmented(loss_fn: LossFn, augment: Augment, name: str = "x") -> LossFn: ...
@overload
def augmented(loss_fn: Stateful, augment: Augment, name: str = "x") -> Stateful: ...
def augmented(loss_fn: AnyLossFn, augment: Augment, name: str = "x") -> AnyLossFn:
    """Return the loss function of augmented batches: F(x; augment(ξ)).

    The key is folded from the step's, so it depends on (seed, round, client, step); both gradients of a step that takes
    two see the same images. Evaluate with `loss_fn` itself.

    Args:
        loss_fn: a loss function, plain or `jaxfed.Stateful`.
        augment: `augment(key, images) -> images`, such as `flip`, `pad_crop` or `in_turn(flip, pad_crop)`.
        name: which array of the batch holds the images.
    """

    def changed(batch: Batch, key: Key) -> Batch:
        return {**batch, name: augment(keys.augmentation_key(key), batch[name])}

    if isinstance(loss_fn, Stateful):
        inner = loss_fn.loss_fn

        def stateful(params: Params, model_state: PyTree, batch: Batch, key: Key) -> tuple[Scalar, tuple[PyTree, Any]]:
            return inner(params, model_state, changed(batch, key), key)

        return dataclasses.replace(loss_fn, loss_fn=stateful)
    plain = loss_fn

    def loss(params: Params, batch: Batch, key: Key) -> tuple[Scalar, Any]:
        return plain(params, changed(batch, key), key)

    return loss


def _check(images: Array, probability: float) -> None:
    check_range("probability", probability, least=0.0, most=1.0)
    if images.ndim != 4:
        raise ValueError(f"expected images [B, H, W, channels], got {list(images.shape)}")


def _chosen(key: Key, images: Array, probability: float) -> Array:
    """Return which images are changed, bool [B, 1, 1, 1]."""
    return jax.random.bernoulli(key, probability, (len(images), 1, 1, 1))
