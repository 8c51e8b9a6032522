"""Federated rounds and convolutions, compiled for TPUs that are not here."""

import math

import jax
import jax.numpy as jnp
import optax
import pytest
from jax import lax
from jax.sharding import Mesh, SingleDeviceSharding

pytest.importorskip("libtpu", reason="libtpu, which compiles for TPUs, is not installed: make tpu")

import jaxfed
from jaxfed.data.batches import ClientData
from jaxfed.layout import plans
from jaxfed.layout.sharding import Shardings
from jaxfed.models import conv_general_dilated
from jaxfed.rows.device import block
from jaxfed.rows.rounds import RoundConfig, World
from jaxspec.analysis.compiled import count
from jaxspec.analysis.fits import compiled_program
from jaxspec.devices.chips import chip_of, topology
from jaxspec.devices.processes import shapes_on

SIZES, COHORT, CLIENTS, SAMPLES = (3072, 512, 512, 10), 16, 128, 50_000
shape = jax.ShapeDtypeStruct


def loss_fn(params, batch, key):
    x = batch["x"].reshape(len(batch["x"]), -1)
    for number, layer in enumerate(params):
        x = x @ layer["w"] + layer["b"][None]
        x = jax.nn.relu(x) if number < len(params) - 1 else x
    losses = optax.softmax_cross_entropy_with_integer_labels(x, batch["y"])
    return jaxfed.masked_mean(losses, batch["mask"]), {}


def params():
    pairs = zip(SIZES, SIZES[1:], strict=False)
    return [{"w": shape(pair, jnp.float32), "b": shape(pair[1:], jnp.float32)} for pair in pairs]


def bytes_of(tree):
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@pytest.fixture(scope="module")
def a_round():
    """A round of FedSpeed on an MLP: 16 of 128 clients on eight chips, rows divided among them."""
    mesh = Mesh(topology("v5e:2x4"), ("clients",))
    places, store = Shardings.of(mesh), jaxfed.DeviceStore()
    algorithm = jaxfed.fedspeed(loss_fn, clip_norm=10.0)
    config = RoundConfig(
        algorithm, jaxfed.Steps(5, 50), plans.Sharded(mesh, plans.vmap()), SAMPLES // CLIENTS, 0, False
    )
    server = jax.eval_shape(lambda p: algorithm.init(p, CLIENTS), params())
    row = jax.eval_shape(algorithm.init_client, server.params, server.model_state)
    rows = jax.eval_shape(lambda row: store.init(row, CLIENTS), row)
    numbers = shape((CLIENTS,), jnp.int32)
    samples = {"x": shape((SAMPLES, 32, 32, 3), jnp.float32), "y": shape((SAMPLES,), jnp.int32)}
    world = World(ClientData(samples, numbers, numbers, shape((SAMPLES,), jnp.int32)), None)
    arguments = [shapes_on(tree, places.everywhere) for tree in (server, world, shape((), jnp.int32))]
    ids = shapes_on(shape((1, COHORT), jnp.int32), places.spread_later)
    program = block(config, store, places)
    made = compiled_program(program, arguments[0], shapes_on(rows, places.spread), arguments[1], ids, arguments[2])[1]
    return made, bytes_of(rows) // mesh.size


def test_a_round_fits_and_updates_rows_in_place(a_round):
    made, rows = a_round
    assert made.aliased >= rows
    assert made.arguments + made.temporary < chip_of("v5e:2x4").memory


def test_a_round_has_one_sum_of_the_parameters(a_round):
    """The clients' changes and their rows' changes are summed in one message, all leaves together."""
    whole, both = a_round[0].counted.collectives, 2 * bytes_of(params())
    assert [each.kind for each in whole if 0.98 * both <= each.bytes <= 1.02 * both] == ["all-reduce"]


@pytest.mark.parametrize("size", [(32, 64), (16, 128)], ids=str)
def test_convolutions_of_many_clients_are_xla_s_own(size):
    """A kernel for every client: our function moves what XLA's convolution moves."""
    (side, channels), clients = size, 8
    place = SingleDeviceSharding(topology("v5e:1x1")[0])
    kernel, x = (
        shapes_on(shape((clients, *sizes), jnp.float32), place)
        for sizes in ((3, 3, channels, channels), (50, side, side, channels))
    )

    def moved(convolution):
        def loss(kernel, x):
            return jnp.sum(convolution(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")) ** 2)

        return count(jax.jit(jax.vmap(jax.value_and_grad(loss, (0, 1)))).lower(kernel, x).compile()).hbm_bytes

    assert moved(conv_general_dilated) <= 1.05 * moved(lax.conv_general_dilated)
