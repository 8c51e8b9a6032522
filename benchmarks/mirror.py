"""The suite ``mirror`` of decode.py: Mirror-SD's policies and other methods on grown models, over the draft's cost.

Models are *grown*: the embedded pair's function at the size and cost of a larger one (``jaxspec.zoo._grow``), so that
the acceptance rate is real and the system is measured at scale; they are no better than the small pair. Prompts are
held-out roles. Of every method the cost model proposes two settings (windows 1 to 8, budgets, κ), from programs timed
roughly; the better one on one prompt is taken, with or without Eigen threads, whichever is faster (all policies as
mirror). Then all methods are measured in turns (A B C A B C …); medians.

``draft_over_target`` = T_draft(γ = 7, one branch) / T_target(8 tokens), each alone on its device. ``law_ms``: the cost
model's prediction from the programs measured one at a time; for speculative decoding T_target + T_draft. ``step_ms``
was measured in turns with them, because a machine's speed varies. ``overlap``: the share of ``hidden`` time that really
overlaps. Lines with ``peer`` are transformers' assisted generation with the same exported weights.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pictures
from machine import read_bandwidth, seconds_of
from matplotlib.figure import Figure
from peers import transformers_model
from tqdm import tqdm

from jaxspec import federated, zoo
from jaxspec.analysis import replay
from jaxspec.analysis._predict import predict
from jaxspec.analysis.cost import StepTiming
from jaxspec.analysis.timing import DraftTimes, Primitives, TargetPass
from jaxspec.cli._bench_methods import (
    BenchSetting,
    Command,
    Measurement,
    Prompts,
    Worker,
    best_of,
    grown,
    measure,
    step_timing,
    warm,
)
from jaxspec.cli._methods import policy_named
from jaxspec.drafts import num_streams
from jaxspec.methods import DecodeSpec
from jaxspec.models._decoder import init_params
from jaxspec.text.tokenizer import encode
from jaxspec.zoo import grown_config
from jaxspec.zoo.recipe import held_out_roles

PROMPT_TOKENS, WINDOW = 48, 7
WINDOWS, KAPPA = range(1, 9), 4
#: Factors of width and depth, by the resulting size.
TARGETS = {"13M": (1, 2), "50M": (2, 2), "101M": (4, 1)}
DRAFTS = {"0.4M": (1, 1), "3.0M": (2, 2), "6.7M": (3, 2), "12M": (4, 2), "27M": (6, 2)}
COLOURS = {
    "sd": "#000000",
    "pearl": "#999999",
    "saguaro": "#56b4e9",
    "ahead": "#0072b2",
    "mirror": "#e69f00",
    "mirror+streaming": "#cc79a7",
    "hybrid": "#009e73",
}
#: With this target all drafts are measured; T_draft / T_target is between 0.05 and 2.
SWEPT = "50M"
#: Targets up to this size are compared with transformers.
PEER_PARAMETERS = 30_000_000


class Case(NamedTuple):
    """A target and a draft; growth as in ``BenchSetting``."""

    growth: tuple[int, int, int, int]
    target_parameters: int
    draft_parameters: int


def cases(pair: zoo.Pair, targets: Sequence[str], drafts: Sequence[str]) -> list[Case]:
    """Return every target with the first draft, and one target with all drafts."""
    swept = SWEPT if SWEPT in targets else targets[-1]
    chosen = {(*TARGETS[name], *DRAFTS[drafts[0]]) for name in targets}
    chosen |= {(*TARGETS[swept], *DRAFTS[name]) for name in drafts}
    return sorted((_case(pair, growth) for growth in chosen), key=lambda case: case[1:])


def _case(pair: zoo.Pair, growth: tuple[int, int, int, int]) -> Case:
    sizes = []
    for model, width, depth in ((pair.target, *growth[:2]), (pair.draft, *growth[2:])):
        config = grown_config(model.network.config, width, depth)
        shapes = jax.eval_shape(lambda config=config: init_params(config, jax.random.key(0)))
        sizes.append(sum(leaf.size for leaf in jax.tree.leaves(shapes)))
    return Case(growth, *sizes)


def prompts_of(pair: zoo.Pair, count: int) -> list[list[int]]:
    """Return the beginnings of held-out roles."""
    return [encode(pair.tokenizer, role.text)[:PROMPT_TOKENS].tolist() for role in held_out_roles()[:count]]


class PairReplay(NamedTuple):
    """The pair along the prompts' own continuations, the same for any growth."""

    recording: replay.Recording
    steps: dict[int, replay.RecordedSteps]

    @classmethod
    def of(cls, pair: zoo.Pair, prompts: list[list[int]], new: int = 128) -> "PairReplay":
        """Continue the prompts and read them once."""
        texts = federated.continued(pair.target, np.asarray(prompts, np.int32), new).tokens.tolist()
        lengths = [len(prompt) for prompt in prompts]
        recording = replay.record(pair.target, pair.draft, texts, lengths, (pair.exit_layer,), 2 * KAPPA, pair.exit)
        return cls(recording, {window: replay.steps(recording, window) for window in WINDOWS})

    def fallback_rate(self, spec: DecodeSpec, exit_layer: int) -> float:
        """Return the FF of a policy; 1 without one."""
        if spec.policy is None:
            return 1.0
        hits = replay.hits(self.recording, self.steps[spec.window], spec.policy, spec.num_candidates, exit_layer)
        return 1 - float(hits.mean())


def shortlist(
    recorded: PairReplay, rough: Primitives, growth: tuple[int, int, int, int], streams: int
) -> dict[str, list[BenchSetting]]:
    """Return the two fastest settings of every method by the cost model, from roughly measured times."""
    layer = rough.exit_layer // growth[1]
    every = {"sd": [DecodeSpec(window) for window in WINDOWS]}
    for name, budgets in (
        ("mirror", (2, 4, 8, 16)),
        ("pearl", (1,)),
        ("saguaro", (2, 4, 8)),
        ("ahead", (2, 4, 8)),
        ("hybrid", (1, 2, 4, 8)),
    ):
        every[name] = [
            DecodeSpec(window, policy_named(name, budget), KAPPA) for window in WINDOWS[1:] for budget in budgets
        ]

    def speed(spec: DecodeSpec) -> float:
        length, rate = recorded.steps[spec.window].accepted_length, recorded.fallback_rate(spec, layer)
        return predict(rough, spec, length, rate).tokens_per_second

    best = {
        name: [BenchSetting(spec, growth=growth) for spec in sorted(specs, key=speed, reverse=True)[:2]]
        for name, specs in every.items()
    }
    if streams:
        best["mirror+streaming"] = [replace(best["mirror"][0], streams=count) for count in range(1, streams + 1)]
    return {"autoregressive": [BenchSetting(growth=growth)], **best}


def roughly(worker: Worker, case: Case, pair: zoo.Pair, prompts: Prompts, new: int) -> tuple[Primitives, float]:
    """Return times of two steps, with and without branches, extrapolated to all windows; and T_draft / T_target."""
    no_branches, branches = (
        DecodeSpec(WINDOW, policy_named("none", 0)),
        DecodeSpec(WINDOW, policy_named("mirror", 8), 4),
    )
    without, with_8 = (
        timing(worker, BenchSetting(spec, growth=case.growth), prompts, new) for spec in (no_branches, branches)
    )
    plainly, times, more = BenchSetting(growth=case.growth), without.times, with_8.times
    worker.run(measure, plainly, prompts[:1], new)  # compiles
    plain = worker.run(measure, plainly, prompts[:1], new).step_seconds
    longer = (times.suffix - plain) / WINDOW
    passes = {}
    for window in WINDOWS:
        whole = plain + window * longer
        share = whole / times.suffix
        passes[window] = TargetPass(whole, share * more.prefix, share * more.suffix, 0.0)
    one, eight = times.fallback / WINDOW, more.rollout / WINDOW
    drafting, layers = (
        DraftTimes(0.0, {1: one, 8: max(one, eight), 64: max(one, eight) * 6}),
        pair.target.network.config,
    )
    rough = Primitives(
        plain,
        passes,
        pair.exit_layer * case.growth[1],
        layers.num_layers * case.growth[1],
        drafting._replace(selects={1: more.select, 8: more.select}),
        drafting,
        times.rendezvous,
        min(1.0, max(0.0, with_8.overlap or 0.0)),
    )
    return rough, times.fallback / times.suffix


def rows(pair: zoo.Pair, recorded: PairReplay, case: Case, options: Any, show: Any) -> Iterator[dict[str, Any]]:
    """Lines of one target and draft."""
    prompts, new = prompts_of(pair, options.prompts + 1), options.new_tokens
    with Worker("shakespeare", True) as threaded, Worker("shakespeare", False) as single:
        workers = {True: threaded, False: single}
        show("programs one by one")
        rough, ratio = roughly(threaded, case, pair, prompts, new)
        best: dict[str, BenchSetting] = {}
        for name, tried in shortlist(recorded, rough, case.growth, _streams(pair)).items():
            show(name)
            best[name] = _best(workers, tried, prompts[:1], new, best.get("mirror"))
        show("all in turns")
        runs = interleaved(workers, best, prompts[1:], new, options.rounds)
        for name, many in runs.items():
            about = {"method": name, **_sizes(case), "draft_over_target": round(ratio, 3)}
            line = about | _results(many, runs["autoregressive"]) | {"settings": str(best[name])}
            yield line | _predicted(best[name], workers, prompts[1:], new)
        if options.transformers and case.target_parameters <= PEER_PARAMETERS:
            show("transformers")
            yield from peer(pair, case, ratio, workers, best["mirror"], prompts[1:], new)


def _streams(pair: zoo.Pair) -> int:
    return 0 if pair.streaming is None else num_streams(pair.streaming.network)


def _results(many: list[Measurement], plain: list[Measurement]) -> dict[str, Any]:
    """Return the median run of a method, and its ratio to plain decoding."""
    own = sorted(many, key=lambda run: run.seconds)[len(many) // 2]
    plain_seconds = float(np.median([run.seconds for run in plain]))
    return {
        "ratio_to_autoregressive": round(plain_seconds / own.seconds, 3),
        "tokens_per_second": round(own.tokens_per_second, 1),
        "step_ms": round(1e3 * own.step_seconds, 3),
        "law_ms": None,
        "accepted_length": round(own.accepted_length, 3),
        "reuse_rate": round(own.reuse_rate, 3),
        "identical": all(run.tokens == plain[0].tokens for run in many),
        "tokens_compared": sum(len(tokens) for run in many for tokens in run.tokens),
    }


def _predicted(setting: BenchSetting, workers: dict[bool, Worker], prompts: Prompts, new: int) -> dict[str, Any]:
    """Return the time of a step, measured and by the cost model from programs that were timed one at a time."""
    if not setting.spec.window:
        return {}
    worker = workers[setting.eigen_threads]
    if setting.spec.policy is None:
        # The same two programs on two meshes, between two runs of the method itself.
        step = worker.run(measure, setting, prompts[:1], new).step_seconds
        two_meshes = replace(setting, spec=replace(setting.spec, policy=policy_named("none", 0)))
        times = timing(worker, two_meshes, prompts, new).times
        step = (step + worker.run(measure, setting, prompts[:1], new).step_seconds) / 2
        return {"step_ms": round(1e3 * step, 3), "law_ms": round(1e3 * (times.suffix + times.fallback), 3)}
    timed = timing(worker, setting, prompts, new)
    overlap = None if timed.overlap is None else round(timed.overlap, 3)
    return {"step_ms": round(1e3 * timed.step, 3), "law_ms": round(1e3 * timed.predicted, 3), "overlap": overlap}


def timing(worker: Worker, setting: BenchSetting, prompts: Prompts, new: int) -> StepTiming:
    """Time the programs of a step one at a time, and the step in normal operation."""
    return worker.run(step_timing, setting, prompts[:1], new)


def _best(
    workers: dict[bool, Worker],
    tried: list[BenchSetting],
    prompts: Prompts,
    new: int,
    like: BenchSetting | None = None,
) -> BenchSetting:
    """Return the fastest setting with Eigen threads, then with or without; with `like`, as that setting."""
    if like is not None:
        tried = [replace(setting, eigen_threads=like.eigen_threads) for setting in tried]
    best = tried[0]
    if len(tried) > 1:
        _warm(workers, tried, prompts, new)
        best = best_of(workers, tried, prompts, new)
    if like is not None:
        return best
    both = [best, replace(best, eigen_threads=False)]
    _warm(workers, both, prompts, new)
    return best_of(workers, both, prompts, new)


def _warm(workers: dict[bool, Worker], tried: Sequence[BenchSetting], prompts: Prompts, new: int) -> None:
    """Compiles, in both processes side by side."""
    for threads, worker in workers.items():
        if own := [setting for setting in tried if setting.eigen_threads == threads]:
            worker.send(warm, own, prompts[:1], new)
    for setting in tried:
        workers[setting.eigen_threads].receive()


def interleaved(
    workers: dict[bool, Worker],
    best: dict[str, BenchSetting],
    prompts: Sequence[Any],
    new: int,
    rounds: int,
    command: Command = measure,
) -> dict[str, list[Any]]:
    """Run a command for all methods in turns."""
    runs: dict[str, list[Any]] = {name: [] for name in best}
    for _ in range(rounds):
        for name, setting in best.items():
            runs[name].append(workers[setting.eigen_threads].run(command, setting, prompts, new))
    return runs


def peer(
    pair: zoo.Pair,
    case: Case,
    ratio: float,
    workers: dict[bool, Worker],
    setting: BenchSetting,
    prompts: Prompts,
    new: int,
) -> Iterator[dict[str, Any]]:
    """Time transformers' assisted generation on the same weights, in turns with ours, at its best window."""
    assisted = _assisted(grown(pair, case.growth), new)
    assisted(3, prompts[0])
    trial = {count: seconds_of(lambda count=count: assisted(count, prompts[0])) for count in (3, 5, 7, 10)}
    count, theirs, ours = min(trial, key=lambda count: trial[count]), [], []
    for _ in range(3):
        ours.append(workers[setting.eigen_threads].run(measure, setting, prompts, new).seconds)
        theirs.append(sum(seconds_of(lambda prompt=prompt: assisted(count, prompt)) for prompt in prompts))
    yield {
        "peer": "transformers assisted generation",
        **_sizes(case),
        "draft_over_target": round(ratio, 3),
        "tokens_per_second": round(len(prompts) * new / float(np.median(theirs)), 1),
        "ratio_of_mirror": round(float(np.median(theirs) / np.median(ours)), 3),
        "settings": f"{count} tokens",
    }


def _assisted(pair: zoo.Pair, new: int) -> Callable[[int, Sequence[int]], Any]:
    import torch

    target, draft = transformers_model(pair.target), transformers_model(pair.draft)

    def run(count: int, prompt: Sequence[int]) -> Any:
        draft.generation_config.num_assistant_tokens = count
        draft.generation_config.num_assistant_tokens_schedule = "constant"
        ids, limits = torch.tensor([list(prompt)]), {"max_new_tokens": new, "min_new_tokens": new}
        with torch.inference_mode():
            return target.generate(
                ids, attention_mask=torch.ones_like(ids), assistant_model=draft, do_sample=False, **limits
            )

    return run


def _sizes(case: Case) -> dict[str, int]:
    return {"target_parameters": case.target_parameters, "draft_parameters": case.draft_parameters}


def draw(lines: list[dict[str, Any]], path: Path) -> None:
    """Over the draft's cost beside one target: speed over plain decoding, and a step against the cost model."""
    sizes = [line["target_parameters"] for line in lines]
    swept = [line for line in lines if "method" in line and line["target_parameters"] == max(sizes, key=sizes.count)]
    figure = Figure(figsize=(10.5, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, colour in COLOURS.items():
        own = sorted((line for line in swept if line["method"] == name), key=lambda line: line["draft_over_target"])
        if not own:
            continue
        costs = [line["draft_over_target"] for line in own]
        left.plot(costs, [line["ratio_to_autoregressive"] for line in own], "o-", ms=4, color=colour, label=name)
        if name in ("sd", "ahead", "mirror", "hybrid"):
            right.plot(costs, [line["step_ms"] for line in own], "o-", ms=4, color=colour)
            right.plot(costs, [line["law_ms"] for line in own], "--", lw=1, color=colour)
    left.set(ylabel="× plain decoding", title=f"target of {max(sizes, key=sizes.count) / 1e6:.0f} M parameters, grown")
    right.set(ylabel="milliseconds", title="a step: measured, and by the cost model (dashed)", ylim=(0, None))
    for axes in (left, right):
        axes.set(xscale="log", xlabel="T_draft(7) / T_target")
        axes.set_xticks(ticks := [t for t in (0.05, 0.1, 0.2, 0.5, 1, 2)], [f"{t:g}" for t in ticks])
        axes.minorticks_off()
        pictures.plain(axes)
    figure.legend(loc="outside lower center", ncols=len(COLOURS), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def suite(options: Any) -> Iterator[dict[str, Any]]:
    """Yield the memory bandwidth and all lines; then draw the picture."""
    yield {"kind": "memory", "read_gb_s": {count: round(read_bandwidth(threads=count) / 1e9, 1) for count in (1, 2)}}
    pair, lines = zoo.load(), []
    targets, drafts = options.sizes or tuple(TARGETS), options.drafts or tuple(DRAFTS)
    chosen, recorded = cases(pair, targets, drafts), PairReplay.of(pair, prompts_of(pair, 16))
    with tqdm(total=len(chosen), desc="mirror", disable=options.json or not sys.stderr.isatty()) as bar:
        for case in chosen:
            for line in rows(pair, recorded, case, options, bar.set_postfix_str):
                lines.append(line)
                yield line
            bar.update()
    draw(lines, options.picture)
