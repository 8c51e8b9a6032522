"""The programs that rounds.py times: a round under every plan, bare gradients, a torch loop, a matrix product."""

import dataclasses
import functools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
import torch
import torch_loop
from machine import card
from networks import BATCH, NETWORKS, ON_GPU, TimedNetwork

import jaxfed
from jaxfed.layout import plans
from jaxfed.models import cross_entropy
from jaxfed.rows.rounds import RoundConfig, World, one_round
from jaxfed.run._autoplan import Trial

PAUSE = 0.3
"""Seconds of sleep before each timed call on a CPU: idle threads of the other library spin for a while."""
PLATFORMS = {"cpu": "cpu", "gpu": "cuda,cpu"}
COMPILERS = 4
"""Programs compiled in parallel for a GPU."""
AT_ONCE = 10
"""Clients, or batches, of the bare gradients."""

Run = Callable[[], Any]


def on_gpu() -> bool:
    """Whether both libraries run on a GPU."""
    return jax.config.jax_platforms == PLATFORMS["gpu"]


class Case(NamedTuple):
    """One model, algorithm and cohort."""

    model: str
    algorithm: str
    cohort: int

    @property
    def network(self) -> TimedNetwork:
        """The model's network."""
        return (ON_GPU if on_gpu() else NETWORKS)[self.model]

    @property
    def local_steps(self) -> int:
        """K."""
        return self.network.local_steps[self.cohort]

    @property
    def about(self) -> dict[str, Any]:
        """Entries with which every line begins."""
        return self._asdict() | card()

    def built(self, native: bool = False) -> jaxfed.FederatedAlgorithm:
        """The algorithm in the authors' form: clip 10, weight decay 1e-3."""
        loss_fn = cross_entropy(self.network.build(native)[1])
        return getattr(jaxfed, self.algorithm)(loss_fn, clip_norm=10.0, weight_decay=1e-3, variant="reference")


class Compiled(NamedTuple):
    """A compiled round of a plan, and the bytes that it needs."""

    run: Run
    peak_bytes: float


def setting(case: Case, batches: dict[str, Any], native: bool = False) -> Trial:
    """Return the arguments of a round as in `jaxfed.simulate`; each client's samples are those of its batches."""
    flat = {name: array.reshape(-1, *array.shape[3:]) for name, array in batches.items() if name != "mask"}
    per_client = case.local_steps * BATCH
    offsets, lengths = np.arange(case.cohort) * per_client, np.full(case.cohort, per_client)
    data = jaxfed.data.ClientData(flat, *jax.device_put((offsets.astype(np.int32), lengths.astype(np.int32))))
    algorithm = case.built(native)
    server = algorithm.init(case.network.build(native)[0], case.cohort)
    rows = jaxfed.DeviceStore().init(algorithm.init_client(server.params), case.cohort)
    config = RoundConfig(algorithm, jaxfed.data.Steps(case.local_steps, BATCH), plans.vmap(), per_client, 0)
    return Trial(config, server, World(data), np.arange(case.cohort, dtype=np.int32), lambda: rows)


def compiled(trial: Trial, plan: str) -> Compiled:
    """Compile a round under a plan: drawing batches, local steps, server update."""
    config = dataclasses.replace(trial.config, plan=plans.named(plan))
    arguments = trial.server, trial.rows(), trial.world, trial.ids
    program = jax.jit(functools.partial(one_round, config)).lower(*arguments).compile()
    memory = program.memory_analysis()
    peak = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return Compiled(lambda: jax.block_until_ready(program(*arguments)), peak)


def rounds(case: Case, trial: Trial, batches: dict[str, Any]) -> dict[str, Callable[[], Compiled]]:
    """Return a function that compiles a round, for every plan of the network."""
    compilers = {}
    for name in case.network.plans:
        plan, *native = name.split()
        compilers[name] = functools.partial(compiled, setting(case, batches, True) if native else trial, plan)
    return compilers


def floors(case: Case, batches: dict[str, Any]) -> dict[str, Callable[[], Run]]:
    """Return functions that compile a round's gradients without the round: ours, native, ten clients at once."""
    alone = [jax.tree.map(lambda leaf, at=at: leaf[at, 0], batches) for at in range(AT_ONCE)]
    together = jax.tree.map(lambda leaf: leaf[:AT_ONCE, 0], batches)
    params, gradient = _gradient(case, False)
    compilers = {"ours": lambda: _every(gradient, params, alone, bare_gradients(case))}
    if len(case.network.shape) == 3:
        compilers["native"] = lambda: _every(*reversed(_gradient(case, True)), alone, bare_gradients(case))
    if on_gpu():
        many = jax.tree.map(lambda leaf: jax.numpy.stack([leaf] * AT_ONCE), params)
        compilers["vmap"] = lambda: _every(
            jax.jit(jax.vmap(gradient)), many, [together], bare_gradients(case) // AT_ONCE
        )
    return compilers


def flop(case: Case, batches: dict[str, Any]) -> float:
    """FLOP of one gradient with XLA's convolutions on a CPU; ours count padding, and a GPU's count no library calls."""
    params, gradient = _gradient(case, True)
    batch = jax.tree.map(lambda leaf: leaf[0, 0], batches)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (params, batch))
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        return gradient.lower(*shapes).cost_analysis()["flops"]


def _gradient(case: Case, native: bool) -> tuple[Any, Any]:
    params, apply = case.network.build(native)
    loss_fn = cross_entropy(apply)
    return params, jax.jit(jax.grad(lambda params, batch: loss_fn(params, batch, None)[0]))


def bare_gradients(case: Case) -> int:
    """Number of bare gradients: as many as in a round, at most 500; 10 of slow networks."""
    return min(500, case.cohort * case.local_steps) if len(case.network.shape) == 1 or on_gpu() else 10


def _every(gradient: Any, params: Any, slices: list[Any], times: int) -> Run:
    program = gradient.lower(params, slices[0]).compile()
    return lambda: jax.block_until_ready([program(params, slices[n % len(slices)]) for n in range(times)][-1])


def gemms() -> tuple[dict[str, Run], float]:
    """Return a matrix product, on a GPU also torch's, and its FLOP."""
    size, times = (8192 if on_gpu() else 1024), 8
    matrix, product = jax.random.normal(jax.random.key(0), (size, size)), jax.jit(lambda a: a @ a)
    products = {"": lambda: [product(matrix).block_until_ready() for _ in range(times)]}
    if on_gpu():
        other = torch.randn(size, size, device=torch_device())
        products["torch"] = lambda: _waited(lambda: [other @ other for _ in range(times)])
    return products, 2.0 * times * size**3


@functools.cache
def product_errors(size: int = 1024) -> dict[str, float]:
    """Relative error of a float32 product in each library: about 3e-4 with TF32, 3e-7 without."""
    a = np.random.default_rng(0).standard_normal((size, size), np.float32)
    exact, tensor = a.astype(float) @ a.astype(float), torch.from_numpy(a).to(torch_device())
    products = {"jax": np.asarray(jax.jit(lambda a: a @ a)(a)), "torch": (tensor @ tensor).cpu().numpy()}
    return {name: float(np.linalg.norm(each - exact) / np.linalg.norm(exact)) for name, each in products.items()}


def torch_device() -> str:
    """Torch's device."""
    return "cuda" if on_gpu() else "cpu"


def _waited(run: Run) -> Any:
    result = run()
    if torch_device() == "cuda":
        torch.cuda.synchronize()
    return result


def torch_sides(case: Case, batches: dict[str, Any]) -> tuple[dict[str, Run], dict[str, str]]:
    """Return torch loops by memory format, on a GPU also as CUDA graphs; and reasons of those that failed."""
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
        except Exception as error:  # the loop without a graph is still timed
            failed[f"torch, {name}, graph"] = reason(error)
    return {name: functools.partial(_waited, side) for name, side in sides.items()}, failed


def alternate(sides: dict[Any, Run], repeats: int, seconds: float) -> dict[Any, float]:
    """Median seconds of every side; all take turns, at least three times, until ``seconds`` have passed."""
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


def compile_all(compilers: dict[str, Callable[[], Any]]) -> tuple[dict[str, Any], dict[str, str]]:
    """Call all compilers, on a GPU in parallel; return the programs, and the reasons of those that failed on a GPU."""
    with ThreadPoolExecutor(COMPILERS if on_gpu() else 1) as pool:
        pending = {name: pool.submit(each) for name, each in compilers.items()}
    refused = {name: reason(each.exception()) for name, each in pending.items() if on_gpu() and each.exception()}
    return {name: each.result() for name, each in pending.items() if name not in refused}, refused


def reason(error: BaseException | None) -> str:
    """Return the reason of a failure, as an entry of a line."""
    return f"failed, {type(error).__name__}: {error}"[:500]
