"""Meshes: tokens do not depend on how many devices hold the models."""

from dataclasses import replace

import jax
import pytest

import jaxspec
from jaxspec.devices.sharding import batch_sharding
from tests.support.jaxspec import models

#: Four key-value heads, so that four devices can share the target.
WIDE = replace(models.TARGET, num_layers=2, num_kv_heads=4)
NARROW = replace(WIDE, num_layers=1)


def wide():
    return models.random_model(WIDE, 4)


def wide_draft():
    target = wide()
    params = {**target.params, "layers": target.params["layers"][:1]}
    return jaxspec.Model(models.network(NARROW), params)


def mesh(size):
    return jaxspec.mesh_of(jax.devices()[:size])


def decode(method, temperature=0.0):
    return jaxspec.generate(method, models.PROMPTS, models.NEW_TOKENS, temperature=temperature).tokens


@pytest.fixture(scope="module")
def wide_text():
    text = [models.greedy_text(wide(), prompt, models.NEW_TOKENS) for prompt in models.PROMPTS]
    assert all(len(set(row)) > 3 for row in text)
    return text


def test_there_are_devices_to_test_with():
    assert len(jax.devices()) >= 6


def test_autoregressive_on_two_devices():
    assert decode(jaxspec.autoregressive(models.target(), mesh(2))) == models.expected()


@pytest.mark.parametrize("size", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_autoregressive_on_as_many_devices_as_divide_the_heads(size, wide_text):
    assert decode(jaxspec.autoregressive(wide(), mesh(size))) == wide_text


@pytest.mark.slow
def test_speculative_on_two_devices():
    assert decode(models.speculative(mesh=mesh(2))) == models.expected()


#: Devices of the target and the draft; a single number: one mesh for both.
SIZES = [1, (1, 2), (2, 1), (4, 1), (2, 4), (4, 2), (4, 4)]
#: Here and at temperature 0 in the fast suite.
QUICK = [1, (2, 1), (4, 2)]


def placed(sizes):
    return jaxspec.Placement(mesh(sizes), mesh(sizes)) if isinstance(sizes, int) else models.meshes(*sizes)


@pytest.mark.parametrize(
    ("sizes", "temperature"),
    [
        pytest.param(sizes, temperature, marks=() if sizes in QUICK and not temperature else pytest.mark.slow)
        for sizes in SIZES
        for temperature in (0.0, 1.0)
    ],
    ids=str,
)
def test_mirror_on_any_meshes(sizes, temperature, wide_text):
    """Shared, even or uneven: the tokens are those of plain decoding on one device, sampled or not."""
    method = models.mirror(target=wide(), draft=wide_draft(), exit_layer=1, placement=placed(sizes))
    plain = decode(jaxspec.autoregressive(wide()), temperature) if temperature else wide_text
    assert decode(method, temperature) == plain
    assert temperature == 0 or plain != wide_text


def test_weights_are_sharded():
    """Weights are split over heads and hidden features; norms are replicated."""
    from jaxspec.devices.sharding import put_model

    params = put_model(wide(), mesh(4)).params
    qkv, down = params["layers"][0]["attention"]["qkv"], params["layers"][0]["mlp"]["down"]
    assert qkv.sharding.shard_shape(qkv.shape)[0] == WIDE.num_kv_heads // 4
    assert down.sharding.shard_shape(down.shape)[1] == WIDE.hidden // 4
    assert params["layers"][0]["attention_norm"]["scale"].sharding.is_fully_replicated


@pytest.mark.parametrize(
    ("config", "size", "message"),
    [
        (models.TARGET, 8, "expected num_kv_heads divisible by 8 devices, got 2, .*num_heads divisible by it, got 4"),
        (replace(WIDE, hidden=14), 4, "expected hidden divisible by 4 devices, got 14"),
        (replace(models.TARGET, hidden=15), 3, "expected num_kv_heads divisible by 3 devices, got 2"),
    ],
)
def test_a_mesh_that_does_not_divide_the_model(config, size, message):
    with pytest.raises(ValueError, match=message):
        jaxspec.autoregressive(models.random_model(config, 0), mesh(size))


def test_mirror_needs_no_placement():
    """It runs on any devices, without meshes."""
    method = jaxspec.mirror(models.target(), models.draft(), window=3, num_candidates=2, policy=models.ALL_BRANCHES)
    assert decode(method) == models.expected()


def test_batches_are_on_the_device_or_on_all_of_the_mesh():
    assert batch_sharding(None) == jax.devices()[0]
    assert batch_sharding(mesh(1)) == jax.devices()[0]
    assert batch_sharding(mesh(2)).device_set == set(jax.devices()[:2])
