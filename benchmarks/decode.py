"""Decoding speed of jaxspec; one JSON object per line.

    python benchmarks/decode.py [--suite engine] [--sizes 1M 3M 10M 30M 100M 200M] [--json]

engine: random weights of a Llama, float32, batch 1. ``forward``: milliseconds of one compiled pass over T tokens with a
cache (a verification by the target; T = 1 is a step of plain decoding); ``floor_ms``: the bytes of the weights over the
read bandwidth (the best of several reads of 1 GiB by two threads in the same run). ``generate``: tokens per second of
greedy ``jaxspec.generate``; ``ratio_to_transformers`` = ours / transformers' ``generate`` on the same weights,
interleaved, torch at its best number of threads; ``host_fraction``: share of the loop's time outside the compiled step.
Every row is measured in two processes, with and without Eigen threads; the better one is printed. ``int8``: effect of
8-bit weights of the embedded target on logits, most likely tokens and bits per character. ``bfloat16``: where
speculative decoding differs from plain decoding with the embedded pair in bfloat16 (kernels for one row and for eight
rows round differently): the position (``place``), and the gap between the target's two largest logits there.

Other suites: mirror, devices, drafts, mirror-trees, late-taps, long-caches and gpu, see ``benchmarks/`` mirror.py,
devices.py, draft_kinds.py, mirror_trees.py, late_taps.py, long_caches.py and mirror_gpu.py.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import devices
import draft_kinds
import jax
import jax.numpy as jnp
import late_taps
import long_caches
import mirror
import mirror_gpu
import mirror_trees
import numpy as np
import tyro
from machine import read_bandwidth, seconds_of
from peers import transformers_model

import jaxspec
from jaxspec import zoo
from jaxspec.cli._methods import batch_scheduling
from jaxspec.generation.requests import request_of
from jaxspec.models.attention import init_cache
from jaxspec.models.config import DecoderConfig, Ends
from jaxspec.verify.programs import target_plain
from jaxspec.verify.target import Progress, Target, TargetState, choose, prefix_pass

VOCAB, CAPACITY, PROMPT = 4096, 256, 32
#: width, layers, query heads, key-value heads, hidden.
SIZES = {
    "1M": (128, 4, 4, 2, 352),
    "3M": (192, 7, 6, 3, 512),
    "10M": (320, 8, 5, 5, 864),
    "30M": (512, 10, 8, 4, 1376),
    "50M": (640, 10, 10, 5, 1792),
    "100M": (768, 14, 12, 6, 2112),
    "200M": (1024, 17, 16, 8, 2752),
}
TOKENS = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class DecodeOptions:
    """What is measured.

    Attributes:
        suite: engine, mirror, devices, drafts, mirror-trees, late-taps, long-caches or gpu.
        sizes: of the models (mirror, devices and gpu: of the targets). Default: all of the suite (devices: 13M, 50M).
        drafts: mirror, devices and gpu: sizes of the drafts; drafts: kinds. Default: all (devices: four).
        out: late-taps: folder for training.
        steps: late-taps: optimiser steps.
        pair: drafts, mirror-trees and late-taps: folder of a pair with drafts. Default: the embedded pair.
        prompts: mirror, drafts and gpu: number of prompts; devices: of batches.
        batches: devices: sizes of batches beside 1.
        rounds: mirror, devices, drafts, long-caches and gpu: rounds in which all methods take turns.
        minutes: gpu: time after which the rest is skipped.
        picture: mirror, devices and drafts: file of the picture.
        repeats: smallest number of timed calls per row; medians are reported.
        new_tokens: number of decoded tokens.
        transformers: compare with transformers, which must be installed.
        json: has no effect; the output is always JSON lines.
        eigen_threads: internal: measure in this process, with or without Eigen threads.
    """

    suite: str = "engine"
    sizes: tuple[str, ...] = ()
    drafts: tuple[str, ...] = ()
    out: Path = Path("out/late_taps")
    steps: int = 1500
    pair: str | None = None
    prompts: int = 3
    batches: tuple[int, ...] = (4, 8)
    rounds: int = 3
    minutes: float = 60.0
    picture: Path = Path("out/mirror.png")
    repeats: int = 15
    new_tokens: int = 64
    transformers: bool = True
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    eigen_threads: bool | None = None


def config_of(size: str) -> DecoderConfig:
    """Configuration of a Llama of this size with a tied head."""
    width, layers, heads, kv_heads, hidden = SIZES[size]
    ends = Ends(tied=True, embedding_scale=1.0)
    return DecoderConfig(VOCAB, width, layers, heads, kv_heads, width // heads, hidden, ends=ends)


def weight_bytes(params: Any) -> int:
    """Bytes that a pass must read: every matrix once, the embedding too since it is also the head."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(params))


def median_ms(run: Callable[[], Any], repeats: int, least_seconds: float = 0.3) -> float:
    """Median milliseconds of a blocking call, over at least ``repeats`` calls and ``least_seconds``."""
    run()
    times: list[float] = []
    while len(times) < repeats or sum(times) < least_seconds:
        times.append(seconds_of(run))
    return 1e3 * float(np.median(times))


def forward(model: jaxspec.Model, tokens: int) -> Callable[[], Any]:
    """Return a call of one compiled pass over ``tokens`` tokens; the cache is donated, as in decoding."""
    network, params = model.network, model.params
    count, window = network.config.num_layers, jnp.zeros((1, tokens - 1), jnp.int32)
    start = jnp.full(1, PROMPT, jnp.int32)
    progress, target = Progress(jnp.ones(1, jnp.int32), start, start + 64), Target(network)

    def run(params: Any, cache: Any) -> tuple[Any, Any]:
        x, cache, _ = prefix_pass(target, params, cache, progress, window, count)
        return choose(target, params, progress, x, window), cache

    compiled = jax.jit(run, donate_argnums=1)
    caches = [init_cache(network.config, 1, CAPACITY)]

    def call() -> None:
        choices, caches[0] = compiled(params, caches[0])
        jax.block_until_ready(choices)

    return call


def step_ms(method: jaxspec.DecodingMethod, model: jaxspec.Model, repeats: int) -> float:
    """Milliseconds of a compiled step of plain decoding; eight are enqueued at a time, without the decoding loop."""
    ids = [np.arange(PROMPT, dtype=np.int32)]
    request, capacity = request_of(ids, method, repeats * 8 + 8)
    state: TargetState = method.init(request, capacity)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(8):
            state, _ = target_plain(Target(model.network), model.params, state)
        jax.block_until_ready(state)
        times.append((time.perf_counter() - start) / 8)
    return 1e3 * float(np.median(times))


def peer(model: jaxspec.Model, new_tokens: int) -> Callable[[int], Callable[[], Any]]:
    """Return a function from a number of threads to a call of transformers' greedy ``generate``."""
    import torch

    theirs = transformers_model(model)
    ids = torch.arange(PROMPT)[None]

    def with_threads(count: int) -> Callable[[], Any]:
        def run() -> Any:
            torch.set_num_threads(count)
            with torch.inference_mode():
                return theirs.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=new_tokens,
                    min_new_tokens=new_tokens,
                    do_sample=False,
                )

        return run

    return with_threads


def generate_row(model: jaxspec.Model, options: DecodeOptions) -> dict[str, Any]:
    """Tokens per second, interleaved with transformers at its best number of threads."""
    method, new = jaxspec.autoregressive(model), options.new_tokens
    sides: dict[str, Callable[[], Any]] = {
        "ours": lambda: jaxspec.generate(method, [list(range(PROMPT))], new, stop=())
    }
    if options.transformers:
        with_threads = peer(model, new)
        trial = {count: seconds_of(with_threads(count), 2) for count in (1, 2)}
        sides["theirs"] = with_threads(min(trial, key=lambda count: trial[count]))
    sides["ours"]()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(5):
        for name, run in sides.items():
            time.sleep(0.3)  # the other library's threads spin for a while
            seconds[name].append(seconds_of(run))
    ours = float(np.median(seconds["ours"]))
    step = step_ms(method, model, options.repeats)
    result = sides["ours"]().stats
    row = {
        "tokens_per_second": round(new / ours, 1),
        "step_ms": round(step, 4),
        "host_fraction": round(max(0.0, 1 - step * new / (1e3 * result.decode_seconds)), 4),
    }
    if "theirs" in sides:
        row["ratio_to_transformers"] = round(float(np.median(seconds["theirs"])) / ours, 3)
    return row


def engine(options: DecodeOptions) -> Iterator[dict[str, Any]]:
    """Yield the rows of all sizes, measured in this process."""
    bandwidth = read_bandwidth()
    for size in options.sizes or SIZES:
        config = config_of(size)
        model = jaxspec.decoder(config, jax.random.key(0))
        count = sum(leaf.size for leaf in jax.tree.leaves(model.params))
        floor = 1e3 * weight_bytes(model.params) / bandwidth
        about = {"size": size, "parameters": count, "eigen_threads": options.eigen_threads}
        calls = {tokens: forward(model, tokens) for tokens in TOKENS}
        for tokens, call in calls.items():
            ms = median_ms(call, options.repeats)
            yield {"kind": "forward", **about, "tokens": tokens, "ms": round(ms, 4), "floor_ms": round(floor, 4)}
        del calls
        yield {"kind": "generate", **about, **generate_row(model, options)}


def quality() -> dict[str, Any]:
    """Compare 8-bit weights of the embedded target with the original ones on held-out text."""
    from jaxspec.text.tokenizer import encode
    from jaxspec.training import bits_per_character, hidden_states
    from jaxspec.zoo.recipe import held_out_roles

    pair = zoo.load()
    small = pair.target._replace(params=jaxspec.quantized(pair.target.params))
    tokens = encode(pair.tokenizer, "".join(role.text for role in held_out_roles()[:16]))[:20_000]

    def logits(model: jaxspec.Model) -> np.ndarray:
        x = hidden_states(model.network, model.params, jnp.asarray(tokens[None, :512]))[-1]
        return np.asarray(model.network.logits(model.params, x))[:, 0]

    whole, eight = logits(pair.target), logits(small)
    bits = [bits_per_character(model, tokens, len(tokens)) for model in (pair.target, small)]
    return {
        "kind": "int8",
        "weight_bytes": [weight_bytes(pair.target.params), weight_bytes(small.params)],
        "largest_logit_difference": round(float(np.abs(whole - eight).max()), 4),
        "same_most_likely_token": round(float(np.mean(whole.argmax(0) == eight.argmax(0))), 4),
        "bits_per_character": [round(float(value), 4) for value in bits],
    }


def divergences(new_tokens: int = 64, prompts: int = 16) -> dict[str, Any]:
    """Compare plain and speculative greedy decoding in bfloat16: first difference, and the gap of logits there."""
    from jaxspec.text.tokenizer import encode
    from jaxspec.training import hidden_states
    from jaxspec.zoo.recipe import held_out_roles

    pair = zoo.load()
    short = lambda model: model._replace(params=jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), model.params))  # noqa: E731
    target, draft = short(pair.target), short(pair.draft)
    texts = [encode(pair.tokenizer, role.text)[:48].tolist() for role in held_out_roles()[:prompts]]
    plain = jaxspec.generate(jaxspec.autoregressive(target), texts, new_tokens).tokens
    drafted = jaxspec.generate(jaxspec.speculative(target, draft, 7), texts, new_tokens).tokens
    differences = []
    for prompt, ours, other in zip(texts, plain, drafted, strict=True):
        if ours == other:
            continue
        position = next(i for i, (a, b) in enumerate(zip(ours, other, strict=True)) if a != b)
        text = jnp.asarray([[*prompt, *ours[:position]]])
        logits = target.network.logits(target.params, hidden_states(target.network, target.params, text)[-1])[:, 0, -1]
        second, first = np.sort(np.asarray(logits, np.float32))[-2:]
        differences.append({"place": position, "gap": round(float(first - second), 5)})
    return {"kind": "bfloat16", "sequences": prompts, "tokens": new_tokens, "divergences": differences}


def best_of_both(options: DecodeOptions) -> Iterator[dict[str, Any]]:
    """Measure in two processes, one after the other, and yield the better row of each pair."""
    best: dict[tuple, dict[str, Any]] = {}
    for threads in (True, False):
        for row in _child(options, threads):
            key = row["kind"], row["parameters"], row.get("tokens")
            if key not in best or _better(row, best[key]):
                best[key] = row
    yield from best.values()


def _better(row: dict[str, Any], other: dict[str, Any]) -> bool:
    if row["kind"] == "forward":
        return row["ms"] < other["ms"]
    return row["tokens_per_second"] > other["tokens_per_second"]


def _child(options: DecodeOptions, threads: bool) -> Iterator[dict[str, Any]]:
    flags = f"--xla_cpu_multi_thread_eigen={str(threads).lower()}"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", "cpu")}
    command = [
        sys.executable,
        str(Path(__file__)),
        "--eigen-threads",
        str(threads),
        "--sizes",
        *(options.sizes or SIZES),
    ]
    command += ["--repeats", str(options.repeats), "--new-tokens", str(options.new_tokens)]
    command += [] if options.transformers else ["--no-transformers"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            yield json.loads(line)
    if process.returncode:
        raise SystemExit(f"a measuring process ended with status {process.returncode}; see its message above")


@dataclass(frozen=True)
class Suite:
    """Rows that depend on the options, allowed values of options, and rows that do not depend on the options."""

    rows: Callable[[DecodeOptions], Iterator[dict[str, Any]]]
    names: dict[str, Collection[str]]
    more: tuple[Callable[[], dict[str, Any]], ...] = ()


#: Values of ``--suite``.
SUITES: dict[str, Suite] = {
    "engine": Suite(best_of_both, {"sizes": SIZES}, (quality, divergences)),
    "mirror": Suite(mirror.suite, {"sizes": mirror.TARGETS, "drafts": mirror.DRAFTS}),
    "devices": Suite(devices.suite, {"sizes": mirror.TARGETS, "drafts": mirror.DRAFTS}),
    "drafts": Suite(draft_kinds.suite, {"drafts": draft_kinds.KINDS}),
    "mirror-trees": Suite(mirror_trees.suite, {"drafts": draft_kinds.KINDS}),
    "late-taps": Suite(late_taps.suite, {}),
    "long-caches": Suite(long_caches.suite, {"sizes": SIZES}),
    "gpu": Suite(mirror_gpu.suite, {"sizes": mirror_gpu.TARGETS, "drafts": mirror_gpu.DRAFTS}),
}


def main() -> None:
    """Print one line per row."""
    options = tyro.cli(DecodeOptions, description=__doc__)
    if options.suite not in SUITES:
        raise SystemExit(f"expected --suite {' or '.join(SUITES)}, got {options.suite!r}")
    suite = SUITES[options.suite]
    for name, allowed in suite.names.items():
        if unknown := [value for value in getattr(options, name) if value not in allowed]:
            raise SystemExit(f"expected {name} among {', '.join(allowed)}, got {', '.join(unknown)}")
    batch_scheduling()
    measured = options.eigen_threads is not None
    for row in engine(options) if measured else suite.rows(options):
        print(json.dumps(row), flush=True)
    for make in () if measured else suite.more:
        print(json.dumps(make()), flush=True)


if __name__ == "__main__":
    main()
