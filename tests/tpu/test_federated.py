"""Federated rounds and convolutions, compiled for TPUs that are not here."""

import math

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from jax import lax
from jax.sharding import Mesh, SingleDeviceSharding

pytest.importorskip("libtpu", reason="libtpu, which compiles for TPUs, is not installed: make tpu")

import jaxfed
from jaxfed.data.batches import ClientData
from jaxfed.data.flat import flattened
from jaxfed.layout import plans
from jaxfed.layout.sharding import Shardings
from jaxfed.models import conv_general_dilated
from jaxfed.models._resnet import ConvNorm, ResidualBlock
from jaxfed.rows.device import block
from jaxfed.rows.rounds import RoundConfig, World
from jaxspec.analysis.compiled import count
from jaxspec.analysis.compiling import compiled_program
from jaxspec.devices.chips import chip_of, topology
from jaxspec.devices.processes import shapes_on

SIZES, COHORT, CLIENTS, SAMPLES = (3072, 512, 512, 10), 16, 128, 50_000
IMAGE = (32, 32, 3)
shape = jax.ShapeDtypeStruct


def loss_fn(params, batch, key):
    x = batch["x"].reshape(len(batch["x"]), -1).astype(jnp.float32) / 255.0
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


def compiled_round(loss_fn, params, *slices):
    """A round of FedSpeed, compiled: 16 of 128 clients, images as bytes; devices, and bytes of rows on each."""
    mesh = Mesh(topology(*slices), ("clients",))
    places, store = Shardings.of(mesh), jaxfed.DeviceStore()
    algorithm = jaxfed.fedspeed(loss_fn, clip_norm=10.0)
    config = RoundConfig(
        algorithm, jaxfed.Steps(5, 50), plans.Sharded(mesh, plans.vmap()), SAMPLES // CLIENTS, 0, False
    )
    server = jax.eval_shape(lambda p: algorithm.init(p, CLIENTS), params)
    row = jax.eval_shape(algorithm.init_client, server.params, server.model_state)
    rows = jax.eval_shape(lambda row: store.init(row, CLIENTS), row)
    numbers = shape((CLIENTS,), jnp.int32)
    samples = {"x": shape((SAMPLES, *IMAGE), jnp.uint8), "y": shape((SAMPLES,), jnp.int32)}
    data = jax.eval_shape(flattened, ClientData(samples, numbers, numbers, shape((SAMPLES,), jnp.int32)))
    world, count = World(data, None), shape((), jnp.int32)
    server, world, count = (shapes_on(tree, places.everywhere) for tree in (server, world, count))
    ids = shapes_on(shape((1, COHORT), jnp.int32), places.spread_later)
    program = block(config, store, places)
    made = compiled_program(program, server, shapes_on(rows, places.spread), world, ids, count)[1]
    return made, mesh.size, bytes_of(rows) // mesh.size


@pytest.fixture(scope="module", params=[("v5e:2x4", 1), ("v5e:4x4", 1), ("v5e:2x4", 2)], ids=str)
def a_round(request):
    """Of an MLP, on one host, four hosts, two slices."""
    return *compiled_round(loss_fn, params(), *request.param), request.param[1]


def test_a_round_fits_and_updates_rows_in_place(a_round):
    made, _, rows, _ = a_round
    assert made.aliased >= rows
    assert made.arguments + made.temporary < chip_of("v5e:2x4").memory


def test_a_round_has_one_sum_of_the_parameters(a_round):
    """The clients' changes and their rows' changes are summed in one message, all leaves together."""
    made, both = a_round[0], 2 * bytes_of(params())
    if a_round[3] > 1:
        pytest.skip("between slices XLA divides the sum into several messages")
    sums = [each.kind for each in made.counted.collectives if 0.98 * both <= each.bytes <= 1.02 * both]
    assert sums == ["all-reduce"]


def test_only_rows_of_the_cohort_travel(a_round):
    """Each device receives the rows of its slots, and sends back as many; the last layer's ten outputs are padded."""
    made, devices, _, slices = a_round
    if slices > 1:
        pytest.skip("between slices XLA's gather moves rows")
    others = [each for each in made.counted.collectives if each.bytes < 1.9 * bytes_of(params())]
    rows = sum(each.bytes for each in others if each.kind == "ragged-all-to-all")
    assert 1 <= rows / (2 * COHORT // devices * bytes_of(params())) <= 1.1
    assert all(each.bytes <= 64 << 10 for each in others if each.kind != "ragged-all-to-all")


def test_the_data_set_is_neither_copied_nor_padded(a_round):
    made, data = a_round[0], SAMPLES * math.prod(IMAGE)
    assert not [copy for copy in made.counted.copied(data // 2) if copy.array.startswith("u8")]
    assert made.temporary < 2 * data


class OneBlock(nnx.Module):
    """The first convolution of ResNet-18, one block, and the head."""

    def __init__(self, rngs):
        self.stem = ConvNorm(3, 64, 3, rngs=rngs)
        self.block = ResidualBlock(64, 64, 1, rngs=rngs)
        self.head = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x):
        x = jax.nn.relu(self.stem(x.astype(jnp.float32) / 255.0))
        return self.head(self.block(x).mean(axis=(1, 2)))


def test_a_round_of_a_convolutional_network_copies_no_data_set():
    params, apply = jaxfed.models.functional(OneBlock(nnx.Rngs(0)))
    made, devices, _ = compiled_round(jaxfed.models.cross_entropy(apply), jax.eval_shape(lambda: params), "v5e:2x4")
    data = SAMPLES * math.prod(IMAGE)
    assert not [copy for copy in made.counted.copied(data // 2) if copy.array.startswith("u8")]
    assert made.arguments < 1.03 * (data + 12 * SAMPLES + (CLIENTS // devices + 3) * bytes_of(params)) + 1e6
    assert made.arguments + made.temporary < chip_of("v5e:2x4").memory


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
