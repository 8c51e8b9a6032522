"""The suite ``gpu`` of decode.py: the target on an accelerator, the draft on the processor or beside the target.

    JAX_PLATFORMS=cuda,cpu python benchmarks/decode.py --suite gpu [--sizes 7B 1B] [--drafts 0.4M 6.7M] [--minutes 2.4]

The target is the embedded one, grown to its size in bfloat16 (eight wide layers: fewer kernels than published models
of the size have, and a vocabulary of 73); the draft float32 on the processor, bfloat16 on the accelerator. Greedy, one
sequence. Of a target and a draft all methods are compiled side by side, then measured in turns (A B C A B C …);
medians. Without an accelerator a second forced host device stands in for the processor.

``floor_ms``: the bytes of the target's weights over the bandwidth of copies on the device, bytes read and written.
``agreeing``: the share of tokens before the first that differs from plain decoding's (``differs_at``, by prompt):
programs of other shapes round otherwise in bfloat16. ``law`` lines: a step's programs one at a time, and what the law
makes of them. ``crossing``: when a program was enqueued, when the copy of its result to the other side returned, and
when it was there; where the first two are far apart, a copy waits for the program.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from machine import card
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
from jaxspec.zoo._grow import grow

#: Factors of width and depth by the sizes that they come to.
TARGETS = {"7B": (33, 1), "1B": (13, 1), "50M": (2, 2), "6M": (1, 1)}
DRAFTS = {name: ALL_DRAFTS[name] for name in ("0.4M", "6.7M", "27M")}
SIZES = ("7B", "1B")
WINDOWS, KAPPA, COMPILED_AT_ONCE = (7, 4), 8, 6
SPENT = "time is spent"


class Way(NamedTuple):
    """One way to decode; the draft is on the processor, or with the target."""

    method: str
    window: int = 0
    budget: int = 0
    draft_on: str | None = None


class Case(NamedTuple):
    """A target, a draft for either side, the exit's layer, and the two devices."""

    target: Model
    drafts: dict[str, Model]
    exit_layer: int
    placements: dict[str, Placement]


def ways() -> list[Way]:
    """What is compared, what matters most first."""
    found = [Way(*each, "processor") for each in (("mirror", 7, 8), ("ahead", 7, 8), ("none", 7, 0))]
    found += [Way("speculative", window, 0, "accelerator") for window in WINDOWS]
    found += [Way(method, 4, 8, "processor") for method in ("mirror", "ahead")]
    found += [Way(method, 7, 8, "accelerator") for method in ("mirror", "ahead")]
    return found + [Way(method, 7, 4, "processor") for method in ("mirror", "ahead")]


def build(way: Way, case: Case) -> DecodingMethod:
    """Build the method of a way."""
    if way.draft_on is None:
        return DecodeSpec().build(case.target, placement=case.placements["accelerator"])
    policy = None if way.method == "speculative" else policy_named(way.method, way.budget)
    spec = DecodeSpec(way.window, policy, KAPPA, case.exit_layer)
    return spec.build(case.target, case.drafts[way.draft_on], placement=case.placements[way.draft_on])


def short(model: Model) -> Model:
    """Matrices in bfloat16."""
    cast = lambda path, leaf: leaf.astype(leaf_dtype(path, jnp.bfloat16))  # noqa: E731
    return model._replace(params=jax.tree_util.tree_map_with_path(cast, model.params))


def count(model: Model) -> tuple[int, int]:
    """Numbers and bytes."""
    leaves = jax.tree.leaves(model.params)
    return sum(leaf.size for leaf in leaves), sum(leaf.nbytes for leaf in leaves)


def timed(run: Callable[[], Any], repeats: int = 5) -> float:
    """Best seconds of a call, after one that compiles."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return min(times[1:])


def bandwidth(device: jax.Device) -> float:
    """Bytes a second that a copy on the device reads and writes; ten of them in one program."""
    size = 2**30 if device.platform != "cpu" else 2**26
    array = jax.device_put(np.zeros(size // 4, np.float32), device)
    copies = jax.jit(lambda x: jax.lax.fori_loop(0, 10, lambda _, y: y + 1, x))
    return 10 * 2 * size / timed(lambda: copies(array))


def crossing(source: jax.Device, sink: jax.Device) -> dict[str, float]:
    """Milliseconds after which a program was enqueued, the copy of its result returned, and had arrived."""
    square = jax.device_put(np.full((1024, 1024), 1e-3, np.float32), source)
    repeats = 20 if source.platform == "cpu" else 2000
    work = jax.jit(lambda x: jax.lax.fori_loop(0, repeats, lambda _, y: y @ x, x)[:1, :64])
    jax.block_until_ready(jax.device_put(work(square), sink))
    start = time.perf_counter()
    result = work(square)
    enqueued = time.perf_counter()
    there = jax.device_put(result, sink)
    returned = time.perf_counter()
    there.block_until_ready()
    times = {"enqueued": enqueued, "returned": returned, "arrived": time.perf_counter()}
    return {name: round(1e3 * (at - start), 3) for name, at in times.items()}


def compiled(
    methods: dict[Way, DecodingMethod], prompt: list[int], new: int, left: Callable[[], float]
) -> tuple[dict[Way, DecodingMethod], list[dict[str, Any]]]:
    """Those that ran once, several at a time and in half of the time left, and lines about the others."""
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
    first = run(methods[plain])  # alone: its prefill is everybody's
    with ThreadPoolExecutor(COMPILED_AT_ONCE) as pool:
        said = dict(zip(methods, [first, *pool.map(run, (methods[way] for way in others))], strict=True))
    lines = [{"kind": "skipped", **way._asdict(), "why": why} for way, why in said.items() if why is not None]
    return {way: methods[way] for way, why in said.items() if why is None}, lines


def told(way: Way, runs: list[Measurement], plain: list[Measurement]) -> dict[str, Any]:
    """What the runs of a way say, beside those of plain decoding."""
    own = sorted(runs, key=lambda run: run.seconds)[len(runs) // 2]
    usual, mine = (float(np.median([run.seconds for run in many])) for many in (plain, runs))
    pairs = list(zip(own.tokens, plain[0].tokens, strict=True))
    same = [next((i for i, (a, b) in enumerate(zip(*pair, strict=True)) if a != b), None) for pair in pairs]
    agreeing = sum(len(tokens) if at is None else at for (tokens, _), at in zip(pairs, same, strict=True))
    return {
        **way._asdict(),
        "rounds": len(runs),
        "ratio_to_autoregressive": round(usual / mine, 3),
        "tokens_per_second": round(sum(map(len, own.tokens)) / mine, 1),
        "step_ms": round(1e3 * own.step_seconds, 3),
        "accepted_length": round(own.accepted_length, 3),
        "reuse_rate": round(own.reuse_rate, 3),
        "agreeing": round(agreeing / sum(len(tokens) for tokens, _ in pairs), 3),
        "differs_at": same,
    }


def law(method: DecodingMethod, placement: Placement, prompt: list[int], new: int) -> dict[str, Any]:
    """Time the programs of a step one at a time, the step by the cost model and in normal operation; milliseconds."""
    timing = cost.measure(method, placement, [prompt], new, repeats=2)
    times = {**vars(timing.times), "law": timing.predicted, "step": timing.step}
    overlap = None if timing.overlap is None else round(timing.overlap, 3)
    return {**{f"{name}_ms": round(1e3 * value, 3) for name, value in times.items()}, "overlap": overlap}


def rows(
    case: Case, prompts: list[list[int]], options: Any, speed: float, left: Callable[[], float]
) -> Iterator[dict[str, Any]]:
    """Lines of one target and draft."""
    start, new, plain = time.perf_counter(), options.new_tokens, Way("autoregressive")
    built = {way: build(way, case) for way in (plain, *ways())}
    methods, skipped = compiled(built, prompts[0], new, left)
    yield from skipped
    yield {"kind": "compiled", "methods": len(methods), "seconds": round(time.perf_counter() - start, 1)}
    if plain not in methods:
        return
    runs: dict[Way, list[Measurement]] = {way: [] for way in methods}
    for turn in range(options.rounds):
        if turn and left() < 0:
            yield {"kind": "skipped", "rounds": options.rounds - turn, "why": SPENT}
            break
        for way, method in methods.items():
            runs[way].append(measure(method, prompts, new))
    floor = 1e3 * count(case.target)[1] / speed
    for way, many in runs.items():
        found = told(way, many, runs[plain])
        beside = {"floor_ms": round(floor, 3), "over_floor": round(found["step_ms"] / floor, 3)}
        yield {"kind": "method", **found, **(beside if way == plain else {})}
    spent = {way: float(np.median([run.seconds for run in many])) for way, many in runs.items()}
    for name in ("mirror", "ahead", "none"):
        own = [way for way in methods if way.method == name and way.draft_on == "processor"]
        if not own or left() < 0:
            yield {"kind": "skipped", "law": name, "why": SPENT if own else "no such method ran"}
            continue
        best = min(own, key=lambda way: spent[way])
        yield {"kind": "law", **best._asdict(), **law(methods[best], case.placements["processor"], prompts[0], new)}


def suite(options: Any) -> Iterator[dict[str, Any]]:
    """The machine, then every draft with every target."""
    end = time.perf_counter() + 60 * options.minutes
    left = lambda: end - time.perf_counter()  # noqa: E731
    accelerator, processor = jax.devices()[0], jax.devices("cpu")[-1]
    placements = {
        "accelerator": Placement(mesh_of([accelerator]), mesh_of([accelerator])),
        "processor": Placement(mesh_of([accelerator]), mesh_of([processor])),
    }
    speed, message = bandwidth(accelerator), cost.rendezvous(placements["processor"])
    yield {"kind": "machine", **card(), "copy_gb_s": round(speed / 1e9, 1), "rendezvous_ms": round(1e3 * message, 4)}
    for name, way in (("to the processor", (accelerator, processor)), ("back", (processor, accelerator))):
        yield {"kind": "crossing", **card(), "way": name, **crossing(*way)}
    pair = zoo.load()
    prompts = prompts_of(pair, options.prompts)
    target_of = lru_cache(None)(lambda size: jax.block_until_ready(grow(short(pair.target), *TARGETS[size])))
    for draft, size in ((draft, size) for draft in options.drafts or DRAFTS for size in options.sizes or SIZES):
        about = {**card(), "target": size, "draft": draft}
        if left() < 0:
            yield {"kind": "skipped", **about, "why": SPENT}
            continue
        start = time.perf_counter()
        target, small = target_of(size), grow(pair.draft, *DRAFTS[draft])
        sizes = {"target_parameters": count(target)[0], "draft_parameters": count(small)[0]}
        yield {"kind": "grown", **about, **sizes, "seconds": round(time.perf_counter() - start, 1)}
        drafts = {"processor": small, "accelerator": short(small)}
        case = Case(target, drafts, pair.exit_layer * TARGETS[size][1], placements)
        yield from ({**row, **about} for row in rows(case, prompts, options, speed, left))
