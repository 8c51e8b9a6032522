"""The suite ``mirror`` of decode.py: Mirror-SD's policies and other methods on grown models, over the draft's cost.

Models are *grown*: the embedded pair's function at the size and cost of a larger one (``jaxspec.zoo.grow``), so that
the acceptance rate is real and the system is measured at scale; their text is no better than the small pair's. Prompts
are held-out roles. For every method the cost model proposes two settings (windows 1 to 8, budgets, κ) from rough times;
the one that is faster on one prompt is used, with or without Eigen threads, whichever is faster (all policies as
mirror). Then all methods are measured in turns (A B C A B C …); medians are reported.

``draft_over_target`` = T_draft(γ = 7, one branch) / T_target(8 tokens), each alone on its device. ``law_ms``: time of a
step that the cost model predicts from the programs measured one at a time; for speculative decoding T_target + T_draft.
``step_ms`` was measured in turns with the programs, since a machine's speed varies. ``overlap``: the share of
the time that could be hidden and was. Lines with ``peer`` are transformers' assisted generation with the same weights.
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
from jaxspec.analysis._tune import Setting as Tried
from jaxspec.analysis._tune import predict
from jaxspec.analysis.foresight import Foresight, Steps, foresee, foreseen, steps
from jaxspec.analysis.timing import Drafting, Pass, Primitives
from jaxspec.cli._bench_methods import Measurement, Prompts, Setting, Worker, best_of, grown
from jaxspec.methods import candidates
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
    """Sizes of a target and a draft; ``growth`` as in ``Setting``."""

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
    """Replay of the pair's decoding on continuations of the prompts; the same for all grown sizes."""

    foresight: Foresight
    steps: dict[int, Steps]

    @classmethod
    def of(cls, pair: zoo.Pair, prompts: list[list[int]], new: int = 128) -> "PairReplay":
        """Continue the prompts and replay decoding on them."""
        texts = federated.continued(pair.target, np.asarray(prompts, np.int32), new).tokens.tolist()
        lengths = [len(prompt) for prompt in prompts]
        foresight = foresee(pair.target, pair.draft, texts, lengths, (pair.exit_layer,), 2 * KAPPA, pair.exit)
        return cls(foresight, {window: steps(foresight, window) for window in WINDOWS})

    def fallback_rate(self, setting: Setting, exit_layer: int) -> float:
        """Share of the steps that need the fallback."""
        policy = candidates.named(setting.method, setting.budget)
        hits = foreseen(self.foresight, self.steps[setting.window], policy, setting.num_candidates, exit_layer)
        return 1 - float(hits.mean())


def shortlist(
    replay: PairReplay, rough: Primitives, growth: tuple[int, int, int, int], streams: int
) -> dict[str, list[Setting]]:
    """Return the two settings of every method that are fastest by the cost model, from rough times."""
    layer = rough.exit_layer // growth[1]
    every = {"sd": [Setting("speculative", window=window, growth=growth) for window in WINDOWS]}
    for name, budgets in (
        ("mirror", (2, 4, 8, 16)),
        ("pearl", (1,)),
        ("saguaro", (2, 4, 8)),
        ("ahead", (2, 4, 8)),
        ("hybrid", (1, 2, 4, 8)),
    ):
        tried = [(window, budget) for window in WINDOWS[1:] for budget in budgets]
        every[name] = [Setting(name, 1, True, *each, KAPPA, growth=growth) for each in tried]

    def speed(setting: Setting) -> float:
        length, vanilla = replay.steps[setting.window].accepted_length, setting.method == "speculative"
        policy = None if vanilla else candidates.named(setting.method, setting.budget)
        rate = 1.0 if vanilla else replay.fallback_rate(setting, layer)
        tried = Tried(setting.method, setting.window, policy, setting.num_candidates, rough.exit_layer)
        return predict(rough, tried, length, rate).tokens_per_second

    best = {name: sorted(settings, key=speed, reverse=True)[:2] for name, settings in every.items()}
    if streams:
        best["mirror+streaming"] = [replace(best["mirror"][0], streams=count) for count in range(1, streams + 1)]
    return {"autoregressive": [Setting("autoregressive", growth=growth)], **best}


def roughly(worker: Worker, case: Case, pair: zoo.Pair, prompts: Prompts, new: int) -> tuple[Primitives, float]:
    """Time two steps, with and without branches, and extrapolate to all windows; return also T_draft / T_target."""
    without = program_times(worker, Setting("none", window=WINDOW, growth=case.growth), prompts, new)
    with_8 = program_times(
        worker, Setting("mirror", window=WINDOW, budget=8, num_candidates=4, growth=case.growth), prompts, new
    )
    vanilla = Setting("autoregressive", growth=case.growth)
    worker.measure(vanilla, prompts[:1], new)  # compiles
    plain = worker.measure(vanilla, prompts[:1], new).step_seconds
    longer = (without["suffix"] - plain) / WINDOW
    passes = {}
    for window in WINDOWS:
        whole = plain + window * longer
        share = whole / without["suffix"]
        passes[window] = Pass(whole, share * with_8["prefix"], share * with_8["suffix"], 0.0)
    one, eight = without["fallback"] / WINDOW, with_8["rollout"] / WINDOW
    drafting, layers = Drafting(0.0, {1: one, 8: max(one, eight), 64: max(one, eight) * 6}), pair.target.network.config
    rough = Primitives(
        plain,
        passes,
        pair.exit_layer * case.growth[1],
        layers.num_layers * case.growth[1],
        drafting._replace(selects={1: with_8["select"], 8: with_8["select"]}),
        drafting,
        without["rendezvous"],
        min(1.0, max(0.0, with_8["overlap"] or 0.0)),
    )
    return rough, without["fallback"] / without["suffix"]


def rows(pair: zoo.Pair, replay: PairReplay, case: Case, options: Any, show: Any) -> Iterator[dict[str, Any]]:
    """Lines of one target and draft."""
    prompts, new = prompts_of(pair, options.prompts + 1), options.new_tokens
    with Worker("shakespeare", True) as threaded, Worker("shakespeare", False) as single:
        workers = {True: threaded, False: single}
        show("programs one by one")
        rough, ratio = roughly(threaded, case, pair, prompts, new)
        best: dict[str, Setting] = {}
        for name, tried in shortlist(replay, rough, case.growth, _streams(pair)).items():
            show(name)
            best[name] = _best(workers, tried, prompts[:1], new, best.get("mirror"))
        show("all in turns")
        runs = _interleaved(workers, best, prompts[1:], new, options.rounds)
        for name, many in runs.items():
            about = {"method": name, **_sizes(case), "draft_over_target": round(ratio, 3)}
            line = about | _summary(many, runs["autoregressive"]) | {"settings": str(best[name])}
            yield line | _predicted(best[name], workers, prompts[1:], new)
        if options.transformers and case.target_parameters <= PEER_PARAMETERS:
            show("transformers")
            yield from peer(pair, case, ratio, workers, best["mirror"], prompts[1:], new)


def _streams(pair: zoo.Pair) -> int:
    return 0 if pair.streaming is None else pair.streaming.network.streams.count  # type: ignore[union-attr]


def _summary(many: list[Measurement], plain: list[Measurement]) -> dict[str, Any]:
    """Figures of a method's runs, compared with those of plain decoding."""
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


def _predicted(setting: Setting, workers: dict[bool, Worker], prompts: Prompts, new: int) -> dict[str, Any]:
    """Measured time of a step, and the cost model's from programs that were timed one at a time."""
    if setting.method == "autoregressive":
        return {}
    worker = workers[setting.eigen_threads]
    if setting.method == "speculative":
        # The same two programs on two meshes, timed between two runs of the method.
        step = worker.measure(setting, prompts[:1], new).step_seconds
        parts = program_times(worker, replace(setting, method="none"), prompts, new)
        step = (step + worker.measure(setting, prompts[:1], new).step_seconds) / 2
        return {"step_ms": round(1e3 * step, 3), "law_ms": round(1e3 * (parts["suffix"] + parts["fallback"]), 3)}
    parts = program_times(worker, setting, prompts, new)
    hidden = parts["overlap"]
    times = {f"{name}_ms": round(1e3 * parts[name], 3) for name in ("step", "law")}
    return times | {"overlap": None if hidden is None else round(hidden, 3)}


def program_times(worker: Worker, setting: Setting, prompts: Prompts, new: int) -> dict[str, float]:
    """Seconds of a step's programs one at a time, of the step, and of the step by the cost model."""
    worker.send("law", [setting], prompts[:1], new)
    return worker.receive()


def _best(
    workers: dict[bool, Worker], tried: list[Setting], prompts: Prompts, new: int, like: Setting | None = None
) -> Setting:
    """Return the fastest setting, with or without Eigen threads; with `like`, threads are as there."""
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


def _warm(workers: dict[bool, Worker], tried: Sequence[Setting], prompts: Prompts, new: int) -> None:
    """Compile in both processes in parallel."""
    for threads, worker in workers.items():
        if own := [setting for setting in tried if setting.eigen_threads == threads]:
            worker.send("warm", own, prompts[:1], new)
    for setting in tried:
        workers[setting.eigen_threads].receive()


def _interleaved(
    workers: dict[bool, Worker], best: dict[str, Setting], prompts: Prompts, new: int, rounds: int
) -> dict[str, list[Measurement]]:
    runs: dict[str, list[Measurement]] = {name: [] for name in best}
    for _ in range(rounds):
        for name, setting in best.items():
            runs[name].append(workers[setting.eigen_threads].measure(setting, prompts, new))
    return runs


def peer(
    pair: zoo.Pair,
    case: Case,
    ratio: float,
    workers: dict[bool, Worker],
    setting: Setting,
    prompts: Prompts,
    new: int,
) -> Iterator[dict[str, Any]]:
    """Time transformers' assisted generation on the same weights, in turns with ours, at its best window."""
    assisted = _assisted(grown(pair, case.growth), new)
    assisted(3, prompts[0])
    trial = {count: seconds_of(lambda count=count: assisted(count, prompts[0])) for count in (3, 5, 7, 10)}
    count, theirs, ours = min(trial, key=lambda count: trial[count]), [], []
    for _ in range(3):
        ours.append(workers[setting.eigen_threads].measure(setting, prompts, new).seconds)
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
    """Draw speed-up over plain decoding, and measured and predicted time of a step, over the draft's cost."""
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
    chosen, replay = cases(pair, targets, drafts), PairReplay.of(pair, prompts_of(pair, 16))
    with tqdm(total=len(chosen), desc="mirror", disable=options.json or not sys.stderr.isatty()) as bar:
        for case in chosen:
            for line in rows(pair, replay, case, options, bar.set_postfix_str):
                lines.append(line)
                yield line
            bar.update()
    draw(lines, options.picture)
