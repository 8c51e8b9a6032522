"""How long is a local step? Our plans against the floor of bare gradients and a lean torch loop, in one process.

    python benchmarks/rounds.py [--json] [--models mlp lenet] [--algorithms fedavg] [--cohorts 10] [--minutes 7]
    XLA_PYTHON_CLIENT_PREALLOCATE=false python benchmarks/rounds.py --device gpu --json --limit 120

Every line is one plan. ``floor_ms``: bare gradients at top level, one client at a time, with the faster of our
lowering and native convolution (two gradients a step for FedSpeed); ``gemm_ms``: their FLOP at the GEMM rate measured
beside them. ratio_to_torch = torch's time / ours, ratio_to_floor = ours / floor. All sides take turns; medians.
``peak_mb``: arguments, results and temporaries of the compiled round, as the compiler counts them.

On a GPU both sides multiply float32 as TF32 (``product_errors`` tells), torch's steps are captured in a CUDA graph as
well, and one of the floors is the gradients of ten clients at once. ``auto`` is asked last, as long as time is left.
"""

import dataclasses
import functools
import json
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import torch
import torch_loop
import tyro
from networks import BATCH, NETWORKS, ON_GPU, Network
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
"""Seconds before each side on a CPU: idle threads of the other library spin for a while before they sleep."""
PLATFORMS = {"cpu": "cpu", "gpu": "cuda,cpu"}
COMPILERS = 4
"""Programs compiled at the same time for a GPU."""
AT_ONCE = 10
"""Clients, or batches, of a floor."""
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
    """What is timed, and where. ``minutes``: for everything together; ``repeats``: at most, per side.

    ``limit``: seconds after which no other case is begun.
    """

    models: tuple[str, ...] = tuple(NETWORKS)
    algorithms: tuple[str, ...] = tuple(GRADIENTS)
    cohorts: tuple[int, ...] = (10, 100)
    minutes: float = 7.0
    repeats: int = 7
    json: bool = False
    device: Literal["cpu", "gpu"] = "cpu"
    limit: float = float("inf")


def on_gpu() -> bool:
    """Whether both libraries were asked to run on a GPU."""
    return jax.config.jax_platforms == PLATFORMS["gpu"]


class Case(NamedTuple):
    """One model, algorithm and cohort."""

    model: str
    algorithm: str
    cohort: int

    @property
    def network(self) -> Network:
        """The model's network."""
        return (ON_GPU if on_gpu() else NETWORKS)[self.model]

    @property
    def local_steps(self) -> int:
        """K."""
        return self.network.local_steps[self.cohort]

    @property
    def about(self) -> dict[str, Any]:
        """What every line begins with."""
        return self._asdict() | ({"card": jax.local_devices()[0].device_kind} if on_gpu() else {})

    def built(self, native: bool = False) -> jaxfed.FederatedAlgorithm:
        """The algorithm in the authors' form: clip 10, weight decay 1e-3."""
        loss_fn = cross_entropy(self.network.build(native)[1])
        return getattr(jaxfed, self.algorithm)(loss_fn, clip_norm=10.0, weight_decay=1e-3, variant="reference")


class Compiled(NamedTuple):
    """A plan's round, compiled: how to run it, and bytes it takes."""

    run: Run
    peak_bytes: float


def setting(case: Case, batches: dict[str, Any], native: bool = False) -> Trial:
    """What `jaxfed.simulate` plays a round with: every client's samples are those of its batches."""
    flat = {name: array.reshape(-1, *array.shape[3:]) for name, array in batches.items() if name != "mask"}
    per_client = case.local_steps * BATCH
    offsets, lengths = np.arange(case.cohort) * per_client, np.full(case.cohort, per_client)
    data = jaxfed.data.ClientData(flat, *jax.device_put((offsets.astype(np.int32), lengths.astype(np.int32))))
    algorithm = case.built(native)
    server = algorithm.init(case.network.build(native)[0], case.cohort)
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


def rounds(case: Case, given: Trial, batches: dict[str, Any]) -> dict[str, Callable[[], Compiled]]:
    """How to compile a round, for every plan of the network."""
    found = {}
    for name in case.network.plans:
        plan, *native = name.split()
        found[name] = functools.partial(compiled, setting(case, batches, True) if native else given, plan)
    return found


def floors(case: Case, batches: dict[str, Any]) -> dict[str, Callable[[], Run]]:
    """How to compile bare gradients at top level, a round's worth: of our lowering, native, of ten clients at once."""
    alone = [jax.tree.map(lambda leaf, at=at: leaf[at, 0], batches) for at in range(AT_ONCE)]
    together = jax.tree.map(lambda leaf: leaf[:AT_ONCE, 0], batches)
    params, gradient = _gradient(case, False)
    found = {"ours": lambda: _every(gradient, params, alone, _bare(case))}
    if len(case.network.shape) == 3:
        found["native"] = lambda: _every(*reversed(_gradient(case, True)), alone, _bare(case))
    if on_gpu():
        many = jax.tree.map(lambda leaf: jax.numpy.stack([leaf] * AT_ONCE), params)
        found["vmap"] = lambda: _every(jax.jit(jax.vmap(gradient)), many, [together], _bare(case) // AT_ONCE)
    return found


def flop(case: Case, batches: dict[str, Any]) -> float:
    """FLOP of one gradient, natively lowered for a CPU: ours counts padding, and a GPU's compiler no library calls."""
    params, gradient = _gradient(case, True)
    batch = jax.tree.map(lambda leaf: leaf[0, 0], batches)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (params, batch))
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        return gradient.lower(*shapes).cost_analysis()["flops"]


def _gradient(case: Case, native: bool) -> tuple[Any, Any]:
    params, apply = case.network.build(native)
    loss_fn = cross_entropy(apply)
    return params, jax.jit(jax.grad(lambda params, batch: loss_fn(params, batch, None)[0]))


def _bare(case: Case) -> int:
    """Gradients that make a floor: as many as a round takes, at most 500 and, of slow ones, 10."""
    return min(500, case.cohort * case.local_steps) if len(case.network.shape) == 1 or on_gpu() else 10


def _every(gradient: Any, params: Any, slices: list[Any], times: int) -> Run:
    program = gradient.lower(params, slices[0]).compile()
    return lambda: jax.block_until_ready([program(params, slices[n % len(slices)]) for n in range(times)][-1])


def gemms() -> tuple[dict[str, Run], float]:
    """A matrix product, of torch on a GPU as well, and its FLOP."""
    size, times = (8192 if on_gpu() else 1024), 8
    matrix, product = jax.random.normal(jax.random.key(0), (size, size)), jax.jit(lambda a: a @ a)
    found = {"": lambda: [product(matrix).block_until_ready() for _ in range(times)]}
    if on_gpu():
        other = torch.randn(size, size, device=torch_device())
        found["torch"] = lambda: _waited(lambda: [other @ other for _ in range(times)])
    return found, 2.0 * times * size**3


@functools.cache
def product_errors(size: int = 1024) -> dict[str, float]:
    """Relative error of a float32 product on either side: about 3e-4 with TF32, 3e-7 without."""
    a = np.random.default_rng(0).standard_normal((size, size), np.float32)
    exact, there = a.astype(float) @ a.astype(float), torch.from_numpy(a).to(torch_device())
    found = {"jax": np.asarray(jax.jit(lambda a: a @ a)(a)), "torch": (there @ there).cpu().numpy()}
    return {name: float(np.linalg.norm(each - exact) / np.linalg.norm(exact)) for name, each in found.items()}


def torch_device() -> str:
    """Where torch runs."""
    return "cuda" if on_gpu() else "cpu"


def _waited(run: Run) -> Any:
    found = run()
    if torch_device() == "cuda":
        torch.cuda.synchronize()
    return found


def torch_sides(case: Case, batches: dict[str, Any]) -> tuple[dict[str, Run], dict[str, str]]:
    """The torch loop in each memory format that makes a difference, on a GPU also as graphs; which failed, and why."""
    name, arguments = case.network.twin
    twin = getattr(torch_loop, name)(*arguments)
    x, y = (torch.from_numpy(batches[name]).to(torch_device()) for name in ("x", "y"))
    image = x.ndim == 6
    x = x.permute(0, 1, 2, 5, 3, 4).contiguous() if image else x
    start = [
        torch.randn(shape) / np.prod(shape[1:]) ** 0.5 if len(shape) > 1 else torch.zeros(shape)
        for shape in twin.shapes
    ]
    start = [each.to(torch_device()) for each in start]
    play = torch_loop.ROUNDS[case.algorithm]
    formats = {"contiguous": False, **({"channels_last": True} if image else {})}
    loops = {name: torch_loop.loop(twin, start, x, y.long(), last) for name, last in formats.items()}
    sides, failed = {name: functools.partial(play, each) for name, each in loops.items()}, {}
    for name, each in loops.items() if on_gpu() else ():
        try:
            sides[f"{name}, graph"] = torch_loop.captured(play, each)
        except Exception as error:  # whatever it is, the loop itself is still to be timed
            failed[f"torch, {name}, graph"] = reason(error)
    return {name: functools.partial(_waited, side) for name, side in sides.items()}, failed


def alternate(sides: dict[Any, Run], repeats: int, seconds: float) -> dict[Any, float]:
    """Median seconds of every side; all take turns, at least three times, until the time is spent."""
    for run in sides.values():
        run()
    times: dict[Any, list[float]] = {name: [] for name in sides}
    began = time.perf_counter()
    for turn in range(repeats):
        if turn >= 3 and time.perf_counter() - began > seconds:
            break
        for name, run in sides.items():
            time.sleep(0 if on_gpu() else PAUSE)
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: float(np.median(taken)) for name, taken in times.items()}


def compile_all(given: dict[str, Callable[[], Any]]) -> tuple[dict[str, Any], dict[str, str]]:
    """What the functions return, on a GPU side by side: programs; and of those that failed there, why."""
    with ThreadPoolExecutor(COMPILERS if on_gpu() else 1) as pool:
        pending = {name: pool.submit(each) for name, each in given.items()}
    refused = {name: reason(each.exception()) for name, each in pending.items() if on_gpu() and each.exception()}
    return {name: each.result() for name, each in pending.items() if name not in refused}, refused


def reason(error: BaseException | None) -> str:
    """Why something failed, in a line's words."""
    return f"failed, {type(error).__name__}: {error}"[:500]


def lines(case: Case, options: Options, seconds: float) -> tuple[list[dict[str, Any]], Callable[[], dict[str, Any]]]:
    """All plans of one case, and a function that tries `auto` and gives its line."""
    began = time.perf_counter()
    batches = case.network.batches(case.cohort, case.local_steps)
    on_device = jax.device_put(batches)
    given = setting(case, on_device)
    programs, refused = compile_all(rounds(case, given, on_device))
    bare, without = compile_all(floors(case, on_device))
    fitting = {plan: program for plan, program in programs.items() if program.peak_bytes <= MOST_BYTES}
    (products, product_flop), (peers, failed) = gemms(), torch_sides(case, batches)
    sides = {("plan", plan): program.run for plan, program in fitting.items()}
    sides |= {("floor", name): run for name, run in bare.items()}
    sides |= {("torch", name): run for name, run in peers.items()}
    sides |= {("gemm", name): run for name, run in products.items()}
    prepared = time.perf_counter() - began
    medians = alternate(sides, options.repeats, seconds)
    steps = case.cohort * case.local_steps
    gradients = GRADIENTS[case.algorithm]
    bares = {name: 1e3 * gradients * medians["floor", name] / _bare(case) for name in bare}
    torches = {name: 1e3 * medians["torch", name] / steps for name in peers}
    floor, peer = min(bares.values()), min(torches.values())
    rate = product_flop / medians["gemm", ""]
    beside = {"torch_ms": peer, "floor_ms": floor, "gemm_ms": 1e3 * gradients * flop(case, on_device) / rate}
    beside |= {"authors_ms": AUTHORS_MS.get((case.model, case.algorithm)), "gemm_gflops": rate / 1e9}
    if on_gpu():
        del beside["authors_ms"]
        beside |= {"torch_sides_ms": torches, "floors_ms": bares, "product_errors": product_errors()}
        beside |= {"torch_gemm_gflops": product_flop / medians["gemm", "torch"] / 1e9, "prepared_s": prepared}

    def line(name: str, plan: str) -> dict[str, Any]:
        taken = 1e3 * medians["plan", plan] / steps
        ratios = {"ratio_to_torch": peer / taken, "ratio_to_floor": taken / floor}
        speed = {"ms_per_local_step": taken, **beside, **ratios, "rounds_per_s": 1 / medians["plan", plan]}
        memory = {"peak_mb": programs[plan].peak_bytes / 1e6, "local_steps": case.local_steps}
        return {**case.about, "plan": name, "chosen": plan, **speed, **memory}

    found = [line(plan, plan) for plan in fitting]
    found += [{**case.about, "plan": plan, "skipped": f"needs {program.peak_bytes / 1e9:.1f} GB"}
              for plan, program in programs.items() if plan not in fitting]  # fmt: skip
    failed |= refused | {f"floor, {name}": why for name, why in without.items()}
    found += [{**case.about, "plan": name, "skipped": why} for name, why in failed.items()]
    ours = [plans.named(name) for name in fitting if not name.endswith("native")]
    return found, lambda: line("auto", plans.name_of(fastest(given, ours)))


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
    prepare(options.device)
    rows = []
    for row in tqdm(every(options), disable=options.json):
        rows.append(row)
        if options.json:
            print(json.dumps(row), flush=True)
    if not options.json:
        Console(width=140).print(table(rows))


def prepare(device: str) -> None:
    """Both libraries on the device, at their best."""
    jax.config.update("jax_platforms", PLATFORMS[device])
    if on_gpu():
        if jax.default_backend() != "gpu" or not torch.cuda.is_available():
            raise RuntimeError("expected a GPU that JAX and torch can use; install both with CUDA")
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
        return
    torch.set_num_threads(2)
    if hasattr(os, "SCHED_BATCH"):  # for all sides: threads that spin while they wait pre-empt less
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def every(options: Options) -> Iterator[dict[str, Any]]:
    """All lines; on a GPU large cohorts come late and `auto` last, each as long as time is left, whatever fails."""
    began, cases = time.perf_counter(), [Case(*each) for each in _product(options)]
    later: list[tuple[Case, Callable[[], dict[str, Any]]]] = []
    ask = functools.partial(lines, options=options, seconds=60 * options.minutes / len(cases) / 2)
    for case in sorted(cases, key=lambda case: case.cohort) if on_gpu() else cases:
        found, auto = _in_time(case, lambda case=case: ask(case), options.limit - time.perf_counter() + began)
        yield from found
        if auto is not None and on_gpu():
            later.append((case, auto))
        elif auto is not None:
            yield auto()
    for case, auto in later:
        found, line = _in_time(case, lambda auto=auto: ([], auto()), options.limit - time.perf_counter() + began)
        yield from found
        if line is not None:
            yield line


def _in_time(case: Case, ask: Callable[[], tuple[list[dict[str, Any]], Any]], left: float) -> tuple[list, Any]:
    """What `ask` gives; on a GPU a line that says why, and None, if it fails or no time is left."""
    if left < 0:
        return [{**case.about, "plan": "all", "skipped": "no time left"}], None
    try:
        return ask()
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
