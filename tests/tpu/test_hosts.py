"""Meshes of several hosts and slices: target and draft apart, and what lies between them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

pytest.importorskip("libtpu", reason="libtpu, which compiles for TPUs, is not installed: make tpu")

import jaxspec
from jaxspec.analysis.compiled import count
from jaxspec.analysis.crossing import StepSizes
from jaxspec.analysis.fits import compile_step, shapes_of
from jaxspec.devices.channel import DRAFT, SIDE_AXIS, TARGET, moved
from jaxspec.devices.chips import topology
from jaxspec.devices.sharding import Placement, mesh_of
from jaxspec.models.config import DecoderConfig, Ends

LLAMA = DecoderConfig(128256, 4096, 32, 32, 8, 128, 14336, ends=Ends(tied=False, embedding_scale=1.0))
QWEN = DecoderConfig(128256, 1024, 28, 16, 8, 128, 3072)
SMALL = DecoderConfig(4096, 1024, 2, 8, 8, 128, 2048)


def test_a_pair_on_different_hosts_compiles():
    """Each half of four hosts has one model; no program spans both."""
    devices = topology("v5e:4x4")
    placement = Placement(mesh_of(devices[:8]), mesh_of(devices[8:]))
    hosts = [{device.process_index for device in mesh.devices.flat} for mesh in placement]
    assert hosts == [{0, 1}, {2, 3}]
    made = compile_step(shapes_of(SMALL), shapes_of(SMALL), placement, StepSizes(prompt=16, capacity=512))
    assert {"whole", "prefix", "suffix", "rollout", "select"} <= set(made)


@pytest.mark.parametrize("way", [(TARGET, DRAFT), (DRAFT, TARGET)], ids=["to draft", "to target"])
def test_tokens_cross_slices_in_few_bytes(way):
    devices = topology("v5e:2x4", slices=2)
    pair = Mesh(np.array([devices[0], devices[8]]), (SIDE_AXIS,))
    split = NamedSharding(pair, PartitionSpec(SIDE_AXIS))
    packed, before = (jax.ShapeDtypeStruct(sizes, jnp.int32, sharding=split) for sizes in ((2, 65), (2, 1)))
    sent = count(moved.lower(packed, before, pair, way).compile()).collectives
    assert {each.kind for each in sent} == {"send"}
    assert sum(each.bytes for each in sent) <= 4096


@pytest.mark.parametrize(("name", "sizes"), [("v5e:1x1", (1, 1)), ("v5e:2x2", (2, 2)), ("v5e:2x4", (4, 4))])
def test_chips_are_divided_by_what_they_are(name, sizes):
    placed = jaxspec.placement_for(shapes_of(LLAMA), shapes_of(QWEN), list(topology(name).flat))
    assert (placed.target.size, placed.draft.size) == sizes
