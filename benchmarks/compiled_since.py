"""Programs compiled for TPUs that are not here: release 0.1.0 and now, counted by the same rules.

    python benchmarks/compiled_since.py [--only step round convolution] [--json]

Needs libtpu, and half an hour. ``before`` was counted before ``make tpu`` existed, by the same rules (jax 0.10.2);
those programs are gone, so that these are constants. ``temporary_MB``: memory besides arguments; ``moved_MB``:
main memory read and written; ``cycles_ms``: the compiler's estimate at 1.5 GHz; ``loops``; all of one chip of v5e.
Shapes: bfloat16, caches of 4,096 rows, window 7; a draft of 28 layers, 8 branches, prompts of 2,048 where it says so;
FedSpeed rounds of 16 of 128 clients on 8 chips, 50,000 images, five steps of batches of 50.
"""

import argparse
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from compiled import DRAFT, row
from flax import nnx
from published import config_of

import jaxfed
from jaxfed.data.batches import ClientData
from jaxfed.data.flat import flattened
from jaxfed.layout import plans
from jaxfed.layout.sharding import Shardings
from jaxfed.models import conv_general_dilated
from jaxfed.rows.device import block
from jaxfed.rows.rounds import RoundConfig, World
from jaxspec.analysis.compiling import compiled_program
from jaxspec.analysis.crossing import StepSizes
from jaxspec.analysis.fits import compile_step, shapes_of
from jaxspec.devices import Placement, mesh_of
from jaxspec.devices.chips import chip_of, topology
from jaxspec.devices.processes import shapes_on
from jaxspec.models import fit_vocabulary

TARGET, V5E = "Llama-3-8B", "v5e:2x4"
COHORT, CLIENTS, SAMPLES, IMAGE = 16, 128, 50_000, (32, 32, 3)


class Before(NamedTuple):
    """What was counted of a program of 0.1.0: memory besides arguments and moved, MB; cycles, ms; loops, if noted."""

    temporary: float | None
    moved: float
    cycles: float
    loops: int | None = None


class Step(NamedTuple):
    """A pair on chips."""

    topology: str
    chips: tuple[int, int]
    batch: int = 1
    prompt: int = 256


BANDWIDTH = 0.819
"""GB a millisecond of a chip of v5e: some programs of 0.1.0 were noted by their milliseconds."""

STEPS: dict[Step, dict[str, Before]] = {
    Step("v5e:4x4", (8, 8)): {
        "whole": Before(28, 1973, 1.45),
        "prefix": Before(0, 1069, 0.90),
        "suffix": Before(14, 1067, 0.85),
        "plain": Before(28, 1944, 9.59),
        "prefill": Before(33, 1803, 10.3),
    },
    Step("v5e:4x4", (8, 8), 8): {"whole": Before(51, 2975, 4.97, 64), "prefill": Before(405, 14827, 58)},
    Step(V5E, (4, 4), 1, 2048): {
        "whole": Before(27, 3950, 4.75),
        "rollout": Before(60, 2.9 * BANDWIDTH * 1e3, 8.8),
        "select": Before(532, 3.1 * BANDWIDTH * 1e3, 18.5),
        "first_window": Before(153, 7.0 * BANDWIDTH * 1e3, 37.6),
    },
    Step(V5E, (4, 4), 8): {"whole": Before(50, 5947, 8.18, 64), "prefill": Before(300, 23116, 88)},
    Step(V5E, (4, 1), 1, 2048): {
        "rollout": Before(68, 13.9 * BANDWIDTH * 1e3, 16.8),
        "select": Before(532, 15.4 * BANDWIDTH * 1e3, 51.6),
        "first_window": Before(153, 64 * BANDWIDTH * 1e3, 142),
    },
}
ROUNDS = {
    "MLP 3072-512-512-10": Before(1354, 3.2 * BANDWIDTH * 1e3, 9.5),
    "ResNet-18": Before(3640, 202 * BANDWIDTH * 1e3, 384),
}
CONVOLUTIONS = {
    (32, 64): Before(None, 10991, 19.3),
    (16, 128): Before(None, 3143, 6.9),
    (8, 256): Before(None, 1420, 3.4),
}
"""Side and channels of a layer with its gradients, a kernel for each of 8 clients, batches of 50."""


def steps() -> Iterator[dict[str, Any]]:
    """Yield a line for every program of a step."""
    config = config_of(TARGET)
    draft = fit_vocabulary(shapes_of(config_of(DRAFT)), config.vocab_size)
    for step, before in STEPS.items():
        devices, (first, second) = topology(step.topology), step.chips
        placement = Placement(mesh_of(devices[:first]), mesh_of(devices[-second:]))
        sizes = StepSizes(batch=step.batch, prompt=step.prompt)
        made = compile_step(shapes_of(config), draft, placement, sizes)
        for name, counted in before.items():
            chips = second if name in ("rollout", "select", "first_window") else first
            about = {"program": name, "chips": chips, "batch": step.batch, "prompt": step.prompt}
            yield line(about, counted, made[name])


def rounds() -> Iterator[dict[str, Any]]:
    """Yield a line for every federated round."""
    shape = jax.ShapeDtypeStruct
    places = Shardings.of(jax.sharding.Mesh(topology(V5E), ("clients",)))
    networks = {
        "MLP 3072-512-512-10": lambda: jaxfed.models.MLP((3072, 512, 512, 10), rngs=nnx.Rngs(0)),
        "ResNet-18": lambda: jaxfed.models.ResNet18(rngs=nnx.Rngs(0)),
    }
    for name, build in networks.items():
        params, apply = jaxfed.models.functional(build())

        def scaled(params: Any, x: jax.Array, apply: Any = apply, flat: bool = name.startswith("MLP")) -> jax.Array:
            x = x.astype(jnp.float32) / 255.0
            return apply(params, x.reshape(len(x), -1) if flat else x)

        algorithm = jaxfed.fedspeed(jaxfed.models.cross_entropy(scaled), clip_norm=10.0)
        mesh, store = places.everywhere.mesh, jaxfed.DeviceStore()
        plan = plans.Sharded(mesh, plans.vmap())
        config = RoundConfig(algorithm, jaxfed.Steps(5, 50), plan, SAMPLES // CLIENTS, 0, False)
        server = jax.eval_shape(lambda params, algorithm=algorithm: algorithm.init(params, CLIENTS), params)
        row_like = jax.eval_shape(algorithm.init_client, server.params, server.model_state)
        rows = jax.eval_shape(lambda each, store=store: store.init(each, CLIENTS), row_like)
        numbers = shape((CLIENTS,), jnp.int32)
        samples = {"x": shape((SAMPLES, *IMAGE), jnp.uint8), "y": shape((SAMPLES,), jnp.int32)}
        data = jax.eval_shape(flattened, ClientData(samples, numbers, numbers, shape((SAMPLES,), jnp.int32)))
        static = server, World(data, None), shape((), jnp.int32)
        server, world, count = (shapes_on(each, places.everywhere) for each in static)
        ids = shapes_on(shape((1, COHORT), jnp.int32), places.spread_later)
        program = block(config, store, places)
        made = compiled_program(program, server, shapes_on(rows, places.spread), world, ids, count)[1]
        yield line({"program": f"round of {name}", "chips": 8, "batch": 50}, ROUNDS[name], made)


def convolutions() -> Iterator[dict[str, Any]]:
    """Yield a line for every convolution."""
    place = jax.sharding.SingleDeviceSharding(topology("v5e:1x1")[0])
    for (side, channels), before in CONVOLUTIONS.items():
        sizes = (8, 3, 3, channels, channels), (8, 50, side, side, channels)
        kernel, x = (shapes_on(jax.ShapeDtypeStruct(each, jnp.float32), place) for each in sizes)

        def loss(kernel: jax.Array, x: jax.Array) -> jax.Array:
            made = conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            return jnp.sum(made**2)

        made = compiled_program(jax.jit(jax.vmap(jax.value_and_grad(loss, (0, 1)))), kernel, x)[1]
        yield line({"program": f"convolution {side}×{side}×{channels}", "chips": 1, "batch": 50}, before, made)


def line(about: dict[str, Any], before: Before, made: Any) -> dict[str, Any]:
    """Return both sides."""
    names = "temporary_MB", "moved_MB", "cycles_ms", "loops"
    now = row(made, chip_of(V5E))
    return {
        **about,
        "before": dict(zip(names, before._replace(moved=round(before.moved)), strict=True)),
        "now": {name: now[name] for name in names},
        "copied_MB": now["copied_MB"],
        "collectives": now["collectives"],
    }


PARTS = {"convolution": convolutions, "step": steps, "round": rounds}


def main() -> None:
    """Print the lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--json", action="store_true", help="has no effect: lines are JSON")
    options = parser.parse_args()
    for name in options.only:
        for each in PARTS[name]():
            print(json.dumps(each, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
