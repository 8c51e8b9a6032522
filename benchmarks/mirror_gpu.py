"""The suite ``gpu`` of decode.py: the target on an accelerator, the draft on the CPU or on the accelerator too.

    JAX_PLATFORMS=cuda,cpu python benchmarks/decode.py --suite gpu [--sizes 7B 1B] [--drafts 0.4M 6.7M] [--minutes 2.4]

The target is the embedded one, grown to its size in bfloat16 (eight wide layers: fewer kernels than published models
of the size have, and a vocabulary of 73); the draft is float32 on the CPU ("processor" in the lines), bfloat16 on the
accelerator. Greedy, one sequence. For a target and a draft all methods are compiled in parallel, then measured in turns
(A B C A B C …); medians are reported. Without an accelerator the last host device replaces the CPU.

``floor_ms``: the bytes of the target's weights over the bandwidth of copies on the device, bytes read and written.
``agreeing``: the share of tokens before the first difference from plain decoding (``differs_at``, by prompt): programs
of other shapes round differently in bfloat16. ``law`` lines: times of a step's programs one at a time, and the step
that the cost model predicts from them. ``crossing``: when a program was enqueued, when the copy of its result to the
other device returned, and when the result arrived; if the first two are far apart, the copy waits for the program.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from machine import card, seconds_of
from mirror import DRAFTS as ALL_DRAFTS
from mirror import prompts_of

from jaxspec import zoo
from jaxspec.analysis import cost
from jaxspec.cli._bench_methods import Measurement, measure
from jaxspec.cli._methods import policy_named
from jaxspec.devices.sharding import Placement, mesh_of
from jaxspec.loading.huggingface import leaf_dtype
from jaxspec.methods import DecodeSpec
from jaxspec.methods.protocol import DecodingMethod
from jaxspec.models.base import Model
from jaxspec.zoo import grow

#: Factors of width and depth, by the resulting size.
TARGETS = {"7B": (33, 1), "1B": (13, 1), "50M": (2, 2), "6M": (1, 1)}
DRAFTS = {name: ALL_DRAFTS[name] for name in ("0.4M", "6.7M", "27M")}
SIZES = ("7B", "1B")
WINDOWS, KAPPA, COMPILED_AT_ONCE = (7, 4), 8, 6
SPENT = "no time left"


class MethodSpec(NamedTuple):
    """A decoding method; the draft is on the "processor" or on the "accelerator"."""

    method: str
    window: int = 0
    budget: int = 0
    draft_on: str | None = None


class Case(NamedTuple):
    """A target, the draft for either device, the exit layer, and the placements."""

    target: Model
    drafts: dict[str, Model]
    exit_layer: int
    placements: dict[str, Placement]


def specs() -> list[MethodSpec]:
    """Return the methods that are compared, the most important first."""
    methods = [MethodSpec(*each, "processor") for each in (("mirror", 7, 8), ("ahead", 7, 8), ("none", 7, 0))]
    methods += [MethodSpec("speculative", window, 0, "accelerator") for window in WINDOWS]
    methods += [MethodSpec(method, 4, 8, "processor") for method in ("mirror", "ahead")]
    methods += [MethodSpec(method, 7, 8, "accelerator") for method in ("mirror", "ahead")]
    return methods + [MethodSpec(method, 7, 4, "processor") for method in ("mirror", "ahead")]


def build(spec: MethodSpec, case: Case) -> DecodingMethod:
    """Build the decoding method."""
    if spec.draft_on is None:
        return DecodeSpec().build(case.target, placement=case.placements["accelerator"])
    policy = None if spec.method == "speculative" else policy_named(spec.method, spec.budget)
    decoding = DecodeSpec(spec.window, policy, KAPPA, case.exit_layer)
    return decoding.build(case.target, case.drafts[spec.draft_on], placement=case.placements[spec.draft_on])


def in_bfloat16(model: Model) -> Model:
    """Return the model with its matrices in bfloat16."""
    cast = lambda path, leaf: leaf.astype(leaf_dtype(path, jnp.bfloat16))  # noqa: E731
    return model._replace(params=jax.tree_util.tree_map_with_path(cast, model.params))


def count(model: Model) -> tuple[int, int]:
    """Return the number of parameters and their bytes."""
    leaves = jax.tree.leaves(model.params)
    return sum(leaf.size for leaf in leaves), sum(leaf.nbytes for leaf in leaves)


def timed(run: Callable[[], Any], repeats: int = 5) -> float:
    """Return the best seconds of a call, after a first one that compiles."""
    jax.block_until_ready(run())
    return seconds_of(lambda: jax.block_until_ready(run()), repeats)


def bandwidth(device: jax.Device) -> float:
    """Return the bytes per second that a copy on the device reads and writes; ten copies in one program."""
    size = 2**30 if device.platform != "cpu" else 2**26
    array = jax.device_put(np.zeros(size // 4, np.float32), device)
    copies = jax.jit(lambda x: jax.lax.fori_loop(0, 10, lambda _, y: y + 1, x))
    return 10 * 2 * size / timed(lambda: copies(array))


def crossing(source: jax.Device, sink: jax.Device) -> dict[str, float]:
    """Return the milliseconds until a program is enqueued, the copy of its result returns, and the result arrives."""
    square = jax.device_put(np.full((1024, 1024), 1e-3, np.float32), source)
    repeats = 20 if source.platform == "cpu" else 2000
    work = jax.jit(lambda x: jax.lax.fori_loop(0, repeats, lambda _, y: y @ x, x)[:1, :64])
    jax.block_until_ready(jax.device_put(work(square), sink))
    start = time.perf_counter()
    result = work(square)
    enqueued = time.perf_counter()
    copied = jax.device_put(result, sink)
    returned = time.perf_counter()
    copied.block_until_ready()
    times = {"enqueued": enqueued, "returned": returned, "arrived": time.perf_counter()}
    return {name: round(1e3 * (at - start), 3) for name, at in times.items()}


def compiled(
    methods: dict[MethodSpec, DecodingMethod], prompt: list[int], new: int, left: Callable[[], float]
) -> tuple[dict[MethodSpec, DecodingMethod], list[dict[str, Any]]]:
    """Run each method once, several in parallel, in half of the time left; return those that ran, and lines."""
    half = left() / 2

    def run(method: DecodingMethod) -> str | None:
        if left() < half:
            return SPENT
        try:
            measure(method, [prompt], new)
        except Exception as error:
            return f"{type(error).__name__}: {error}"[:400]
        return None

    plain, *others = methods
    first = run(methods[plain])  # alone: all methods share its prefill
    with ThreadPoolExecutor(COMPILED_AT_ONCE) as pool:
        errors = dict(zip(methods, [first, *pool.map(run, (methods[spec] for spec in others))], strict=True))
    lines = [{"kind": "skipped", **spec._asdict(), "why": why} for spec, why in errors.items() if why is not None]
    return {spec: methods[spec] for spec, why in errors.items() if why is None}, lines


def summary(spec: MethodSpec, runs: list[Measurement], plain: list[Measurement]) -> dict[str, Any]:
    """Figures of a method's runs, compared with those of plain decoding."""
    own = sorted(runs, key=lambda run: run.seconds)[len(runs) // 2]
    plain_seconds, seconds = (float(np.median([run.seconds for run in many])) for many in (plain, runs))
    pairs = list(zip(own.tokens, plain[0].tokens, strict=True))
    differs = [next((i for i, (a, b) in enumerate(zip(*pair, strict=True)) if a != b), None) for pair in pairs]
    agreeing = sum(len(tokens) if at is None else at for (tokens, _), at in zip(pairs, differs, strict=True))
    return {
        **spec._asdict(),
        "rounds": len(runs),
        "ratio_to_autoregressive": round(plain_seconds / seconds, 3),
        "tokens_per_second": round(sum(map(len, own.tokens)) / seconds, 1),
        "step_ms": round(1e3 * own.step_seconds, 3),
        "accepted_length": round(own.accepted_length, 3),
        "reuse_rate": round(own.reuse_rate, 3),
        "agreeing": round(agreeing / sum(len(tokens) for tokens, _ in pairs), 3),
        "differs_at": differs,
    }


def program_times(method: DecodingMethod, placement: Placement, prompt: list[int], new: int) -> dict[str, Any]:
    """Time the programs of a step one at a time, the step by the cost model and in normal operation; milliseconds."""
    timing = cost.measure(method, placement, [prompt], new, repeats=2)
    times = {**vars(timing.times), "law": timing.predicted, "step": timing.step}
    overlap = None if timing.overlap is None else round(timing.overlap, 3)
    return {**{f"{name}_ms": round(1e3 * value, 3) for name, value in times.items()}, "overlap": overlap}


def rows(
    case: Case, prompts: list[list[int]], options: Any, speed: float, left: Callable[[], float]
) -> Iterator[dict[str, Any]]:
    """Yield the lines of one target and draft."""
    start, new, plain = time.perf_counter(), options.new_tokens, MethodSpec("autoregressive")
    built = {spec: build(spec, case) for spec in (plain, *specs())}
    methods, skipped = compiled(built, prompts[0], new, left)
    yield from skipped
    yield {"kind": "compiled", "methods": len(methods), "seconds": round(time.perf_counter() - start, 1)}
    if plain not in methods:
        return
    runs: dict[MethodSpec, list[Measurement]] = {spec: [] for spec in methods}
    for turn in range(options.rounds):
        if turn and left() < 0:
            yield {"kind": "skipped", "rounds": options.rounds - turn, "why": SPENT}
            break
        for spec, method in methods.items():
            runs[spec].append(measure(method, prompts, new))
    floor = 1e3 * count(case.target)[1] / speed
    for spec, many in runs.items():
        line = summary(spec, many, runs[plain])
        floors = {"floor_ms": round(floor, 3), "over_floor": round(line["step_ms"] / floor, 3)}
        yield {"kind": "method", **line, **(floors if spec == plain else {})}
    spent = {spec: float(np.median([run.seconds for run in many])) for spec, many in runs.items()}
    for name in ("mirror", "ahead", "none"):
        own = [spec for spec in methods if spec.method == name and spec.draft_on == "processor"]
        if not own or left() < 0:
            yield {"kind": "skipped", "law": name, "why": SPENT if own else "no such method ran"}
            continue
        best = min(own, key=lambda spec: spent[spec])
        yield {
            "kind": "law",
            **best._asdict(),
            **program_times(methods[best], case.placements["processor"], prompts[0], new),
        }


def suite(options: Any) -> Iterator[dict[str, Any]]:
    """Yield lines on the machine, then on every draft with every target."""
    end = time.perf_counter() + 60 * options.minutes
    left = lambda: end - time.perf_counter()  # noqa: E731
    accelerator, processor = jax.devices()[0], jax.devices("cpu")[-1]
    placements = {
        "accelerator": Placement(mesh_of([accelerator]), mesh_of([accelerator])),
        "processor": Placement(mesh_of([accelerator]), mesh_of([processor])),
    }
    speed, message = bandwidth(accelerator), cost.rendezvous(placements["processor"])
    yield {"kind": "machine", **card(), "copy_gb_s": round(speed / 1e9, 1), "rendezvous_ms": round(1e3 * message, 4)}
    for name, devices in (("to the processor", (accelerator, processor)), ("back", (processor, accelerator))):
        yield {"kind": "crossing", **card(), "way": name, **crossing(*devices)}
    pair = zoo.load()
    prompts = prompts_of(pair, options.prompts)
    target_of = lru_cache(None)(lambda size: jax.block_until_ready(grow(in_bfloat16(pair.target), *TARGETS[size])))
    for draft, size in ((draft, size) for draft in options.drafts or DRAFTS for size in options.sizes or SIZES):
        about = {**card(), "target": size, "draft": draft}
        if left() < 0:
            yield {"kind": "skipped", **about, "why": SPENT}
            continue
        start = time.perf_counter()
        target, small = target_of(size), grow(pair.draft, *DRAFTS[draft])
        sizes = {"target_parameters": count(target)[0], "draft_parameters": count(small)[0]}
        yield {"kind": "grown", **about, **sizes, "seconds": round(time.perf_counter() - start, 1)}
        drafts = {"processor": small, "accelerator": in_bfloat16(small)}
        case = Case(target, drafts, pair.exit_layer * TARGETS[size][1], placements)
        yield from ({**row, **about} for row in rows(case, prompts, options, speed, left))
