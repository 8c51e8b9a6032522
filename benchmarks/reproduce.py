"""Compare FedSpeed with ten other algorithms on images: do the published orderings hold?

    python benchmarks/reproduce.py --data FOLDER [--json] [--minutes 18] [--full] [--recycle] ...
    python benchmarks/reproduce.py --suite cifar --data FOLDER --device gpu [--pause-after 8]

100 clients, 10 of them per round, IID and Dirichlet 0.6/0.3/0.1, the published hyperparameters in the authors'
variant, 5 local epochs in batches of 50. A seeded subset of the training set unless ``--full``. The number of rounds,
the same for all, is what fits into the minutes; it is measured first. Every client takes as many local steps as 5
epochs of a client of mean size have. Then FedSpeed and FedAvg run with 1, 10 and 20 local epochs on the last
partition, with as many samples in total (fewer rounds), as many rounds, or both (``--equal samples rounds``). The
suites ``cifar`` and ``resnet`` (Fashion-MNIST) are the published setting: ResNet-18 with group normalisation, all
images, Dirichlet 0.6, 1,000 rounds. Each line: best and last test accuracy in per cent, mean and deviation over seeds;
``rounds_to_target``: rounds until the mean over seeds reaches FedAvg's best (``target``); ``seconds`` of training of
one run. The last line reports which orderings hold, or what is left to run.

Finished runs are kept in ``--out`` and not run again with the same settings. A run under way is kept beside them, every
four minutes and when ``--pause-after`` minutes are over: the same command goes on with it.
"""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np
import reproduction
import reproduction_picture
import tyro
from ledger import Ledger
from machine import card, seconds_of
from reproduction import BATCH, CLIENTS, COHORT, EPOCHS, OWN, SUITES, Row
from reproduction_runs import RunKey, Runs
from rich.console import Console
from tqdm.auto import tqdm

from jaxfed.core.checks import check_choice, check_range
from jaxfed.layout import plans

PUBLISHED = {"algorithms": ("fedavg", "fedspeed", "feddyn", "scaffold"), "partitions": ("0.6",), "epochs": (EPOCHS,)}
USUAL = {"algorithms": tuple(OWN), "partitions": ("iid", "0.6", "0.3", "0.1"), "epochs": (1, EPOCHS, 10, 20)}


@dataclass(frozen=True)
class Scope:
    """Which runs are made.

    Attributes:
        suite: mlp (784-200-200-10), lenet, resnet: of Fashion-MNIST; cifar: ResNet-18 of CIFAR-10.
        algorithms: names. Default: all eleven; fedavg, fedspeed, feddyn and scaffold for ResNet-18.
        partitions: iid, or the concentration of a Dirichlet distribution; the most heterogeneous last. Default: iid,
            0.6, 0.3, 0.1; for ResNet-18 0.6.
        epochs: local epochs of the other runs of fedavg and fedspeed; the grid has 5. Default: 1, 5, 10, 20; for
            ResNet-18 5 alone.
        equal: what these have in common with the grid: samples, rounds, or both in turn.
        seeds: repetitions, each with its own partition, initial model and cohorts. Default: 3, or 1 beside the MLP.
        repeat: algorithms that run with every seed, the others with the first alone. Default: all.
        samples_per_client: mean number; 100 gives 10,000 training images, and an epoch exactly two batches.
        full: use all training images; always so for ResNet-18, unless ``samples_per_client`` is given.
        recycle: use the authors' client-wise Dirichlet partition with clients of equal size, not the class-wise one.
    """

    suite: str = "mlp"
    algorithms: tuple[str, ...] = ()
    partitions: tuple[str, ...] = ()
    epochs: tuple[int, ...] = ()
    equal: tuple[str, ...] = ("samples",)
    seeds: int | None = None
    repeat: tuple[str, ...] = ()
    samples_per_client: int | None = None
    full: tyro.conf.FlagCreatePairsOff[bool] = False
    recycle: tyro.conf.FlagCreatePairsOff[bool] = False

    def __post_init__(self) -> None:
        check_choice("suite", self.suite, SUITES)
        for name in (*self.algorithms, *self.repeat):
            check_choice("algorithm", name, OWN)
        for name in self.partitions:
            if name != "iid":
                check_range("partition", float(name), above=0.0)
        for name in self.equal:
            check_choice("equal", name, ("samples", "rounds"))
        check_range("seeds", self.num_seeds, least=1)

    def complete(self) -> "Scope":
        """Return it with the suite's defaults."""
        usual = PUBLISHED if SUITES[self.suite].published else USUAL
        return replace(self, **{name: getattr(self, name) or default for name, default in usual.items()})

    @property
    def num_seeds(self) -> int:
        """Number of repetitions."""
        return SUITES[self.suite].seeds if self.seeds is None else self.seeds

    def seeds_of(self, algorithm: str) -> range:
        """Return the seeds of an algorithm's runs."""
        return range(self.num_seeds if not self.repeat or algorithm in self.repeat else 1)

    @property
    def mean_samples(self) -> int:
        """Samples of a client of mean size."""
        suite = SUITES[self.suite]
        if self.full or (suite.published and self.samples_per_client is None):
            return suite.images // CLIENTS
        return self.samples_per_client or 100


@dataclass(frozen=True)
class Options:
    """Time limit and output.

    Attributes:
        data: folder with the four idx files of Fashion-MNIST, by default $JAXFED_FASHION_MNIST; or with CIFAR-10.
        device: cpu, gpu or tpu, to be refused on another; default: what is there.
        precision: of products, default (the device's own), float32 or tensorfloat32; or bfloat16 over parameters in
            float32.
        minutes: total time; determines the number of rounds.
        rounds: number of rounds, instead of what fits into the minutes. Default for ResNet-18: 1,000.
        pause_after: minutes after which no further rounds are begun; the same command goes on.
        evaluate_every: rounds between two evaluations; scaled with the local epochs.
        plan: of the cohort: map, vmap, chunked(2). Default: map on a CPU, vmap elsewhere.
        out: file of finished runs.
        picture: file. Default: docs/images/reproduce.png, or with the suite in its name.
        json: print JSON lines only.
    """

    data: Path | None = None
    device: str | None = None
    precision: str = "default"
    minutes: float = 18.0
    rounds: int | None = None
    pause_after: float | None = None
    evaluate_every: int = 4
    plan: str | None = None
    out: Path = Path("out/reproduce.jsonl")
    picture: Path | None = None
    json: tyro.conf.FlagCreatePairsOff[bool] = False

    def __post_init__(self) -> None:
        check_choice("precision", self.precision, ("default", "float32", "tensorfloat32", "bfloat16"))
        if self.device is not None and self.device != jax.default_backend():
            raise ValueError(f"expected a {self.device}, got {jax.default_backend()}; leave out --device to run here")

    def folder(self, suite: str) -> Path | None:
        """Return the folder of the images, or None if none is named."""
        named = None if suite == "cifar" else os.environ.get("JAXFED_FASHION_MNIST")
        return self.data or (Path(named) if named else None)


class Cell(NamedTuple):
    """One line: an algorithm, a partition, local epochs, and what is equal to the runs with 5: samples, rounds, all."""

    algorithm: str
    partition: str
    epochs: int = EPOCHS
    equal: str = "all"


class Bench:
    """Settings, data and programs of all runs; programs are compiled once, when first needed."""

    def __init__(self, scope: Scope, options: Options, folder: Path) -> None:
        self.scope, self.options, self._began = scope, options, time.perf_counter()
        self.task = reproduction.problem(
            folder, scope.suite, scope.partitions, scope.num_seeds, scope.mean_samples, scope.recycle
        )
        self.plan = options.plan or ("map" if jax.default_backend() == "cpu" else "vmap")
        self._programs: dict[tuple[str, int], reproduction.Program] = {}

    def settings(self) -> Row:
        """Settings that comparable runs share; also entries of every line."""
        return {
            "suite": self.scope.suite,
            "clients": CLIENTS,
            "cohort": COHORT,
            "batch": BATCH,
            "samples_per_client": self.scope.mean_samples,
            "images": CLIENTS * self.scope.mean_samples,
            "partitioner": "recycling, client-wise" if self.scope.recycle else "class-wise",
            "evaluate_every": self.options.evaluate_every,
            "hyperparameters": {**reproduction.SHARED, **OWN},
            "device": jax.default_backend(),
            **({} if self.options.precision == "default" else {"precision": self.options.precision}),
            **card(),
        }

    def program(self, algorithm: str, epochs: int) -> reproduction.Program:
        """Return the program of an algorithm with this number of local epochs."""
        if (algorithm, epochs) not in self._programs:
            most, narrow = self.scaled(self.options.evaluate_every, epochs), self.options.precision == "bfloat16"
            made = reproduction.program(self.task, algorithm, epochs, most, plans.named(self.plan), narrow)
            self._programs[algorithm, epochs] = made
        return self._programs[algorithm, epochs]

    def scaled(self, rounds: int, epochs: int) -> int:
        """Return the rounds with `epochs` local epochs that have as many steps as `rounds` of the grid."""
        return max(1, round(rounds * self.task.local_steps(EPOCHS) / self.task.local_steps(epochs)))

    def cells(self) -> list[Cell]:
        """Return the grid, FedAvg first on every partition, then other local epochs on the last partition."""
        names, partitions = sorted(set(self.scope.algorithms), key=list(OWN).index), self.scope.partitions
        pair = [name for name in ("fedavg", "fedspeed") if name in names]
        others = [(equal, epochs) for equal in self.scope.equal for epochs in self.scope.epochs if epochs != EPOCHS]
        return [Cell(name, partition) for partition in partitions for name in names] + [
            Cell(name, partitions[-1], epochs, equal) for equal, epochs in others for name in pair
        ]

    def evaluated(self, cell: Cell, rounds: int) -> list[int]:
        """Return the rounds after which a cell's runs are evaluated, its last one at the end."""
        last = self.scaled(rounds, cell.epochs) if cell.equal == "samples" else rounds
        every = self.scaled(self.options.evaluate_every, cell.epochs)
        return sorted({*range(every, last + 1, every), last})

    def runs(self, rounds: int) -> dict[RunKey, list[int]]:
        """Return every run, with the rounds after which it is evaluated for any cell; first seeds first."""
        wanted: dict[RunKey, set[int]] = {}
        for cell in self.cells():
            for seed in self.scope.seeds_of(cell.algorithm):
                wanted.setdefault(RunKey(*cell[:3], seed), set()).update(self.evaluated(cell, rounds))
        return {key: sorted(wanted[key]) for key in sorted(wanted, key=lambda key: key.seed)}

    def price(self, cell: Cell) -> float:
        """Return the time of a cell's runs over that of runs of the grid."""
        return self.task.local_steps(cell.epochs) / self.task.local_steps(EPOCHS) if cell.equal == "rounds" else 1.0

    @property
    def end(self) -> float | None:
        """When no further round is begun, by `time.perf_counter()`."""
        minutes = self.options.pause_after
        return None if minutes is None else self._began + 60 * minutes

    def measure(self) -> tuple[int, Row]:
        """Return the number of rounds that fits into the minutes, and the seconds of a round of each algorithm."""
        first, every = self.scope.partitions[0], self.options.evaluate_every
        names = [cell.algorithm for cell in self.cells() if cell.partition == first and cell.epochs == EPOCHS]
        times = {
            name: reproduction.round_seconds(self.task, self.program(name, EPOCHS), first)
            for name in tqdm(names, desc="measuring", disable=self.options.json)
        }
        params = reproduction.Run(self.task, self.program(names[0], EPOCHS), first, 0).server.params
        evaluating = seconds_of(lambda: jax.block_until_ready(self.task.evaluate(params)), 3)
        compiling = float(np.mean([each[0] for each in times.values()]))
        compiling *= len({cell[:3] for cell in self.cells() if cell.epochs != EPOCHS})
        left = 0.92 * (60 * self.options.minutes - compiling) - (time.perf_counter() - self._began)
        a_round = sum(
            self.price(cell) * (times[cell.algorithm][1] + evaluating / every)
            for cell in self.cells()
            for _ in self.scope.seeds_of(cell.algorithm)
        )
        rounds = max(1, int(left / a_round / every)) * every
        return rounds, {name: round(each[1], 4) for name, each in times.items()}


def play(bench: Bench, runs: Runs, rounds: int) -> list[RunKey]:
    """Run what is not finished until the minutes are over; return what is left."""
    left = []
    for key, evaluated in tqdm(bench.runs(rounds).items(), desc=f"{rounds} rounds each", disable=bench.options.json):
        if runs.find(key, evaluated) is None:
            done = not runs.over and runs.finish(key, bench.task, bench.program(key.algorithm, key.epochs), evaluated)
            left += [] if done else [key]
    return left


def lines(bench: Bench, runs: Runs, rounds: int) -> Iterator[tuple[Cell, Row, Row]]:
    """Yield (cell, its curves, its line) of every cell all of whose runs are finished."""
    fedavg: dict[tuple[Any, ...], Row] = {}
    about = {name: each for name, each in bench.settings().items() if name != "hyperparameters"}
    for cell in bench.cells():
        evaluated, seeds = bench.evaluated(cell, rounds), bench.scope.seeds_of(cell.algorithm)
        found = [runs.find(RunKey(*cell[:3], seed), evaluated) for seed in seeds]
        if None in found:
            continue
        row = {
            "evaluated": evaluated,
            "curves": [each["curve"] for each in found],
            "seconds": float(np.mean([each["seconds"] for each in found])),
            "excluded": sum(sum(each["excluded"]) for each in found),
        }
        if cell.algorithm == "fedavg":
            fedavg[cell[1:]] = row
        facts = {"local_steps": bench.task.local_steps(cell.epochs), "rounds": evaluated[-1], "seeds": len(seeds)}
        yield cell, row, {**cell._asdict(), **reproduction.summary(row, fedavg.get(cell[1:])), **facts, **about}


def orderings(bench: Bench, rows: dict[Cell, Row]) -> Row:
    """Return which published orderings hold."""
    grid = {(cell.algorithm, cell.partition): row for cell, row in rows.items() if cell.epochs == EPOCHS}
    at_last = {cell: row for cell, row in rows.items() if cell.partition == bench.scope.partitions[-1]}
    by_epochs = {
        equal: {(cell.algorithm, cell.epochs): row for cell, row in at_last.items() if cell.equal in ("all", equal)}
        for equal in bench.scope.equal
    }
    return reproduction.orderings(grid, by_epochs if len(bench.scope.epochs) > 1 else {})


def main(
    scope: Annotated[Scope, tyro.conf.arg(name="")] = Scope(),
    options: Annotated[Options, tyro.conf.arg(name="")] = Options(),
) -> None:
    """Run what is missing, print lines and orderings, draw the picture."""
    scope, folder = scope.complete(), options.folder(scope.suite)
    if folder is None:
        what = "CIFAR-10; pass its folder with --data" if scope.suite == "cifar" else ""
        what = what or "Fashion-MNIST; pass its folder with --data or $JAXFED_FASHION_MNIST"
        print(json.dumps({"skipped": f"no {what}"}))
        return
    with jax.default_matmul_precision(options.precision if options.precision != "bfloat16" else "default"):
        report(Bench(scope, options, folder))


def report(bench: Bench) -> None:
    """Run, print and draw."""
    scope, options = bench.scope, bench.options
    rounds = options.rounds or (1000 if SUITES[scope.suite].published else fitting(bench))
    runs = Runs(options.out, bench.settings(), bench.end)
    left = play(bench, runs, rounds)
    rows, finished = {}, []
    for cell, row, line in lines(bench, runs, rounds):
        rows[cell] = row
        finished.append(line)
        if options.json:
            print(json.dumps(line), flush=True)
    if finished and not options.json:
        Console(width=120).print(reproduction_picture.table(finished))
    if left:
        print(json.dumps({"left": left, "how": "run the same command again to go on"}))
        return
    print(json.dumps({"orderings": orderings(bench, rows)}))
    suffix = "" if scope.suite == "mlp" else f"_{scope.suite}"
    name = "CIFAR-10" if scope.suite == "cifar" else "Fashion-MNIST"
    title = f"{name}, {scope.suite}, {finished[0]['images']:,} training images, seeds: {scope.num_seeds}"
    reproduction_picture.draw(rows, options.picture or Path(f"docs/images/reproduce{suffix}.png"), title)


def fitting(bench: Bench) -> int:
    """Return the rounds that fit into the minutes, measured when these settings are first asked for."""
    scope, options = bench.scope, bench.options
    asked = [scope.algorithms, scope.partitions, scope.epochs, scope.equal, scope.num_seeds, scope.repeat]
    budget = Ledger(options.out, bench.settings() | {"asked": [*asked, options.minutes, bench.plan]})
    if not budget.rows:
        rounds, times = bench.measure()
        budget.add({"rounds": rounds, "round_seconds": times})
    return budget.rows[-1]["rounds"]


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
