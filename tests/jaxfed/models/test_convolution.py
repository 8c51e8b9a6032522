"""The convolution by matrix products equals XLA's own, in values and gradients, under all of Flax's uses."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from jaxfed.models import _winograd as winograd
from jaxfed.models import conv_general_dilated, max_pool, relu_max_pool
from jaxfed.models._pooling import max_pool_overlapping

NHWC = ("NHWC", "HWIO", "NHWC")


def normal(*shape, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng((seed, *shape)).normal(size=shape), dtype)


def compare(expected, actual, dtype=jnp.float32):
    """Both to rounding of the largest entry: a sum's error grows with its terms, not with its value."""
    tolerance = {jnp.float32: 1e-5, jnp.bfloat16: 2e-2}[dtype]
    for one, other in zip(jax.tree.leaves(expected), jax.tree.leaves(actual), strict=True):
        assert one.dtype == other.dtype
        one, other = (np.asarray(each, np.float32) for each in (one, other))
        np.testing.assert_allclose(other, one, rtol=0, atol=tolerance * max(1.0, np.abs(one).max(initial=0.0)))


def with_gradients(convolution, x, kernel, *args, **options):
    """Value and both gradients of a random projection of it."""
    y, pull = jax.vjp(lambda x, kernel: convolution(x, kernel, *args, **options), x, kernel)
    return y, pull(normal(*y.shape, seed=1, dtype=y.dtype))


def check(shape, kernel, strides, padding, dtype=jnp.float32, **options):
    options = {"dimension_numbers": NHWC, **options}
    options |= {"window_strides": strides, "padding": padding}
    x, kernel = normal(*shape, dtype=dtype), normal(*kernel, dtype=dtype)

    @jax.jit
    def both(x, kernel):
        return [with_gradients(each, x, kernel, **options) for each in (lax.conv_general_dilated, conv_general_dilated)]

    compare(*both(x, kernel), dtype)


SETTINGS = [
    ((1, 1), "VALID"),
    ((1, 1), "SAME"),
    ((1, 1), ((0, 0), (-1, 2))),  # with stride 2 on both axes XLA's own is wrong on a CPU
    ((2, 2), "SAME"),
    ((2, 1), ((2, 1), (0, 3))),
]


@pytest.mark.parametrize("taps", [1, 3, 5, 7])
@pytest.mark.parametrize("channels", [1, 16])
def test_equals_xla(taps, channels):
    for strides, padding in SETTINGS:
        check((2, 9, 11, channels), (taps, taps, channels, 5), strides, padding)


@pytest.mark.parametrize(
    ("shape", "kernel"),
    [
        ((3, 1, 1, 16), (3, 3, 16, 4)),
        ((3, 1, 2, 16), (5, 5, 16, 4)),
        ((3, 2, 5, 16), (3, 2, 16, 4)),
        ((3, 70, 70, 16), (2, 3, 16, 2)),
        ((1, 12, 12, 16), (1, 4, 16, 3)),
        ((1, 12, 12, 16), (4, 9, 16, 3)),
        ((0, 6, 6, 16), (3, 3, 16, 3)),
    ],
)
def test_small_wide_and_empty_images(shape, kernel):
    check(shape, kernel, (1, 1), "SAME")


def test_padding_beyond_the_image():
    check((2, 1, 1, 16), (2, 2, 16, 3), (10, 10), ((4, 0), (4, 0)))
    check((2, 3, 3, 16), (3, 3, 16, 3), (1, 1), ((6, 5), (6, 5)))


@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
def test_bfloat16(strides):
    check((2, 8, 8, 16), (3, 3, 16, 4), strides, "SAME", dtype=jnp.bfloat16)
    check((2, 8, 8, 16), (3, 3, 16, 4), strides, "SAME", preferred_element_type=jnp.float32)


@pytest.mark.parametrize(
    ("shape", "kernel", "options"),
    [
        ((2, 8, 8, 16), (3, 3, 16, 4), {"rhs_dilation": (2, 2)}),
        ((2, 8, 8, 16), (3, 3, 16, 4), {"lhs_dilation": (2, 1), "padding": ((1, 1), (0, 0))}),
        ((2, 8, 8, 16), (3, 3, 1, 16), {"feature_group_count": 16}),
        ((2, 16, 8, 8), (4, 16, 3, 3), {"dimension_numbers": None}),
        ((2, 16, 8, 8), (3, 3, 16, 4), {"dimension_numbers": ("NCHW", "HWIO", "NHWC")}),
        ((2, 8, 8, 16), (3, 3, 16, 4), {"padding": ((0, 0), (-7, 0))}),
        ((2, 8, 16), (3, 16, 4), {"dimension_numbers": ("NHC", "HIO", "NHC"), "padding": "SAME"}),
        ((2, 8, 16), (3, 16, 4), {"dimension_numbers": ("NHC", "HIO", "NHC"), "rhs_dilation": (2,)}),
        ((2, 4, 4, 4, 3), (3, 3, 3, 3, 4), {"dimension_numbers": ("NHWDC", "HWDIO", "NHWDC")}),
    ],
)
def test_other_settings_are_xlas(shape, kernel, options):
    options = {"padding": "VALID", **options}
    check(shape, kernel, (1,) * (len(shape) - 2), **options)


def test_integers_and_mixed_dtypes_are_xlas():
    valid = functools.partial(conv_general_dilated, window_strides=(1, 1), padding="VALID", dimension_numbers=NHWC)
    assert valid(jnp.ones((1, 3, 3, 1), int), jnp.ones((3, 3, 1, 1), int)).tolist() == [[[[9]]]]
    with pytest.raises(TypeError, match="same dtypes"):
        valid(normal(1, 3, 3, 1), normal(3, 3, 1, 1, dtype=jnp.bfloat16))
    with pytest.raises(ValueError, match="feature_group_count"):
        valid(normal(1, 3, 3, 2), normal(3, 3, 1, 1))


@pytest.mark.parametrize(("strides", "channels"), [((1, 1), 16), ((2, 2), 16), ((1, 1), 1)])
def test_one_kernel_per_client(strides, channels):
    """vmap over images and kernels, in a scan that the gradient drives, as clients do it; no convolution is left."""
    images, kernels = normal(3, 2, 2, 8, 8, channels), normal(3, 5, 5, channels, 4)

    def descend(convolution, images, kernel):
        def step(kernel, x):
            y, (_, gradient) = with_gradients(convolution, x, kernel, strides, "SAME", dimension_numbers=NHWC)
            return kernel - 0.01 * gradient, y

        return lax.scan(step, kernel, images)

    alone = [descend(lax.conv_general_dilated, *pair) for pair in zip(images, kernels, strict=True)]
    together = jax.jit(jax.vmap(functools.partial(descend, conv_general_dilated)))
    compare(jax.tree.map(lambda *leaves: jnp.stack(leaves), *alone), together(images, kernels))
    assert "stablehlo.convolution" not in together.lower(images, kernels).as_text()


def test_two_gradients_and_forward_mode():
    """SAM's gradient at the perturbed point, a Hessian product, and a tangent."""
    x, kernel = normal(2, 6, 6, 16), normal(3, 3, 16, 2) / 12

    @functools.partial(jax.jit, static_argnums=0)
    def results(convolution):
        def loss(kernel):
            return jnp.mean(jnp.tanh(convolution(x, kernel, (1, 1), "SAME", dimension_numbers=NHWC)) ** 2)

        gradient = jax.grad(loss)
        return gradient(kernel + gradient(kernel)), jax.jvp(gradient, (kernel,), (kernel,))

    compare(results(lax.conv_general_dilated), results(conv_general_dilated))


@pytest.mark.parametrize(("lead", "padding"), [((), "SAME"), ((2,), "CIRCULAR"), ((2,), "CAUSAL"), ((2, 3), 1)])
def test_inside_linen_and_nnx(lead, padding):
    size = (3,) if padding == "CAUSAL" else (3, 3)
    x = normal(*lead, *((8,) * len(size)), 16)
    choices = ({}, {"conv_general_dilated": conv_general_dilated})
    linen = [nn.Conv(4, size, padding=padding, **own) for own in choices]
    params = linen[0].init(jax.random.key(0), x)
    compare(*(jax.jit(jax.value_and_grad(lambda p, net=net: jnp.mean(net.apply(p, x) ** 2)))(params) for net in linen))
    compare(*(nnx.Conv(16, 4, size, padding=padding, rngs=nnx.Rngs(0), **own)(x) for own in choices))


@pytest.mark.parametrize("taps", range(2, 8))
def test_winograd_is_exact_in_float64(taps):
    x, kernel = np.random.default_rng(taps).normal(size=(2, 12))[:, : max(12, taps)]
    for size in range(1, 10 - taps):
        output, weights, data = winograd.transforms(size, taps)
        tile, short = x[: size + taps - 1], kernel[:taps]
        expected = np.correlate(tile, short, "valid")
        np.testing.assert_allclose(output @ ((weights @ short) * (data @ tile)), expected, rtol=0, atol=1e-11)


def test_winograd_keeps_float32s_digits():
    """Root mean square error against float64, in units of the result: the plain sum has 2e-7."""
    x, kernel = normal(8, 12, 12, 64), normal(5, 5, 64, 8)
    y = conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=NHWC)
    windows = np.lib.stride_tricks.sliding_window_view(np.float64(x), (5, 5), axis=(1, 2))
    exact = np.einsum("bijchw,hwco->bijo", windows, np.float64(kernel), optimize=True)
    assert np.sqrt(np.mean((y - exact) ** 2) / np.mean(exact**2)) < 2e-6


def test_tiles_are_chosen_by_their_products():
    assert [winograd.tile_size(outputs, 3) for outputs in (1, 2, 4, 6, 8)] == [1, 2, 4, 6, 4]
    assert winograd.tile_size(8, 5) == 4
    assert winograd.tile_size(1, 5) == 1


def reduce_window(x, size, stride, padding):
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, size, size, 1), (1, stride, stride, 1), padding)


@pytest.mark.parametrize("side", [(8, 6), (5, 7)])
def test_max_pool(side):
    """Values and gradients of reduce_window, also where corners are equal: the first one gets it all."""
    smooth = normal(2, *side, 3)
    whole = jnp.round(smooth)
    for x in (smooth, whole):
        expected, actual = (
            jax.value_and_grad(lambda x, pool=pool: jnp.sum(pool(x) * normal(*pool(x).shape)))(x)
            for pool in (lambda x: reduce_window(x, 2, 2, "VALID"), max_pool)
        )
        compare(expected, actual)
    compare(jax.jvp(max_pool, (smooth,), (smooth,))[1], max_pool(smooth))


def test_relu_max_pool():
    x, bias = normal(2, 6, 6, 3), normal(3)

    def separate(x, bias):
        return reduce_window(jax.nn.relu(x + bias[None, None, None]), 2, 2, "VALID")

    expected, actual = (
        jax.value_and_grad(lambda x, bias, pool=pool: jnp.sum(jnp.sin(pool(x, bias))), argnums=(0, 1))(x, bias)
        for pool in (separate, relu_max_pool)
    )
    compare(expected, actual)
    compare(relu_max_pool(x), jax.nn.relu(max_pool(x)))


@pytest.mark.parametrize("side", [(8, 8), (7, 5)])
def test_overlapping_max_pool(side):
    x = normal(2, *side, 3)
    margins = ((0, 0), (1, 1), (1, 1), (0, 0))
    expected, actual = (
        jax.value_and_grad(lambda x, pool=pool: jnp.sum(jnp.sin(pool(x))))(x)
        for pool in (lambda x: reduce_window(x, 3, 2, margins), max_pool_overlapping)
    )
    compare(expected, actual)
