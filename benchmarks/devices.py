"""The suite ``devices`` of decode.py: what a second device buys, on grown models, measured and on independent clocks.

Every mesh has one core, without Eigen threads. Programs of all steps are timed alone and replayed with a clock for each
mesh (``jaxspec.analysis.clocks``): ``clock`` "independent" is what devices of this speed would do that share nothing.
"measured" is what these two cores do, which share memory, caches and the host's thread. Models as in mirror.py. The
setting of a method, windows of 3, 5 and 7 and some budgets, is that of its best replay; then all take turns. Hybrid
also is one of its two sides alone, where that replays faster.

``ratio_to_same_placement``: over vanilla speculative decoding with target and draft on a device each ("none").
``ratio_to_all_devices``: over vanilla speculative decoding on both cores ("speculative"), on two devices or by Eigen
threads. ``ratio_to_autoregressive``: over plain decoding on the target's core. Ratios are of the same clock, in tokens
a second without prompts. ``law_ms``: a step by the cost model from the medians of its programs; ``step_ms``: on this
line's clock.
"""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pictures
from matplotlib.figure import Figure
from mirror import COLOURS, KAPPA, WINDOWS, Case, cases, interleaved, prompts_of
from tqdm import tqdm

from jaxspec import zoo
from jaxspec.analysis import cost
from jaxspec.analysis.clocks import replayed
from jaxspec.analysis.cost import StepTiming
from jaxspec.cli._bench_methods import BenchSetting, Measurement, Prompts, Worker, measure_batches, step_timings
from jaxspec.methods import DecodeSpec, candidates
from jaxspec.methods.candidates import Policy

#: Windows that are tried.
TRIED = (3, 5, 7)
#: Methods with a device for each model, and their policies; the first is what the others are compared with.
PLACED: dict[str, tuple[Policy, ...]] = {
    "none": (candidates.none(),),
    "pearl": (candidates.pearl(),),
    "saguaro": tuple(map(candidates.saguaro, (4, 8))),
    "ahead": tuple(map(candidates.ahead, (4, 8))),
    "mirror": tuple(map(candidates.mirror, (2, 4, 8))),
    "hybrid": tuple(candidates.hybrid(*both) for both in ((1, 4), (2, 2), (4, 4))),
}
#: Sides that a hybrid is made of.
SIDES = ("ahead", "mirror")
TITLES = {"independent": "devices that share nothing: replayed", "measured": "two cores of one memory: measured"}


class Tried(NamedTuple):
    """A setting, and tokens a second of its replay."""

    setting: BenchSetting
    tokens_per_second: float


def best_apart(worker: Worker, name: str, case: Case, batches: list[Prompts], new: int) -> Tried:
    """Return a method's best setting on independent clocks."""
    specs = [DecodeSpec(window, policy, KAPPA) for policy in PLACED[name] for window in TRIED]
    tried = [BenchSetting(spec, eigen_threads=False, growth=case.growth) for spec in specs]
    replays = [Tried(one, replayed(worker.run(step_timings, one, batches, new)).tokens_per_second) for one in tried]
    return max(replays, key=lambda one: one.tokens_per_second)


def all_apart(worker: Worker, case: Case, batches: list[Prompts], new: int, show: Any) -> dict[str, BenchSetting]:
    """Return the best setting of every method with a device for each model."""
    found: dict[str, Tried] = {}
    for name in PLACED:
        show(name)
        found[name] = best_apart(worker, name, case, batches, new)
    both = [found[name] for name in ("hybrid", *SIDES)]
    found["hybrid"] = max(both, key=lambda one: one.tokens_per_second)
    return {name: one.setting for name, one in found.items()}


def best_on_all(workers: dict[bool, Worker], case: Case, batches: list[Prompts], new: int) -> BenchSetting:
    """Return vanilla speculative decoding at its best on both cores."""
    both = [BenchSetting(devices=2, eigen_threads=False), BenchSetting(devices=1, eigen_threads=True)]
    tried = [replace(one, spec=DecodeSpec(window), growth=case.growth) for window in WINDOWS for one in both]
    named = {str(one): one for one in tried}
    interleaved(workers, named, batches, new, 1, measure_batches)  # compiles
    runs = interleaved(workers, named, batches, new, 2, measure_batches)
    return max(tried, key=lambda one: max(speed(run) for run in runs[str(one)]))


def speed(run: Measurement) -> float:
    """Return tokens a second, without prompts."""
    return sum(map(len, run.tokens)) / run.decode_seconds


def rows(pair: zoo.Pair, case: Case, batch: int, options: Any, show: Any) -> Iterator[dict[str, Any]]:
    """Yield the lines of one target, one draft and one size of batch."""
    prompts, new = prompts_of(pair, batch * options.prompts), options.new_tokens
    batches = [prompts[start : start + batch] for start in range(0, len(prompts), batch)]
    with Worker("shakespeare", True) as threaded, Worker("shakespeare", False) as single:
        workers = {True: threaded, False: single}
        settings = {"autoregressive": BenchSetting(eigen_threads=False, growth=case.growth)}
        settings |= all_apart(single, case, batches[:1], new, show)
        show("speculative")
        settings["speculative"] = best_on_all(workers, case, batches[:1], new)
        show("all in turns")
        runs = interleaved(workers, settings, batches, new, options.rounds, measure_batches)
        alone = interleaved(workers, settings, batches, new, 1, step_timings)
    found = {name: cost.pooled(timings) for name, timings in alone.items()}
    about = {"target_parameters": case.target_parameters, "draft_parameters": case.draft_parameters}
    times = found["none"].times
    about |= {"draft_over_target": round(7 / settings["none"].spec.window * times.fallback / times.suffix, 3)}
    yield from lines(about | {"batch": batch}, settings, found, runs)


def lines(
    about: dict[str, Any],
    settings: dict[str, BenchSetting],
    found: dict[str, StepTiming],
    runs: dict[str, list[Measurement]],
) -> Iterator[dict[str, Any]]:
    """Yield a line for every clock and method."""
    median = {name: sorted(many, key=speed)[len(many) // 2] for name, many in runs.items()}
    text = median["autoregressive"].tokens
    replays = {name: replayed(timing) for name, timing in found.items()}
    clocks = {
        "measured": {name: (speed(run), run.step_seconds) for name, run in median.items()},
        "independent": {name: (one.tokens_per_second, one.step) for name, one in replays.items()},
    }
    for clock, speeds in clocks.items():
        for name, (tokens, step) in speeds.items():
            run, apart = median[name], name in PLACED
            yield about | {
                "method": name,
                "placement": "two devices" if apart else "all devices" if name == "speculative" else "one device",
                "clock": clock,
                "tokens_per_second": round(tokens, 1),
                "ratio_to_autoregressive": round(tokens / speeds["autoregressive"][0], 3),
                "ratio_to_same_placement": round(tokens / speeds["none"][0], 3),
                "ratio_to_all_devices": round(tokens / speeds["speculative"][0], 3),
                "step_ms": round(1e3 * step, 3),
                "law_ms": round(1e3 * found[name].predicted, 3) if apart else None,
                "accepted_length": round(run.accepted_length, 3),
                "reuse_rate": round(run.reuse_rate, 3),
                "identical": all(each.tokens == text for each in runs[name]),
                "tokens_compared": sum(len(tokens) for each in runs[name] for tokens in each.tokens),
                "settings": str(settings[name]),
            }


def draw(drawn: list[dict[str, Any]], path: Path) -> None:
    """Draw each policy over vanilla SD at the same placement, over the draft's cost beside one target, B = 1."""
    sizes = [line["target_parameters"] for line in drawn]
    swept = [line for line in drawn if line["target_parameters"] == max(sizes, key=sizes.count) and line["batch"] == 1]
    figure = Figure(figsize=(10.5, 4.2), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, clock in zip(panels, ("independent", "measured"), strict=True):
        for name, colour in COLOURS.items():
            own = [line for line in swept if line["clock"] == clock and line["method"] == name and name in PLACED]
            own.sort(key=lambda line: line["draft_over_target"])
            if own:
                costs = [line["draft_over_target"] for line in own]
                axes.plot(
                    costs, [line["ratio_to_same_placement"] for line in own], "o-", ms=4, color=colour, label=name
                )
        axes.axhline(1.0, color="#666666", lw=0.8)
        axes.set(xscale="log", xlabel="T_draft(7) / T_target", title=TITLES[clock])
        axes.set_xticks(ticks := [0.05, 0.1, 0.2, 0.5, 1, 2], [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        pictures.plain(axes)
    panels[0].set_ylabel("× vanilla SD, same placement")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def suite(options: Any) -> Iterator[dict[str, Any]]:
    """Yield all lines: every target with the first draft, one target with all, then the first pair at B = 4 and 8."""
    pair = zoo.load()
    targets, drafts = options.sizes or ("13M", "50M"), options.drafts or ("0.4M", "3.0M", "12M", "27M")
    chosen = cases(pair, targets, drafts)
    work = [(case, 1) for case in chosen] + [(chosen[0], batch) for batch in options.batches]
    done: list[dict[str, Any]] = []
    with tqdm(total=len(work), desc="devices", disable=options.json or not sys.stderr.isatty()) as bar:
        for case, batch in work:
            for line in rows(pair, case, batch, options, bar.set_postfix_str):
                done.append(line)
                yield line
            bar.update()
    draw(done, options.picture)
