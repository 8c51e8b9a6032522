"""Time of a local step: jaxfed's plans compared with bare gradients and a minimal torch loop, in one process.

    python benchmarks/rounds.py [--json] [--models mlp lenet] [--algorithms fedavg] [--cohorts 10] [--minutes 7]
    XLA_PYTHON_CLIENT_PREALLOCATE=false python benchmarks/rounds.py --device gpu --json --limit 120

Every line is one plan. ``floor_ms``: bare gradients, one client at a time, with the faster of jaxfed's and XLA's
convolutions (two gradients per step for FedSpeed); ``gemm_ms``: their FLOP at the rate of a matrix product measured in
the same run. ratio_to_torch = torch's time / ours, ratio_to_floor = ours / floor. All sides take turns; medians are
reported. ``peak_mb``: arguments, results and temporaries of the compiled round, as counted by the compiler.

On a GPU both libraries multiply float32 as TF32 (see ``product_errors``), torch's steps are also captured in a CUDA
graph, and one of the floors is the gradients of ten clients at once. ``auto`` is measured last, if time is left.
"""

import dataclasses
import functools
import json
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax
import torch
import tyro
from networks import BATCH, NETWORKS, ON_GPU
from rich.console import Console
from rich.table import Table
from sides import (
    PLATFORMS,
    Case,
    Compiled,
    alternate,
    bare_gradients,
    compile_all,
    floors,
    flop,
    gemms,
    on_gpu,
    product_errors,
    reason,
    rounds,
    setting,
    torch_sides,
)
from tqdm.auto import tqdm

from jaxfed.layout import plans
from jaxfed.run._autoplan import fastest

GRADIENTS = {"fedavg": 1, "fedspeed": 2}
AUTHORS_MS = {
    ("lenet", "fedavg"): 33.8,
    ("lenet", "fedspeed"): 62.8,
    ("mlp", "fedavg"): 2.37,
    ("mlp", "fedspeed"): 5.19,
}
"""ms per local step of the authors' program, measured on another machine: two CPU cores, torch 2.13, batch 50."""
MOST_BYTES = 16e9
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

Medians = dict[tuple[str, str], float]
"""Seconds by kind of side (plan, floor, torch, gemm) and name."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What is timed, and where.

    Attributes:
        models: names in ``networks.NETWORKS``.
        algorithms: fedavg, fedspeed.
        cohorts: clients per round.
        minutes: total time of the timed calls.
        repeats: largest number of timed calls per side.
        json: print JSON lines.
        device: cpu or gpu.
        limit: seconds after which no new case is started.
    """

    models: tuple[str, ...] = tuple(NETWORKS)
    algorithms: tuple[str, ...] = tuple(GRADIENTS)
    cohorts: tuple[int, ...] = (10, 100)
    minutes: float = 7.0
    repeats: int = 7
    json: bool = False
    device: Literal["cpu", "gpu"] = "cpu"
    limit: float = float("inf")


def lines(case: Case, options: Options, seconds: float) -> tuple[list[dict[str, Any]], Callable[[], dict[str, Any]]]:
    """Return lines of all plans of one case, and a function that runs `auto` and returns its line."""
    began = time.perf_counter()
    batches = case.network.batches(case.cohort, case.local_steps)
    on_device = jax.device_put(batches)
    trial = setting(case, on_device)
    programs, refused = compile_all(rounds(case, trial, on_device))
    bare, without = compile_all(floors(case, on_device))
    fitting = {plan: program for plan, program in programs.items() if program.peak_bytes <= MOST_BYTES}
    (products, product_flop), (peers, failed) = gemms(), torch_sides(case, batches)
    sides = {("plan", plan): program.run for plan, program in fitting.items()}
    sides |= {("floor", name): run for name, run in bare.items()}
    sides |= {("torch", name): run for name, run in peers.items()}
    sides |= {("gemm", name): run for name, run in products.items()}
    prepared = time.perf_counter() - began
    medians = alternate(sides, options.repeats, seconds)
    comparison = references(case, medians, flop(case, on_device), product_flop)
    comparison |= {"prepared_s": prepared} if on_gpu() else {}
    line_of = functools.partial(line, case, programs=programs, medians=medians, comparison=comparison)
    skipped = {plan: f"needs {programs[plan].peak_bytes / 1e9:.1f} GB" for plan in programs if plan not in fitting}
    skipped |= failed | refused | {f"floor, {name}": why for name, why in without.items()}
    rows = [line_of(plan, plan) for plan in fitting]
    rows += [{**case.about, "plan": name, "skipped": why} for name, why in skipped.items()]
    ours = [plans.named(name) for name in fitting if not name.endswith("native")]
    return rows, lambda: line_of("auto", plans.name_of(fastest(trial, ours)))


def references(case: Case, medians: Medians, gradient_flop: float, product_flop: float) -> dict[str, Any]:
    """Milliseconds of a local step of the best torch loop, the best floor, and matrix products."""
    torches, bares = ({name: t for (kind, name), t in medians.items() if kind == which} for which in ("torch", "floor"))
    torches = {name: 1e3 * taken / (case.cohort * case.local_steps) for name, taken in torches.items()}
    gradients, rate = GRADIENTS[case.algorithm], product_flop / medians["gemm", ""]
    bares = {name: 1e3 * gradients * taken / bare_gradients(case) for name, taken in bares.items()}
    best = {"torch_ms": min(torches.values()), "floor_ms": min(bares.values())}
    best |= {"gemm_ms": 1e3 * gradients * gradient_flop / rate, "gemm_gflops": rate / 1e9}
    if not on_gpu():
        return best | {"authors_ms": AUTHORS_MS.get((case.model, case.algorithm))}
    best |= {"torch_sides_ms": torches, "floors_ms": bares, "product_errors": product_errors()}
    return best | {"torch_gemm_gflops": product_flop / medians["gemm", "torch"] / 1e9}


def line(
    case: Case, name: str, plan: str, programs: dict[str, Compiled], medians: Medians, comparison: dict[str, Any]
) -> dict[str, Any]:
    """Return the line of one plan, with all comparisons."""
    taken = 1e3 * medians["plan", plan] / (case.cohort * case.local_steps)
    ratios = {"ratio_to_torch": comparison["torch_ms"] / taken, "ratio_to_floor": taken / comparison["floor_ms"]}
    speed = {"ms_per_local_step": taken, **comparison, **ratios, "rounds_per_s": 1 / medians["plan", plan]}
    memory = {"peak_mb": programs[plan].peak_bytes / 1e6, "local_steps": case.local_steps}
    return {**case.about, "plan": name, "chosen": plan, **speed, **memory}


def table(rows: list[dict[str, Any]]) -> Table:
    """Return a table of the lines."""
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
    prepare(options.device)
    rows = []
    for row in tqdm(every(options), disable=options.json):
        rows.append(row)
        if options.json:
            print(json.dumps(row), flush=True)
    if not options.json:
        Console(width=140).print(table(rows))


def prepare(device: str) -> None:
    """Configure both libraries for the device."""
    jax.config.update("jax_platforms", PLATFORMS[device])
    if on_gpu():
        if jax.default_backend() != "gpu" or not torch.cuda.is_available():
            raise RuntimeError("expected a GPU that JAX and torch can use; install both with CUDA")
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
        return
    torch.set_num_threads(2)
    if hasattr(os, "SCHED_BATCH"):  # waiting threads that spin then pre-empt others less
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def every(options: Options) -> Iterator[dict[str, Any]]:
    """Yield all lines; on a GPU large cohorts come late, `auto` last, and failures are reported as lines."""
    began, cases = time.perf_counter(), [Case(*each) for each in _product(options)]
    later: list[tuple[Case, Callable[[], dict[str, Any]]]] = []
    measure = functools.partial(lines, options=options, seconds=60 * options.minutes / len(cases) / 2)
    for case in sorted(cases, key=lambda case: case.cohort) if on_gpu() else cases:
        rows, auto = _in_time(case, lambda case=case: measure(case), options.limit - time.perf_counter() + began)
        yield from rows
        if auto is not None and on_gpu():
            later.append((case, auto))
        elif auto is not None:
            yield auto()
    for case, auto in later:
        rows, line = _in_time(case, lambda auto=auto: ([], auto()), options.limit - time.perf_counter() + began)
        yield from rows
        if line is not None:
            yield line


def _in_time(case: Case, measure: Callable[[], tuple[list[dict[str, Any]], Any]], left: float) -> tuple[list, Any]:
    """Call `measure`; if no time is left, or if it fails on a GPU, return a line with the reason and None."""
    if left < 0:
        return [{**case.about, "plan": "all", "skipped": "no time left"}], None
    try:
        return measure()
    except Exception as error:
        if not on_gpu():
            raise
        return [{**case.about, "plan": "all", "skipped": reason(error)}], None


def _product(options: Options) -> list[tuple[str, str, int]]:
    return [
        (model, algorithm, cohort)
        for model in options.models
        for algorithm in options.algorithms
        for cohort in options.cohorts
        if cohort in (ON_GPU if on_gpu() else NETWORKS)[model].local_steps
    ]


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
