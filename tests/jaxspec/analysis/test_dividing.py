"""Devices divided between a target and a draft by predicted times."""

from dataclasses import replace

import jax
import pytest

import jaxspec
from jaxspec.analysis.dividing import fastest_number
from jaxspec.analysis.fits import shapes_of
from jaxspec.devices.chips import CHIPS, chip_in
from jaxspec.models.config import DecoderConfig, Ends
from tests.support.jaxspec import models

LLAMA = DecoderConfig(128256, 4096, 32, 32, 8, 128, 14336, ends=Ends(tied=False, embedding_scale=1.0))
SMALL = DecoderConfig(49152, 576, 30, 9, 3, 64, 1536)


class Device:
    """A device that is not here, as jax describes it."""

    def __init__(self, kind):
        self.device_kind = kind


@pytest.mark.parametrize(("count", "divided"), [(1, 1), (3, 2), (4, 4), (7, 4), (8, 8)])
def test_a_large_model_is_divided_among_as_many_as_its_heads_allow(count, divided):
    assert fastest_number(LLAMA, jax.devices()[:count], CHIPS["v5e"]) == divided


def test_a_small_model_waits_longer_for_messages_than_it_saves():
    assert fastest_number(SMALL, jax.devices()[:8], CHIPS["v5e"]) == 1


def test_weights_that_fit_nowhere_are_told():
    with pytest.raises(MemoryError, match="fit on 2 of the devices, 34 GB, got 71.9 GB"):
        fastest_number(replace(LLAMA, num_layers=160), jax.devices()[:3], CHIPS["v5e"])


@pytest.mark.parametrize(
    ("kind", "name"),
    [("TPU v5 lite", "v5e"), ("TPU v6 lite", "v6e"), ("NVIDIA H100 80GB HBM3", "H100"), ("NVIDIA L40S", "L40S")],
)
def test_devices_are_known_by_their_kind(kind, name):
    assert chip_in(Device(kind)) == CHIPS[name]


def test_unknown_devices_get_a_model_each():
    assert chip_in(jax.devices()[0]) is None
    assert chip_in(Device("")) is None
    placed = jaxspec.placement_for(models.target(), models.draft())
    assert placed == jaxspec.default_placement()


def test_one_device_is_both():
    placed = jaxspec.placement_for(models.target(), devices=jax.devices()[1:2])
    assert placed.target == placed.draft == jaxspec.mesh_of(jax.devices()[1:2])


def test_no_device_is_refused():
    with pytest.raises(ValueError, match="at least one device"):
        jaxspec.placement_for(models.target(), devices=[])


def test_shapes_are_enough():
    assert jaxspec.placement_for(shapes_of(models.TARGET), None, jax.devices()[:3]).draft.size == 1
