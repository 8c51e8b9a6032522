"""How long is a local step? Our plans against the floor of bare gradients and a lean torch loop, in one process.

    python benchmarks/rounds.py [--json] [--models mlp lenet] [--algorithms fedavg] [--cohorts 10] [--minutes 7]

Every line is one plan. ``floor_ms``: bare gradients at top level, one client at a time, with the faster of our
lowering and native convolution (two gradients a step for FedSpeed); ``gemm_ms``: their FLOP at the GEMM rate measured
beside them. ratio_to_torch = torch's time / ours, ratio_to_floor = ours / floor. All sides take turns; medians.
``peak_mb``: arguments, results and temporaries of the compiled round, as the compiler counts them.
"""

import dataclasses
import functools
import json
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import torch
import torch_loop
import tyro
from networks import BATCH, NETWORKS, Network
from rich.console import Console
from rich.table import Table
from tqdm.auto import tqdm

import jaxfed
from jaxfed import plans
from jaxfed.autoplan import Trial, fastest
from jaxfed.models import cross_entropy
from jaxfed.rounds import Recipe, World, one_round

GRADIENTS = {"fedavg": 1, "fedspeed": 2}
AUTHORS_MS = {
    ("lenet", "fedavg"): 33.8,
    ("lenet", "fedspeed"): 62.8,
    ("mlp", "fedavg"): 2.37,
    ("mlp", "fedspeed"): 5.19,
}
"""ms per local step of the authors' program, measured elsewhere: two CPU cores, torch 2.13, batch 50."""
MOST_BYTES = 16e9
PAUSE = 0.3
"""Seconds before each side: idle threads of the other library spin for a while before they sleep."""
COLUMNS = {
    "case": "model, algorithm, cohort",
    "plan": "plan",
    "ms_per_local_step": "ours",
    "torch_ms": "torch",
    "floor_ms": "floor",
    "gemm_ms": "gemm",
    "authors_ms": "authors",
    "ratio_to_torch": "torch/ours",
    "ratio_to_floor": "ours/floor",
    "rounds_per_s": "rounds/s",
    "peak_mb": "MB",
}

Run = Callable[[], Any]


@dataclasses.dataclass(frozen=True)
class Options:
    """What is timed. ``minutes``: for everything together; ``repeats``: at most, per side."""

    models: tuple[str, ...] = tuple(NETWORKS)
    algorithms: tuple[str, ...] = tuple(GRADIENTS)
    cohorts: tuple[int, ...] = (10, 100)
    minutes: float = 7.0
    repeats: int = 7
    json: bool = False


class Case(NamedTuple):
    """One model, algorithm and cohort."""

    model: str
    algorithm: str
    cohort: int

    @property
    def network(self) -> Network:
        """The model's network."""
        return NETWORKS[self.model]

    @property
    def local_steps(self) -> int:
        """K."""
        return self.network.local_steps[self.cohort]

    def built(self) -> jaxfed.FederatedAlgorithm:
        """The algorithm in the authors' form: clip 10, weight decay 1e-3."""
        loss_fn = cross_entropy(self.network.build(False)[1])
        return getattr(jaxfed, self.algorithm)(loss_fn, clip_norm=10.0, weight_decay=1e-3, variant="reference")


class Compiled(NamedTuple):
    """A plan's round, compiled: how to run it, bytes it takes, and whether that is too much."""

    run: Run
    peak_bytes: float


def setting(case: Case, batches: dict[str, Any]) -> Trial:
    """What `jaxfed.simulate` plays a round with: every client's samples are those of its batches."""
    flat = {name: array.reshape(-1, *array.shape[3:]) for name, array in batches.items() if name != "mask"}
    per_client = case.local_steps * BATCH
    offsets, lengths = np.arange(case.cohort) * per_client, np.full(case.cohort, per_client)
    data = jaxfed.data.ClientData(flat, *jax.device_put((offsets.astype(np.int32), lengths.astype(np.int32))))
    algorithm = case.built()
    server = algorithm.init(case.network.build(False)[0], case.cohort)
    rows = jaxfed.DeviceStore().init(algorithm.init_client(server.params), case.cohort)
    recipe = Recipe(algorithm, jaxfed.data.Steps(case.local_steps, BATCH), plans.vmap(), per_client, 0)
    return Trial(recipe, server, World(data), np.arange(case.cohort, dtype=np.int32), lambda: rows)


def compiled(given: Trial, plan: str) -> Compiled:
    """Compile a round under a plan: batches drawn, local steps, server."""
    recipe = dataclasses.replace(given.recipe, plan=plans.named(plan))
    arguments = given.server, given.rows(), given.world, given.ids
    program = jax.jit(functools.partial(one_round, recipe)).lower(*arguments).compile()
    memory = program.memory_analysis()
    peak = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return Compiled(lambda: jax.block_until_ready(program(*arguments)), peak)


def floors(case: Case, batches: dict[str, Any]) -> tuple[dict[str, Run], float]:
    """Bare gradients at top level, one round's worth, of our lowering and the native one; FLOP of one gradient."""
    convolutional = len(case.network.shape) == 3
    found, flop = {}, 0.0
    for native in (False, True) if convolutional else (False,):
        params, apply = case.network.build(native)
        loss_fn = cross_entropy(apply)
        gradient = jax.jit(jax.grad(lambda params, batch, loss=loss_fn: loss(params, batch, None)[0]))
        slices = [jax.tree.map(lambda leaf, at=at: leaf[at, 0], batches) for at in range(10)]
        program = gradient.lower(params, slices[0]).compile()
        found["native" if native else "ours"] = _every(program, params, slices, _bare(case))
        flop = program.cost_analysis()["flops"]  # of the last: native convolutions count no padding of a lowering
    return found, flop


def _bare(case: Case) -> int:
    """Gradients that make a floor: as many as a round takes, at most 500 and, of slow ones, 10."""
    return min(500, case.cohort * case.local_steps) if len(case.network.shape) == 1 else 10


def _every(program: Any, params: Any, slices: list[Any], times: int) -> Run:
    return lambda: jax.block_until_ready([program(params, slices[n % len(slices)]) for n in range(times)][-1])


def gemm(size: int = 1024, times: int = 8) -> tuple[Run, float]:
    """A matrix product, and its FLOP."""
    matrix, product = jax.numpy.ones((size, size)), jax.jit(lambda a: a @ a)
    return lambda: [product(matrix).block_until_ready() for _ in range(times)], 2.0 * times * size**3


def torch_sides(case: Case, batches: dict[str, Any]) -> dict[str, Run]:
    """The torch loop in each memory format that makes a difference."""
    name, arguments = case.network.twin
    twin = getattr(torch_loop, name)(*arguments)
    x, y = torch.from_numpy(batches["x"]), torch.from_numpy(batches["y"]).long()
    image = x.ndim == 6
    x = x.permute(0, 1, 2, 5, 3, 4).contiguous() if image else x
    start = [
        torch.randn(shape) / np.prod(shape[1:]) ** 0.5 if len(shape) > 1 else torch.zeros(shape)
        for shape in twin.shapes
    ]
    play = torch_loop.ROUNDS[case.algorithm]
    formats = {"contiguous": False, **({"channels_last": True} if image else {})}
    loops = {name: torch_loop.loop(twin, start, x, y, last) for name, last in formats.items()}
    return {name: (lambda each=each: play(each)) for name, each in loops.items()}


def alternate(sides: dict[str, Run], repeats: int, seconds: float) -> dict[str, float]:
    """Median seconds of every side; all take turns, at least three times, until the time is spent."""
    for run in sides.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in sides}
    began = time.perf_counter()
    for turn in range(repeats):
        if turn >= 3 and time.perf_counter() - began > seconds:
            break
        for name, run in sides.items():
            time.sleep(PAUSE)
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: float(np.median(taken)) for name, taken in times.items()}


def lines(case: Case, options: Options, seconds: float) -> list[dict[str, Any]]:
    """All plans of one case."""
    about = {"model": case.model, "algorithm": case.algorithm, "cohort": case.cohort}
    batches = case.network.batches(case.cohort, case.local_steps)
    on_device = jax.device_put(batches)
    given = setting(case, on_device)
    programs = {plan: compiled(given, plan) for plan in case.network.plans}
    fitting = {plan: program for plan, program in programs.items() if program.peak_bytes <= MOST_BYTES}
    (bare, flop), peers, (product, product_flop) = floors(case, on_device), torch_sides(case, batches), gemm()
    sides = {("plan", plan): program.run for plan, program in fitting.items()}
    sides |= {("floor", name): run for name, run in bare.items()}
    sides |= {("torch", name): run for name, run in peers.items()} | {("gemm", ""): product}
    medians = alternate(sides, options.repeats, seconds)
    steps = case.cohort * case.local_steps
    gradients = GRADIENTS[case.algorithm]
    floor = 1e3 * gradients * min(s for (kind, _), s in medians.items() if kind == "floor") / _bare(case)
    peer = 1e3 * min(s for (kind, _), s in medians.items() if kind == "torch") / steps
    rate = product_flop / medians["gemm", ""]
    beside = {"torch_ms": peer, "floor_ms": floor, "gemm_ms": 1e3 * gradients * flop / rate}
    beside |= {"authors_ms": AUTHORS_MS.get((case.model, case.algorithm)), "gemm_gflops": rate / 1e9}

    def line(name: str, plan: str) -> dict[str, Any]:
        taken = 1e3 * medians["plan", plan] / steps
        ratios = {"ratio_to_torch": peer / taken, "ratio_to_floor": taken / floor}
        speed = {"ms_per_local_step": taken, **beside, **ratios, "rounds_per_s": 1 / medians["plan", plan]}
        memory = {"peak_mb": programs[plan].peak_bytes / 1e6, "local_steps": case.local_steps}
        return {**about, "plan": name, "chosen": plan, **speed, **memory}

    found = [line(plan, plan) for plan in fitting]
    found += [{**about, "plan": plan, "skipped": f"needs {program.peak_bytes / 1e9:.1f} GB"}
              for plan, program in programs.items() if plan not in fitting]  # fmt: skip
    chosen = fastest(given, [plans.named(name) for name in fitting])
    return [*found, line("auto", plans.name_of(chosen))]


def table(rows: list[dict[str, Any]]) -> Table:
    """The same for people."""
    shown = Table(*COLUMNS.values(), title=f"one local step, batch {BATCH}, milliseconds")
    for row in rows:
        named = {**row, "case": f"{row['model']} {row['algorithm']} {row['cohort']}"}
        named["plan"] = f"auto: {row['chosen']}" if row["plan"] == "auto" else row["plan"]
        cells = [named.get(name) for name in COLUMNS]
        cells[2] = row.get("skipped", cells[2])
        shown.add_row(*(f"{cell:.4g}" if isinstance(cell, float) else str(cell or "") for cell in cells))
    return shown


def main(options: Options) -> None:
    """Time every case and print its lines."""
    torch.set_num_threads(2)
    if hasattr(os, "SCHED_BATCH"):  # for all sides: threads that spin while they wait pre-empt less
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    cases = [Case(*each) for each in _product(options)]
    rows = []
    for case in tqdm(cases, disable=options.json):
        for row in lines(case, options, 60 * options.minutes / len(cases) / 2):
            rows.append(row)
            if options.json:
                print(json.dumps(row), flush=True)
    if not options.json:
        Console(width=140).print(table(rows))


def _product(options: Options) -> list[tuple[str, str, int]]:
    return [
        (model, algorithm, cohort)
        for model in options.models
        for algorithm in options.algorithms
        for cohort in options.cohorts
        if cohort in NETWORKS[model].local_steps
    ]


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
