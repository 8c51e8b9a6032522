"""How much does a draft gain by federated training? Every method on Shakespeare roles held out from the embedded pair.

    python benchmarks/drafts.py [--json] [--out out/drafts] [--methods fedspeed fedavg] [--page] ...

110 roles train (11 per round), 20 choose learning rates and the best centralised step, 30 are clients that never take
part. Measured after some of the rounds: accepted tokens per step on text of these 30 (``held_out``) and on the training
roles' unseen text (``unseen``). Every method runs the grid of learning rates with the first seed; the best rate on the
validation roles then runs with the other seeds. Variants of FedSpeed use FedSpeed's rate. Each line is a finished
run; it is kept in ``OUT/runs.jsonl`` and not run again with the same settings. The last lines measure decoding with the
drafts, and compare the gain with the aim. ``--page`` runs nothing; it writes the picture and tables of
docs/federated_drafts.md from the recorded lines.

On an accelerator, train with many runs in parallel, then decode on the machine whose speed matters:

    JAX_PLATFORMS=cuda,cpu XLA_PYTHON_CLIENT_PREALLOCATE=false python benchmarks/drafts.py --workers 16 --no-decode
    python benchmarks/drafts.py
"""

import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Any

import drafts_page
import jax
import numpy as np
import tyro
from ledger import Ledger, Row
from tqdm import tqdm

import jaxspec
from jaxfed import checkpoint
from jaxspec import federated, zoo
from jaxspec.federated import (
    METHODS,
    UNSEEN,
    VALIDATION,
    Distilling,
    FederatedSetup,
    Federation,
    FedSpeedSettings,
    TextProblem,
)
from jaxspec.zoo.recipe import held_out_roles

#: Methods whose drafts decode at the end.
DECODED = ("fedspeed", "fedavg", "centralised")
#: Factor of the population that the row ``LARGER`` represents: its mean has the noise of a population so much larger,
#: with the same sampling probability.
TIMES = 100
LARGER = federated.private(f"fedspeed-dp, {TIMES}x", max_norm=0.5, noise_multiplier=1.0 / TIMES)
ROWS = METHODS | {LARGER.name: LARGER}
#: First methods of the table; the variants of FedSpeed follow.
ORDER = ("fedspeed", "fedavg", "centralised", "scaffold", "feddyn", "local-only")


@dataclass(frozen=True)
class Scope:
    """Roles, methods and hyperparameters.

    Attributes:
        clients: roles that train; always drawn by seed 0.
        validation: roles that choose the learning rate.
        held_out: roles used for evaluation only.
        seeds: of cohorts and batches.
        methods: rows of ``jaxspec.federated.METHODS``, and ``LARGER``.
        federation: rounds, cohort, steps and the learning-rate grid, the same for all.
        distilling: how the target labels the text.
    """

    clients: int = 110
    validation: int = 20
    held_out: int = 30
    seeds: tuple[int, ...] = (0, 1, 2)
    methods: tuple[str, ...] = tuple(sorted(ROWS, key=lambda name: (*ORDER, name).index(name)))
    federation: Federation = Federation(
        rounds=42,
        cohort_size=11,
        local_steps=32,
        batch_size=2,
        learning_rates=(0.125, 0.25, 0.5, 1.0),
        learning_rate_decay=0.97,
        fedspeed=FedSpeedSettings(prox_weight=0.1, ascent_radius=0.05, merge_weight=1.0),
        evaluate_every=3,
    )
    distilling: Distilling = Distilling(test_prompts=8, new_tokens=48)


@dataclass(frozen=True)
class DecodingRuns:
    """How decoding is measured: greedily, one prompt at a time, drafts in turns.

    Attributes:
        prompts: of each evaluation set.
        new_tokens: per prompt.
        runs: timed runs; medians are reported.
    """

    prompts: int = 12
    new_tokens: int = 64
    runs: int = 5


@dataclass(frozen=True)
class Options:
    """Output and execution.

    Attributes:
        out: folder of finished lines, the target's continuations and drafts.
        workers: parallel runs, each in its own process if there are several.
        decode: measure tokens per second with the drafts.
        page: only write the page from recorded lines.
        docs: folder of the page.
        json: print JSON lines only.
    """

    out: Path = Path("out/drafts")
    workers: int = 1
    decode: bool = True
    page: bool = False
    docs: Path = Path(__file__).parents[1] / "docs"
    json: bool = False


@dataclass
class Bench:
    """Settings, models and data of all runs."""

    scope: Scope
    options: Options
    pair: zoo.Pair = field(default_factory=zoo.load)

    @cached_property
    def problem(self) -> TextProblem:
        """Texts of all roles, labelled by the target; cached on disk."""
        s, roles = self.scope, held_out_roles()
        order = np.random.default_rng(0).permutation(len(roles))
        texts = [roles[index].text for index in order]
        cuts = np.cumsum([s.clients, s.validation, s.held_out]).tolist()
        evaluation = {VALIDATION: texts[cuts[0] : cuts[1]], "held_out": texts[cuts[1] : cuts[2]]}
        return federated.gather(
            self.pair.target,
            self.pair.tokenizer,
            texts[: cuts[0]],
            evaluation,
            s.distilling,
            self.options.out,
            not self.options.json,
        )

    def line(self, name: str, seed: int, rate: float) -> Row:
        """Train one method at one learning rate, and return its line."""
        began, settings = time.perf_counter(), replace(self.scope.federation, seed=seed)
        setup = FederatedSetup(self.pair.draft, self.problem, settings, self.scope.distilling.window, None, False)
        outcome = federated.run(setup, ROWS[name], rate)
        seconds = round(time.perf_counter() - began, 1)
        if name in DECODED:
            where = self.draft(name, seed, rate)
            checkpoint.save(where, 1 + (checkpoint.latest(where) or 0), {"params": outcome.params}, keep=1)
        curves = {name: [round(value, 4) for value in curve] for name, curve in outcome.curves.items()}
        guarantee = self.guarantee(name, settings)
        facts = {"samples": outcome.samples, "message_bytes": outcome.message_bytes, "seconds": seconds}
        about = {"method": name, "seed": seed, "learning_rate": rate, "rounds": outcome.rounds}
        weights = asdict(settings.fedspeed) if name.startswith(("fedspeed", "feddyn")) else None
        return {**about, **curves, **facts, "privacy": guarantee and asdict(guarantee), "weights": weights}

    def guarantee(self, name: str, settings: Federation) -> Any:
        """(ε, δ) of a private method; of ``LARGER`` for the population that it represents."""
        if name != LARGER.name:
            return ROWS[name].guarantee(settings, self.scope.clients)
        noisy = replace(LARGER, noise_multiplier=1.0)
        return noisy.guarantee(replace(settings, cohort_size=TIMES * settings.cohort_size), TIMES * self.scope.clients)

    def draft(self, name: str, seed: int, rate: float) -> Path:
        """Folder of a draft's checkpoint."""
        return self.options.out / "drafts" / f"{name}-{seed}-{rate}"


#: (method, seed, learning rate)
Run = tuple[str, int, float]


def runs(bench: Bench, ledger: Ledger, pool: Executor | None) -> Iterator[Row]:
    """Run the grid with the first seed, then FedSpeed's variants, then the chosen rates with the other seeds."""
    names, rates = bench.scope.methods, bench.scope.federation.learning_rates
    first, *others = bench.scope.seeds
    variants = [name for name in names if name.startswith("fedspeed-") and "fedspeed" in names]
    grid = [(name, first, rate) for name in names if name not in variants for rate in rates]
    yield from _finished(bench, ledger, grid, pool)
    chosen = {name: drafts_page.chosen_rate(ledger.rows, "fedspeed" if name in variants else name) for name in names}
    rest = [(name, first, chosen[name]) for name in variants]
    rest += [(name, seed, chosen[name]) for name in names for seed in others]
    yield from _finished(bench, ledger, rest, pool)


def _finished(bench: Bench, ledger: Ledger, wanted: list[Run], pool: Executor | None) -> Iterator[Row]:
    """Yield recorded lines, then new ones as they finish."""
    recorded = {run: ledger.find(**dict(zip(("method", "seed", "learning_rate"), run, strict=True))) for run in wanted}
    yield from (row for row in recorded.values() if row is not None)
    missing = [run for run, row in recorded.items() if row is None]
    for row in tqdm(_made(bench, missing, pool), "runs", len(missing), disable=bench.options.json):
        yield ledger.add(row)


def _made(bench: Bench, missing: list[Run], pool: Executor | None) -> Iterator[Row]:
    """Run in this process one after the other, or in the pool's processes."""
    if pool is None:
        yield from (bench.line(*run) for run in missing)
    else:
        pending = [pool.submit(_line, bench.scope, bench.options, run) for run in missing]
        yield from (each.result() for each in as_completed(pending))


#: One per process of the pool.
_bench = cache(Bench)


def _line(scope: Scope, options: Options, run: Run) -> Row:
    return _bench(scope, options).line(*run)


def decoded(bench: Bench, ledger: Ledger) -> Iterator[Row]:
    """Measure tokens per second with each draft, in turns; a recorded line with the same drafts is used again."""
    pair, seed, sizes = bench.pair, bench.scope.seeds[0], bench.scope.distilling
    window, like = sizes.window, {"params": pair.draft.params}
    methods = {"plain": jaxspec.autoregressive(pair.target)}
    methods["before"] = jaxspec.speculative(pair.target, pair.draft, window)
    rates = {
        method: drafts_page.chosen_rate(ledger.rows, method) for method in DECODED if method in bench.scope.methods
    }
    for method, rate in rates.items():
        params = checkpoint.load(bench.draft(method, seed, rate), like=like)["params"]
        methods[method] = jaxspec.speculative(pair.target, pair.draft._replace(params=params), window)
    for name in ("held_out", UNSEEN):
        if recorded := ledger.find(decoded=name, drafts=rates):
            yield recorded
            continue
        rows = bench.problem.evaluation[name].tokens
        chosen = np.linspace(0, len(rows) - 1, min(DECODING.prompts, len(rows))).astype(int)
        prompts = rows[chosen, : sizes.prompt_tokens].tolist()
        weights = asdict(bench.scope.federation.fedspeed)
        measured = _measured(methods, prompts, not bench.options.json)
        yield ledger.add({"decoded": name, "drafts": rates, "weights": weights, **measured})


DECODING = DecodingRuns()


def _measured(methods: dict[str, Any], prompts: list[list[int]], progress: bool) -> Row:
    """Tokens per second (medians over runs), accepted length, and whether all tokens are equal."""
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    accepted, tokens = {}, {}
    for turn in tqdm(range(1 + DECODING.runs), "decode", disable=not progress):
        for name, method in methods.items():
            began = time.perf_counter()
            outputs = [jaxspec.generate(method, [prompt], DECODING.new_tokens) for prompt in prompts]
            if turn:  # the first compiles
                seconds[name].append(time.perf_counter() - began)
            tokens[name] = [each.tokens for each in outputs]
            accepted[name] = round(float(np.mean([each.stats.accepted_length for each in outputs])), 3)
    count = len(prompts) * DECODING.new_tokens
    speed = {name: round(count / statistics.median(times), 1) for name, times in seconds.items()}
    identical = all(each == tokens["plain"] for each in tokens.values())
    return {"tokens_per_second": speed, "accepted_length": accepted, "identical": identical}


def main(scope: Annotated[Scope, tyro.conf.arg(name="")], options: Annotated[Options, tyro.conf.arg(name="")]) -> None:
    """Print the lines, then write the page."""
    about = {name: value for name, value in asdict(scope).items() if name not in ("methods", "seeds")}
    weights = about["federation"].pop("fedspeed")
    ledger = Ledger(options.out / "runs.jsonl", about, lambda row: row["weights"] in (None, weights))
    if not options.page:
        bench = Bench(scope, options)
        bench.problem  # noqa: B018  written to disk before the workers read it
        context = multiprocessing.get_context("spawn")
        workers = ProcessPoolExecutor(options.workers, context) if options.workers > 1 else nullcontext()
        with workers as pool:
            for row in runs(bench, ledger, pool):
                print(json.dumps(row), flush=True)
        for row in decoded(bench, ledger) if options.decode else ():
            print(json.dumps(row), flush=True)
    figures = drafts_page.figures(ledger.rows, scope.methods)
    print(json.dumps(figures["aim"]))
    drafts_page.write(figures, options.docs)


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the workers inherit it
    jax.config.update("jax_platforms", os.environ["JAX_PLATFORMS"])
    tyro.cli(main, description=__doc__)
