"""The networks' sizes and outputs, and that any kind of model works with the algorithms."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxfed
from jaxfed import models


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng((seed, *shape)).normal(size=shape), jnp.float32)


@pytest.mark.parametrize(
    ("build", "parameters"),
    [
        (lambda rngs: models.MLP((784, 200, 200, 10), activation=jax.nn.relu, rngs=rngs), 199_210),
        (lambda rngs: models.LeNet((28, 28, 1), rngs=rngs), 573_578),
        (lambda rngs: models.LeNet((32, 32, 3), rngs=rngs), 797_962),
        (lambda rngs: models.ResNet18(rngs=rngs), 11_181_642),
    ],
)
def test_published_sizes(build, parameters):
    """Only shapes are computed, so the large ones cost nothing."""
    module = nnx.eval_shape(lambda: build(nnx.Rngs(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module, nnx.Param))) == parameters


def test_activation_of_the_mlp():
    x = normal(3, 4)
    tanh, relu = (models.MLP([4, 6, 2], rngs=nnx.Rngs(0), **own) for own in ({}, {"activation": jax.nn.relu}))
    for network, function in ((tanh, jnp.tanh), (relu, jax.nn.relu)):
        first, last = network.layers
        chex.assert_trees_all_close(network(x), last(function(first(x))), atol=1e-6)


def test_lenet_refuses_small_images():
    with pytest.raises(ValueError, match="at least 16 × 16"):
        models.LeNet((12, 28, 1), rngs=nnx.Rngs(0))


def test_resnet_stems():
    with pytest.raises(ValueError, match="cifar"):
        models.ResNet18(stem="cifra", rngs=nnx.Rngs(0))


# Algorithms over models of every kind.

SHAPE = (16, 16, 1)


class LinenNetwork(nn.Module):
    """A user's own, which differs from any Linen network in one argument."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(3, (3, 3), strides=2, conv_general_dilated=models.conv_general_dilated)(x)
        return nn.Dense(4)(nn.relu(x).reshape(x.shape[0], -1))


def linen():
    network = LinenNetwork()
    params = network.init(jax.random.key(0), normal(1, *SHAPE))["params"]
    return params, lambda params, x: network.apply({"params": params}, x)


def by_hand():
    params = {"kernel": 0.1 * normal(256, 4), "bias": jnp.zeros(4)}
    return params, lambda params, x: x.reshape(x.shape[0], -1) @ params["kernel"] + params["bias"][None]


KINDS = {
    "linen": linen,
    "by hand": by_hand,
    "lenet": lambda: models.functional(models.LeNet(SHAPE, 4, rngs=nnx.Rngs(0))),
    "mlp": lambda: models.functional(models.MLP((256, 8, 4), rngs=nnx.Rngs(0))),
}


@pytest.mark.parametrize("kind", KINDS)
def test_any_model_trains(kind):
    """One round of FedSpeed over two vectorised clients: the loss on what they saw falls."""
    params, apply = KINDS[kind]()
    loss_fn = models.cross_entropy(apply)
    algorithm = jaxfed.fedspeed(loss_fn, client_learning_rate=0.02)
    labels = jnp.arange(8).reshape(2, 1, 4).repeat(3, axis=1) % 4
    batches = {"x": normal(2, 1, 4, *SHAPE).repeat(3, axis=1), "y": labels, "mask": jnp.ones((2, 3, 4), bool)}
    first = jax.tree.map(lambda leaf: leaf[0, 0], batches)

    @jax.jit
    def train(params, key):
        server, rows = algorithm.init(params, 2), jaxfed.DeviceStore().init(algorithm.init_client(params), 2)
        cohort = jaxfed.Cohort(jnp.arange(2, dtype=jnp.int32), rows, batches)
        after, _, info = algorithm.step(server, cohort, key)
        return loss_fn(params, first, key)[0], loss_fn(after.params, first, key)[0], info.num_used

    before, after, used = train(params, jax.random.key(0))
    assert after < before
    assert used == 2


# Language models.


def test_language_model_is_causal():
    network = models.LanguageModel(11, 8, width=16, heads=2, rngs=nnx.Rngs(0))
    tokens = jnp.arange(16).reshape(2, 8) % 11
    changed = tokens.at[:, 5].set(10)
    first, second = network(tokens), network(changed)
    assert first.shape == (2, 8, 11)
    chex.assert_trees_all_close(first[:, :5], second[:, :5], atol=1e-6)
    assert jnp.max(jnp.abs(first[:, 5:] - second[:, 5:])) > 1e-3


def test_language_model_refusals():
    with pytest.raises(ValueError, match="3 heads divide"):
        models.LanguageModel(11, 8, width=16, heads=3, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="at most 4 tokens, got 5"):
        models.LanguageModel(11, 4, width=16, rngs=nnx.Rngs(0))(jnp.zeros((1, 5), int))


def test_a_sequence_counts_as_one_sample():
    """Loss and accuracy of sequences: the mean over the positions of the samples present."""

    def apply(params, x):
        return params[None, None] * jax.nn.one_hot(x, 3)

    x, y = jnp.array([[0, 1], [2, 2], [0, 0]]), jnp.array([[0, 1], [2, 0], [1, 1]])
    batch = {"x": x, "y": y, "mask": jnp.array([True, True, False])}
    params = jnp.array([1.0, 2.0, 3.0])
    loss, aux = models.cross_entropy(apply)(params, batch, jax.random.key(0))
    right = [np.log(1 + 2 * np.exp(-value)) for value in (1, 2, 3)]
    wrong = np.log(np.exp(3) + 2)
    np.testing.assert_allclose(loss, (right[0] + right[1] + right[2] + wrong) / 4, rtol=1e-6)
    assert aux["accuracy"] == 0.75
    measured = models.evaluator(apply, {"x": x[:2], "y": y[:2]}, batch_size=2)(params)
    np.testing.assert_allclose([measured["loss"], measured["accuracy"]], [loss, 0.75], rtol=1e-6)


# Parity with torch.


def to_torch(kernel):
    """A Flax kernel [h, w, I, O] or [I, O] in torch's order."""
    import torch

    kernel = np.asarray(kernel)
    return torch.tensor(kernel.transpose(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T)


@pytest.mark.peers("torch")
@pytest.mark.parametrize("shape", [(28, 28, 1), (32, 32, 3)])
def test_lenet_equals_torch(shape):
    import torch
    from torch.nn import functional

    network = models.LeNet(shape, rngs=nnx.Rngs(0))
    for layer in network.features:
        layer.bias[...] = 0.1 * normal(64)
    images = normal(2, *shape)
    x = torch.tensor(np.asarray(images)).permute(0, 3, 1, 2)
    for layer in network.features:
        bias = torch.tensor(np.asarray(layer.bias[...]))
        x = functional.max_pool2d(torch.relu(functional.conv2d(x, to_torch(layer.conv.kernel[...]), bias)), 2)
    x = x.permute(0, 2, 3, 1).flatten(1)
    *hidden, last = network.head.layers
    for layer in hidden:
        x = torch.relu(x @ to_torch(layer.kernel[...]).T)
    np.testing.assert_allclose(network(images), x @ to_torch(last.kernel[...]).T, atol=2e-4)


@pytest.mark.slow
@pytest.mark.peers("torch")
@pytest.mark.parametrize("stem", ["imagenet", "cifar"])
def test_resnet_equals_torch(stem):
    import torch
    from torch.nn import functional

    network = models.ResNet18(stem=stem, rngs=nnx.Rngs(0))
    params, apply = models.functional(network)
    params = jax.tree.map(lambda leaf: leaf + 0.02 * normal(*leaf.shape), params)

    def conv_norm(layer, x, stride):
        kernel = to_torch(layer["conv"]["kernel"])
        scale, bias = (torch.tensor(np.asarray(layer["norm"][name])) for name in ("scale", "bias"))
        x = functional.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)
        return functional.group_norm(x, 2, scale, bias, 1e-5)

    def block(layer, x, stride):
        y = conv_norm(layer["second"], torch.relu(conv_norm(layer["first"], x, stride)), 1)
        return torch.relu(y + (conv_norm(layer["shortcut"], x, stride) if "shortcut" in layer else x))

    images = normal(2, 32, 32, 3)
    x = torch.tensor(np.asarray(images)).permute(0, 3, 1, 2)
    x = torch.relu(conv_norm(params["stem"], x, 2 if stem == "imagenet" else 1))
    x = functional.max_pool2d(x, 3, 2, 1) if stem == "imagenet" else x
    for number in range(8):
        x = block(params["blocks"][number], x, 2 if number in (2, 4, 6) else 1)
    x = x.mean((2, 3)) @ to_torch(params["head"]["kernel"]).T + torch.tensor(np.asarray(params["head"]["bias"]))
    np.testing.assert_allclose(jax.jit(apply)(params, images), x, rtol=1e-3, atol=1e-3 * float(x.abs().max()))
