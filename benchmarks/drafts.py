"""What does federation give a draft? Every method on Shakespeare roles that the embedded pair never saw.

    python benchmarks/drafts.py [--json] [--out out/drafts] [--methods fedspeed fedavg] [--page] ...

110 roles train (11 a round), 20 choose learning rates and the centralised step, 30 are clients who never take part.
Accepted tokens a step on text of these (``held_out``) and on the training roles' unseen text (``unseen``), round by
round. Every method runs the whole learning-rate grid with the first seed; the rate that validation roles accept most of
then runs with the other seeds. Variants of FedSpeed have its rate. Each line is a finished run; it lies in
``OUT/runs.jsonl`` and is not run again with the same settings. The last lines decode with the drafts, and say whether
the aim is met. ``--page`` runs nothing: it writes picture and tables of docs/federated_drafts.md from the lines that
are there.

On an accelerator, many runs side by side, then decoding where speed is to be told:

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
from drafts_page import Row
from tqdm import tqdm

import jaxspec
from jaxfed import checkpoint
from jaxspec import federated, zoo
from jaxspec.federated import METHODS, UNSEEN, VALIDATION, Distilling, Federation, FedSpeedSettings, Problem, Setup
from jaxspec.zoo.recipe import held_out_roles

#: Whose draft decodes at the end.
DECODED = ("fedspeed", "fedavg", "centralised")
#: As much noise in the mean as a private run would have with so many times the clients, at the same participation.
TIMES = 100
LARGER = federated.private(f"fedspeed-dp, {TIMES}x", max_norm=0.5, noise_multiplier=1.0 / TIMES)
ROWS = METHODS | {LARGER.name: LARGER}
#: Those that are compared first, then the variants of FedSpeed.
ORDER = ("fedspeed", "fedavg", "centralised", "scaffold", "feddyn", "local-only")


@dataclass(frozen=True)
class Scope:
    """Who takes part, and what is tried.

    Attributes:
        clients: roles that train; drawn by seed 0, whatever the run's seed.
        validation: roles that choose.
        held_out: roles that only judge.
        seeds: of cohorts and batches.
        methods: rows of ``jaxspec.federated.METHODS``, and ``LARGER``.
        federation: rounds, cohort, steps and the learning-rate grid, the same for all.
        distilling: what the target says of their text.
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
class Decoding:
    """How the last lines are measured: greedily, one prompt at a time, the drafts in turns.

    Attributes:
        prompts: of each judge.
        new_tokens: of each.
        runs: medians are told.
    """

    prompts: int = 12
    new_tokens: int = 64
    runs: int = 5


@dataclass(frozen=True)
class Options:
    """Where it goes.

    Attributes:
        out: folder of finished lines, the target's words and drafts.
        workers: runs side by side, each in a process of its own if there are several.
        decode: measure tokens a second with the drafts.
        page: write the page from the lines that are there, and run nothing.
        docs: folder of the page.
        json: only the lines.
    """

    out: Path = Path("out/drafts")
    workers: int = 1
    decode: bool = True
    page: bool = False
    docs: Path = Path(__file__).parents[1] / "docs"
    json: bool = False


class Ledger:
    """Finished lines of these settings, in a file that other settings share; ``weights`` tell apart what has any."""

    def __init__(self, path: Path, settings: Row, weights: Row) -> None:
        self._path, self._settings = path, json.loads(json.dumps(settings))
        path.parent.mkdir(parents=True, exist_ok=True)
        written = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        rows = [row for line in written if (row := _parsed(line)) and row.pop("settings", None) == self._settings]
        self.rows: list[Row] = [row for row in rows if row["weights"] in (None, weights)]

    def find(self, **named: Any) -> Row | None:
        """The last line with these entries."""
        return next((row for row in reversed(self.rows) if named.items() <= row.items()), None)

    def add(self, row: Row) -> Row:
        """Appends a line."""
        self.rows.append(row)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**row, "settings": self._settings}) + "\n")
        return row


def _parsed(line: str) -> Row:
    """A line cut short by an interruption is run again."""
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return {}


@dataclass
class Bench:
    """Everything that a line is made with."""

    scope: Scope
    options: Options
    pair: zoo.Pair = field(default_factory=zoo.load)

    @cached_property
    def problem(self) -> Problem:
        """The target's words on every role's text; cached."""
        s, roles = self.scope, held_out_roles()
        order = np.random.default_rng(0).permutation(len(roles))
        texts = [roles[place].text for place in order]
        cuts = np.cumsum([s.clients, s.validation, s.held_out]).tolist()
        judges = {VALIDATION: texts[cuts[0] : cuts[1]], "held_out": texts[cuts[1] : cuts[2]]}
        known = self.pair.target, self.pair.tokenizer, texts[: cuts[0]], judges, s.distilling
        return federated.gather(*known, self.options.out, not self.options.json)

    def line(self, name: str, seed: int, rate: float) -> Row:
        """One run, from start to end."""
        began, settings = time.perf_counter(), replace(self.scope.federation, seed=seed)
        setup = Setup(self.pair.draft, self.problem, settings, self.scope.distilling.window, None, False)
        found = federated.run(setup, ROWS[name], rate)
        seconds = round(time.perf_counter() - began, 1)
        if name in DECODED:
            where = self.draft(name, seed, rate)
            checkpoint.save(where, 1 + (checkpoint.latest(where) or 0), {"params": found.params}, keep=1)
        curves = {judge: [round(value, 4) for value in curve] for judge, curve in found.judged.items()}
        guarantee = self.guarantee(name, settings)
        facts = {"samples": found.samples, "message_bytes": found.message_bytes, "seconds": seconds}
        about = {"method": name, "seed": seed, "learning_rate": rate, "rounds": found.rounds}
        weights = asdict(settings.fedspeed) if name.startswith(("fedspeed", "feddyn")) else None
        return {**about, **curves, **facts, "privacy": guarantee and asdict(guarantee), "weights": weights}

    def guarantee(self, name: str, settings: Federation) -> Any:
        """(ε, δ) of a private row; of ``LARGER`` in the population that it stands for."""
        if name != LARGER.name:
            return ROWS[name].guarantee(settings, self.scope.clients)
        noisy = replace(LARGER, noise_multiplier=1.0)
        return noisy.guarantee(replace(settings, cohort_size=TIMES * settings.cohort_size), TIMES * self.scope.clients)

    def draft(self, name: str, seed: int, rate: float) -> Path:
        """Where a draft is kept."""
        return self.options.out / "drafts" / f"{name}-{seed}-{rate}"


#: (method, seed, learning rate)
Run = tuple[str, int, float]


def runs(bench: Bench, ledger: Ledger, pool: Executor | None) -> Iterator[Row]:
    """The grid with the first seed; then FedSpeed's variants at its rate, and the chosen rates with the other seeds."""
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
    """Lines as they are finished, those known already first."""
    known = {run: ledger.find(**dict(zip(("method", "seed", "learning_rate"), run, strict=True))) for run in wanted}
    yield from (row for row in known.values() if row is not None)
    missing = [run for run, row in known.items() if row is None]
    for row in tqdm(_made(bench, missing, pool), "runs", len(missing), disable=bench.options.json):
        yield ledger.add(row)


def _made(bench: Bench, missing: list[Run], pool: Executor | None) -> Iterator[Row]:
    """Here, one after the other, or in the pool's processes."""
    if pool is None:
        yield from (bench.line(*run) for run in missing)
    else:
        told = [pool.submit(_line, bench.scope, bench.options, run) for run in missing]
        yield from (each.result() for each in as_completed(told))


#: Of a process of the pool.
_bench = cache(Bench)


def _line(scope: Scope, options: Options, run: Run) -> Row:
    return _bench(scope, options).line(*run)


def decoded(bench: Bench, ledger: Ledger) -> Iterator[Row]:
    """Tokens a second with each draft, in turns; the same tokens from all. Not again with the drafts of a line."""
    pair, seed, sizes = bench.pair, bench.scope.seeds[0], bench.scope.distilling
    window, like = sizes.window, {"params": pair.draft.params}
    methods = {"plain": jaxspec.autoregressive(pair.target)}
    methods["before"] = jaxspec.speculative(pair.target, pair.draft, window)
    rates = {name: drafts_page.chosen_rate(ledger.rows, name) for name in DECODED if name in bench.scope.methods}
    for name, rate in rates.items():
        params = checkpoint.load(bench.draft(name, seed, rate), like=like)["params"]
        methods[name] = jaxspec.speculative(pair.target, pair.draft._replace(params=params), window)
    for judge in ("held_out", UNSEEN):
        if known := ledger.find(decoded=judge, drafts=rates):
            yield known
            continue
        rows = bench.problem.judges[judge].tokens
        places = np.linspace(0, len(rows) - 1, min(DECODING.prompts, len(rows))).astype(int)
        prompts = rows[places, : sizes.prompt_tokens].tolist()
        weights = asdict(bench.scope.federation.fedspeed)
        found = _measured(methods, prompts, not bench.options.json)
        yield ledger.add({"decoded": judge, "drafts": rates, "weights": weights, **found})


DECODING = Decoding()


def _measured(methods: dict[str, Any], prompts: list[list[int]], progress: bool) -> Row:
    """Medians of whole passes over the prompts."""
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    accepted, tokens = {}, {}
    for turn in tqdm(range(1 + DECODING.runs), "decode", disable=not progress):
        for name, method in methods.items():
            began = time.perf_counter()
            found = [jaxspec.generate(method, [prompt], DECODING.new_tokens) for prompt in prompts]
            if turn:  # the first compiles
                seconds[name].append(time.perf_counter() - began)
            tokens[name] = [each.tokens for each in found]
            accepted[name] = round(float(np.mean([each.stats.accepted_length for each in found])), 3)
    count = len(prompts) * DECODING.new_tokens
    speed = {name: round(count / statistics.median(times), 1) for name, times in seconds.items()}
    identical = all(each == tokens["plain"] for each in tokens.values())
    return {"tokens_per_second": speed, "accepted_length": accepted, "identical": identical}


def main(scope: Annotated[Scope, tyro.conf.arg(name="")], options: Annotated[Options, tyro.conf.arg(name="")]) -> None:
    """Prints the lines, then writes the page."""
    about = {name: value for name, value in asdict(scope).items() if name not in ("methods", "seeds")}
    ledger = Ledger(options.out / "runs.jsonl", about, about["federation"].pop("fedspeed"))
    if not options.page:
        bench = Bench(scope, options)
        bench.problem  # noqa: B018  before the workers look for it
        context = multiprocessing.get_context("spawn")
        several = ProcessPoolExecutor(options.workers, context) if options.workers > 1 else nullcontext()
        with several as pool:
            for row in runs(bench, ledger, pool):
                print(json.dumps(row), flush=True)
        for row in decoded(bench, ledger) if options.decode else ():
            print(json.dumps(row), flush=True)
    figures = drafts_page.figures(ledger.rows, scope.methods)
    print(json.dumps(figures["aim"]))
    drafts_page.write(figures, options.docs)


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # of the workers too
    jax.config.update("jax_platforms", os.environ["JAX_PLATFORMS"])
    tyro.cli(main, description=__doc__)
