"""Programs compiled for TPUs that are not here: release 0.1.0 and now, counted by the same rules.

    python benchmarks/compiled_since.py [--only step variant round convolution] [--json]

Needs libtpu, and an hour. ``before`` was counted before ``make tpu`` existed, by the same rules (jax 0.10.2);
those programs are gone, so that these are constants. ``temporary_MB``: memory besides arguments; ``moved_MB``:
main memory read and written; ``cycles_ms``: the compiler's estimate at 1.5 GHz; ``loops``; ``copied_MB``: by copies
of 1 MB and more; ``collectives``: how many of each kind; ``sent_MB``: of their results, and
``memory_MB``: held at once, where these were noted; all of a chip.
Shapes: bfloat16, caches of 4,096 rows, window 7; a draft of 28 layers, 8 branches, prompts of 2,048 where it says so;
FedSpeed rounds of 16 or 64 of 128 clients on 8 chips, 50,000 images, five steps of batches of 50.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
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
from jaxspec.analysis.compiling import CompiledProgram, compiled_program
from jaxspec.analysis.crossing import StepSizes
from jaxspec.analysis.fits import compile_step, shapes_of
from jaxspec.devices import Placement, mesh_of
from jaxspec.devices.chips import chip_of, topology
from jaxspec.devices.processes import shapes_on
from jaxspec.methods import candidates
from jaxspec.models import fit_vocabulary
from jaxspec.models.base import Model
from jaxspec.models.config import Tracks

TARGET, V5E = "Llama-3-8B", "v5e:2x4"
CLIENTS, SAMPLES, IMAGE = 128, 50_000, (32, 32, 3)


class Before(NamedTuple):
    """What was counted of a program of 0.1.0; None where it was not noted."""

    temporary_MB: float | None  # noqa: N815
    moved_MB: float | None  # noqa: N815
    cycles_ms: float | None
    loops: int | None = None
    copied_MB: float | None = None  # noqa: N815
    collectives: dict[str, int] | None = None
    sent_MB: float | None = None  # noqa: N815
    memory_MB: float | None = None  # noqa: N815


class Step(NamedTuple):
    """A pair on chips; how it differs from a greedy one in bfloat16 with 8 branches."""

    topology: str
    chips: tuple[int, int]
    batch: int = 1
    prompt: int = 256
    sampled: bool = False
    int8: bool = False
    window: int = 7
    branches: int = 8
    tracks: int = 1

    @property
    def variant(self) -> str:
        """What is told of it beside its chips."""
        mine, usual = self._asdict(), Step._field_defaults
        return ", ".join(text.format(mine[name]) for name, text in VARIED.items() if mine[name] != usual[name])


VARIED = {
    "sampled": "drawn",
    "int8": "int8",
    "window": "window {}",
    "branches": "{} branches",
    "tracks": "{} tracks",
}


def moved(milliseconds: float) -> float:
    """Return MB: some programs were noted by the milliseconds that their bytes take at 819 GB/s."""
    return round(milliseconds * 819)


def reduced(count: int, **others: int) -> dict[str, int]:
    """Return counts of collectives: all-reduces, and others."""
    return {"all-reduce": count, **others}


GATHERED = {"all-gather": 2}
PER_SHARD = {"all-to-all": 4, "collective-permute": 14}
DRAFTED = ("rollout", "select", "first_window")

ROWS_SENT = reduced(1, **{"reduce-scatter": 1, "all-gather": 42})
STEPS: dict[Step, dict[str, Before]] = {
    Step("v5e:4x4", (8, 8)): {
        "whole": Before(28, 1973, 1.45, 0, 0, reduced(66, **GATHERED)),
        "prefix": Before(0, 1069, 0.90, 0, 0, reduced(36, **PER_SHARD)),
        "suffix": Before(14, 1067, 0.85, 0, 0, reduced(33, **GATHERED)),
        "plain": Before(28, 1944, 9.59, 0, 0, reduced(68)),
        "prefill": Before(33, 1803, 10.3, None, None, reduced(63)),
    },
    Step("v5e:4x4", (8, 8), 8): {
        "whole": Before(51, 2975, 4.97, 64, 0, reduced(65)),
        "prefill": Before(405, 14827, 58, None, None, reduced(63)),
    },
    Step(V5E, (4, 4), 1, 2048): {
        "whole": Before(27, 3950, 4.75, 0, 0, reduced(65)),
        "rollout": Before(60, moved(2.9), 8.8, None, 0, reduced(7 * 57)),
        "select": Before(532, moved(3.1), 18.5, None, 476, reduced(7 * 57)),
        "first_window": Before(153, moved(7.0), 37.6, None, None, None),
    },
    Step(V5E, (4, 4), 8): {
        "whole": Before(50, 5947, 8.18, 64, 0, reduced(65)),
        "prefill": Before(300, 23116, 88, None, None, reduced(63)),
    },
    Step(V5E, (4, 1), 1, 2048): {
        "rollout": Before(68, moved(13.9), 16.8, None, 0, {}),
        "select": Before(532, moved(15.4), 51.6, None, 476, {}),
        "first_window": Before(153, moved(64), 142, None, None, {}),
    },
}
VARIANTS: dict[Step, dict[str, Before]] = {
    Step(V5E, (4, 4)): {"prefill": Before(29, 3603, 10, None, None, reduced(63))},
    Step("v5e:4x4", (8, 8), sampled=True): {"whole": Before(28, 1973, 1.83, 2, 0, reduced(66 + 64, **GATHERED))},
    Step("v5e:4x4", (8, 8), int8=True): {"whole": Before(32, 1078, 1.67, 0, 0, reduced(66, **GATHERED))},
    Step("v5e:4x4", (8, 8), window=1): {"whole": Before(27, 1973, 1.51, 0, 0, reduced(66, **GATHERED))},
    Step(V5E, (4, 1), branches=64): {"rollout": Before(67, moved(14.3), 24.3, None, 0, {})},
    Step(V5E, (4, 4), branches=64): {"rollout": Before(62, moved(4.1), 12.6, None, 0, reduced(7 * 57))},
    Step(V5E, (4, 1), tracks=4): {"rollout": Before(70, moved(14.2), 18.2, None, 0, {})},
    Step(V5E, (4, 4), tracks=4): {"rollout": Before(60, moved(2.9), 8.3, None, 0, reduced(7 * 3))},
    Step(V5E, (4, 4), branches=64, tracks=4): {"rollout": Before(62, moved(4.0), 11.9, None, 0, reduced(7 * 3))},
}
ROUNDS = {
    ("MLP 3072-512-512-10", 16, 8): Before(1354, moved(3.2), 9.5, None, 1200, memory_MB=2110),
    ("ResNet-18", 16, 8): Before(3640, moved(202), 384, None, 1200, ROWS_SENT, 1400, 4457),
    ("ResNet-18", 64, 8): Before(11109, moved(1079), 1650, None, 1200, ROWS_SENT, 5800, 9723),
    ("ResNet-18", 16, 1): Before(None, None, None, collectives={}, memory_MB=17970),
}
"""By network, clients of a round, and chips; their rows are what was sent. On one chip it did not fit (15,750 MB)."""
CONVOLUTIONS = {
    (8, 32, 3, 64, 1): Before(None, 997, 3.1, collectives={}),
    (8, 32, 64, 64, 1): Before(None, 10991, 19.3, collectives={}),
    (1, 32, 64, 64, 1): Before(None, 958, 2.5, collectives={}),
    (8, 32, 64, 128, 2): Before(None, 6141, 9.4, collectives={}),
    (8, 16, 128, 128, 1): Before(None, 3143, 6.9, collectives={}),
    (8, 16, 128, 256, 2): Before(None, 1351, 3.1, collectives={}),
    (8, 8, 256, 256, 1): Before(None, 1420, 3.4, collectives={}),
}
"""Clients, each with a kernel of its own, side, channels, features and stride of a layer with its gradients."""


def steps(table: dict[Step, dict[str, Before]] = STEPS) -> Iterator[dict[str, Any]]:
    """Yield a line for every program of a step."""
    for step, before in table.items():
        devices, (first, second) = topology(step.topology), step.chips
        placement = Placement(mesh_of(devices[:first]), mesh_of(devices[-second:]))
        sizes = StepSizes(step.batch, step.prompt, window=step.window, sampled=step.sampled)
        made = compile_step(*pair(step, set(before)), placement, sizes, policy(step, set(before)))
        for name, counted in before.items():
            chips = second if name in DRAFTED else first
            program = ", ".join(filter(None, (name, step.variant)))
            about = {"program": program, "chips": chips, "batch": step.batch, "prompt": step.prompt}
            yield line(about, counted, made[name])


def variants() -> Iterator[dict[str, Any]]:
    """Yield a line for one program of every variant."""
    return steps(VARIANTS)


def pair(step: Step, names: set[str]) -> tuple[Model, Model]:
    """Return target and draft; the one of which no program is counted has two layers."""
    target, draft = config_of(TARGET), config_of(DRAFT)
    if names <= set(DRAFTED):
        target = replace(target, num_layers=2)
    if not names & set(DRAFTED):
        draft = replace(draft, num_layers=2)
    if step.tracks > 1:
        draft = replace(draft, tracks=Tracks(step.tracks))
    shapes = shapes_of(target, int8=step.int8)
    return shapes, fit_vocabulary(shapes_of(draft), target.vocab_size)


def policy(step: Step, names: set[str]) -> candidates.Policy:
    """Return Mirror-SD's, or, where whole passes alone are counted, none."""
    return candidates.none() if names == {"whole"} else candidates.mirror(step.branches)


def rounds() -> Iterator[dict[str, Any]]:
    """Yield a line for every federated round."""
    shape = jax.ShapeDtypeStruct
    networks = {
        "MLP 3072-512-512-10": lambda: jaxfed.models.MLP((3072, 512, 512, 10), rngs=nnx.Rngs(0)),
        "ResNet-18": lambda: jaxfed.models.ResNet18(rngs=nnx.Rngs(0)),
    }
    for (name, cohort, chips), before in ROUNDS.items():
        places = Shardings.of(jax.sharding.Mesh(topology(V5E)[:chips], ("clients",)))
        params, apply = jaxfed.models.functional(networks[name]())

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
        ids = shapes_on(shape((1, cohort), jnp.int32), places.spread_later)
        program = block(config, store, places)
        made = compiled_program(program, server, shapes_on(rows, places.spread), world, ids, count)[1]
        yield line({"program": f"round of {name}, {cohort} clients", "chips": chips, "batch": 50}, before, made)


def convolutions() -> Iterator[dict[str, Any]]:
    """Yield a line for every convolution."""
    place = jax.sharding.SingleDeviceSharding(topology("v5e:1x1")[0])
    names = ("NHWC", "HWIO", "NHWC")
    for (clients, side, channels, features, stride), before in CONVOLUTIONS.items():
        sizes = (clients, 3, 3, channels, features), (clients, 50, side, side, channels)
        kernel, x = (shapes_on(jax.ShapeDtypeStruct(each, jnp.float32), place) for each in sizes)

        def loss(kernel: jax.Array, x: jax.Array, stride: int = stride) -> jax.Array:
            made = conv_general_dilated(x, kernel, (stride, stride), [(1, 1), (1, 1)], dimension_numbers=names)
            return jnp.sum(jnp.sin(made))

        made = compiled_program(jax.jit(jax.vmap(jax.value_and_grad(loss, (0, 1)))), kernel, x)[1]
        about = f"convolution {side}×{side}×{channels} to {features}, stride {stride}, {clients} kernels"
        yield line({"program": about, "chips": 1, "batch": 50}, before, made)


def line(about: dict[str, Any], before: Before, made: CompiledProgram) -> dict[str, Any]:
    """Return both sides."""
    now = row(made, chip_of(V5E)) | {"sent_MB": sent(made), "memory_MB": round(made.memory / 1e6)}
    told = {name: now[name] for name in Before._fields}
    told |= {name: None for name in ("sent_MB", "memory_MB") if getattr(before, name) is None}
    return {**about, "before": before._asdict(), "now": told}


def sent(made: CompiledProgram) -> float:
    """Return MB of what collectives return to a chip."""
    return round(sum(each.bytes * each.times for each in made.counted.collectives) / 1e6, 2)


PARTS = {"convolution": convolutions, "step": steps, "variant": variants, "round": rounds}


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
