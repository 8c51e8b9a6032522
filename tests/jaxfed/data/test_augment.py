"""Augmentation on the device: what it does to an image, how often, and inside a round."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxfed
from jaxfed.data import augmented, flip, in_turn, pad_crop
from tests.support.jaxfed.runs import arguments

IMAGES = jnp.asarray(np.random.default_rng(0).integers(1, 256, (64, 6, 5, 2)), jnp.uint8)
KEY = jax.random.key(0)


def changed(images):
    return np.any(np.asarray(images) != np.asarray(IMAGES), axis=(1, 2, 3))


def test_flip_mirrors_about_half_of_the_images():
    flipped = flip(KEY, IMAGES)
    which = changed(flipped)
    assert 20 <= which.sum() <= 44
    np.testing.assert_array_equal(flipped[which], IMAGES[which][:, :, ::-1])
    np.testing.assert_array_equal(flip(KEY, IMAGES, 1.0), IMAGES[:, :, ::-1])
    np.testing.assert_array_equal(flip(KEY, IMAGES, 0.0), IMAGES)
    assert flipped.dtype == IMAGES.dtype


def test_pad_crop_shifts_every_image_by_its_own_offset():
    cropped = np.asarray(pad_crop(KEY, IMAGES, padding=2, probability=1.0))
    padded = np.pad(np.asarray(IMAGES), ((0, 0), (2, 2), (2, 2), (0, 0)))
    offsets = set()
    for image, wide in zip(cropped, padded, strict=True):
        matches = [(r, c) for r in range(5) for c in range(5) if (wide[r : r + 6, c : c + 5] == image).all()]
        assert len(matches) == 1
        offsets |= set(matches)
    assert len(offsets) > 15
    assert {row for row, _ in offsets} == {column for _, column in offsets} == set(range(5))


def test_pad_crop_leaves_some_images_alone():
    assert 20 <= changed(pad_crop(KEY, IMAGES, padding=4)).sum() <= 44
    np.testing.assert_array_equal(pad_crop(KEY, IMAGES, probability=0.0), IMAGES)
    np.testing.assert_array_equal(pad_crop(KEY, IMAGES, padding=0, probability=1.0), IMAGES)


def test_augmentations_in_turn_use_different_keys():
    both = in_turn(partial(flip, probability=0.5), partial(flip, probability=0.5))(KEY, IMAGES)
    assert 0 < changed(both).sum() < 64
    assert (changed(flip(KEY, IMAGES)) != changed(flip(jax.random.key(1), IMAGES))).any()


def test_under_vmap_jit_and_scan():
    augment, keys = in_turn(flip, pad_crop), jax.random.split(KEY, 3)
    stacked = jnp.stack([IMAGES] * 3)
    expected = jnp.stack([augment(key, IMAGES) for key in keys])
    np.testing.assert_array_equal(jax.jit(jax.vmap(augment))(keys, stacked), expected)
    _, scanned = jax.lax.scan(lambda carry, each: (carry, augment(*each)), 0, (keys, stacked))
    np.testing.assert_array_equal(scanned, expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: flip(KEY, IMAGES, 1.5), "probability must be"),
        (lambda: pad_crop(KEY, IMAGES, padding=-1), "padding must be"),
        (lambda: flip(KEY, IMAGES[0]), r"expected images \[B, H, W, channels\], got \[6, 5, 2\]"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def pixel_loss(params, batch, key):
    del key
    top_left = batch["x"][:, 0, 0, 0].astype(jnp.float32)
    return jaxfed.masked_mean((params - top_left) ** 2, batch["mask"]), {"seen": top_left.mean()}


def test_a_loss_of_augmented_batches_changes_the_named_array_only():
    def loss_fn(params, batch, key):
        return jnp.zeros(()), (batch["image"], batch["y"], key)

    batch = {"image": IMAGES, "y": jnp.arange(64), "mask": jnp.ones(64, bool)}
    _, (images, y, key) = augmented(loss_fn, flip, name="image")(0.0, batch, KEY)
    assert changed(images).any()
    assert key == KEY
    np.testing.assert_array_equal(y, batch["y"])
    _, (again, *_) = augmented(loss_fn, flip, name="image")(0.0, batch, KEY)
    np.testing.assert_array_equal(again, images)


def test_a_stateful_loss_keeps_its_policy():
    def loss_fn(params, model_state, batch, key):
        return jnp.zeros(()), (model_state + 1, batch["x"])

    wrapped = augmented(jaxfed.Stateful(loss_fn, "local"), flip)
    assert wrapped.policy == "local"
    _, (state, images) = wrapped.loss_fn(0.0, jnp.int32(1), {"x": IMAGES}, KEY)
    assert state == 2
    assert changed(images).any()


@pytest.mark.parametrize("plan", [jaxfed.vmap(), jaxfed.map()], ids=["vmap", "map"])
def test_rounds_of_augmented_batches_differ_by_step_and_agree_across_plans(plan):
    data = jaxfed.data.client_data([{"x": np.asarray(IMAGES[:8])}, {"x": np.asarray(IMAGES[8:16])}])

    def trained(loss_fn):
        algorithm = jaxfed.fedspeed(loss_fn)
        server = algorithm.init(jnp.zeros(()), 2)
        options = {"rounds": 2, "batching": jaxfed.Steps(3, 8), "sampler": jaxfed.FixedSize(2)}
        return jaxfed.simulate(algorithm, server, data, **arguments(plan=plan, **options))[0].params

    plain, mirrored = trained(pixel_loss), trained(augmented(pixel_loss, flip))
    assert abs(plain - mirrored) > 1e-3
    always = trained(augmented(pixel_loss, partial(flip, probability=1.0)))
    mirror_image = jaxfed.data.client_data([{"x": np.asarray(IMAGES[i : i + 8, :, ::-1])} for i in (0, 8)])
    data = mirror_image
    np.testing.assert_allclose(always, trained(pixel_loss), rtol=1e-5)
