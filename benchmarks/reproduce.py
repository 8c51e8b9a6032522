"""Compare FedSpeed with ten other algorithms on Fashion-MNIST: do the published orderings hold?

    python benchmarks/reproduce.py --data FOLDER [--json] [--minutes 18] [--suite lenet] [--full] [--recycle] ...

100 clients, 10 of them per round, IID and Dirichlet 0.6/0.3/0.1, the published hyperparameters in the authors'
variant, 5 local epochs in batches of 50. A seeded subset of the training set unless ``--full``. The number of rounds,
the same for all, is what fits into the minutes; it is measured first. Every client takes as many local steps as 5
epochs of a client of mean size have. Then FedSpeed and FedAvg run with 1, 10 and 20 local epochs on the last
partition, with as many samples in total (fewer rounds). Each line: best and last test accuracy in per cent, mean and
deviation over seeds; ``rounds_to_target``: rounds until the mean over seeds reaches FedAvg's best (``target``);
``seconds`` of training of one run. The last line reports which orderings hold. Finished rows are kept in ``--out`` and
not run again with the same settings.
"""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np
import pictures
import reproduction
import tyro
from ledger import Ledger
from machine import card, seconds_of
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from reproduction import BATCH, CLIENTS, COHORT, EPOCHS, NETWORKS, OWN, Row
from rich.console import Console
from rich.table import Table
from tqdm.auto import tqdm

from jaxfed.core.checks import check_choice, check_range
from jaxfed.layout import plans

COLOURS = {"fedavg": "#0072b2", "fedspeed": "#d55e00"}
SHOWN = ("best", "last", "rounds to target", "seconds")


@dataclass(frozen=True)
class Scope:
    """Which runs are made.

    Attributes:
        suite: mlp (784-200-200-10) or lenet.
        algorithms: names; all eleven by default.
        partitions: iid, or the concentration of a Dirichlet distribution; the most heterogeneous last.
        epochs: local epochs of the runs at equal samples; the grid has 5.
        seeds: repetitions, each with its own partition, initial model and cohorts. Default: 3, for lenet 1.
        samples_per_client: mean number; 100 gives 10,000 training images, and an epoch exactly two batches.
        full: use all 60,000 training images.
        recycle: use the authors' client-wise Dirichlet partition with clients of equal size, not the class-wise one.
    """

    suite: str = "mlp"
    algorithms: tuple[str, ...] = tuple(OWN)
    partitions: tuple[str, ...] = ("iid", "0.6", "0.3", "0.1")
    epochs: tuple[int, ...] = (1, 5, 10, 20)
    seeds: int | None = None
    samples_per_client: int = 100
    full: tyro.conf.FlagCreatePairsOff[bool] = False
    recycle: tyro.conf.FlagCreatePairsOff[bool] = False

    def __post_init__(self) -> None:
        check_choice("suite", self.suite, NETWORKS)
        for name in self.algorithms:
            check_choice("algorithm", name, OWN)
        for name in self.partitions:
            if name != "iid":
                check_range("partition", float(name), above=0.0)
        check_range("seeds", self.num_seeds, least=1)

    @property
    def num_seeds(self) -> int:
        """Number of repetitions."""
        return {"mlp": 3, "lenet": 1}[self.suite] if self.seeds is None else self.seeds

    @property
    def mean_samples(self) -> int:
        """Samples of a client of mean size."""
        return 600 if self.full else self.samples_per_client


@dataclass(frozen=True)
class Options:
    """Time limit and output.

    Attributes:
        data: folder with the four idx files of Fashion-MNIST; by default $JAXFED_FASHION_MNIST.
        minutes: total time; determines the number of rounds.
        rounds: number of rounds, instead of what fits into the minutes.
        evaluate_every: rounds between two evaluations; scaled with the local epochs.
        plan: of the cohort: map, vmap, chunked(2). Default: map on a CPU, vmap elsewhere.
        out: file of finished rows.
        picture: file. Default: docs/images/reproduce.png, or reproduce_lenet.png.
        json: print JSON lines only.
    """

    data: Path | None = None
    minutes: float = 18.0
    rounds: int | None = None
    evaluate_every: int = 4
    plan: str | None = None
    out: Path = Path("out/reproduce.jsonl")
    picture: Path | None = None
    json: tyro.conf.FlagCreatePairsOff[bool] = False

    @property
    def folder(self) -> Path | None:
        """Folder of Fashion-MNIST, or None if there is none."""
        named = os.environ.get("JAXFED_FASHION_MNIST")
        return self.data or (Path(named) if named else None)


class Cell(NamedTuple):
    """One line: an algorithm, a partition, and the number of local epochs."""

    algorithm: str
    partition: str
    epochs: int = EPOCHS


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
        """Settings that comparable rows share; also entries of every line."""
        return {
            "suite": self.scope.suite,
            "seeds": self.scope.num_seeds,
            "clients": CLIENTS,
            "cohort": COHORT,
            "batch": BATCH,
            "samples_per_client": self.scope.mean_samples,
            "images": CLIENTS * self.scope.mean_samples,
            "partitioner": "recycling, client-wise" if self.scope.recycle else "class-wise",
            "evaluate_every": self.options.evaluate_every,
            "hyperparameters": {**reproduction.SHARED, **OWN},
            "device": jax.default_backend(),
            **card(),
        }

    def program(self, algorithm: str, epochs: int) -> reproduction.Program:
        """Return the program of an algorithm with this number of local epochs."""
        if (algorithm, epochs) not in self._programs:
            most = self.scaled(self.options.evaluate_every, epochs)
            made = reproduction.program(self.task, algorithm, epochs, most, plans.named(self.plan))
            self._programs[algorithm, epochs] = made
        return self._programs[algorithm, epochs]

    def scaled(self, rounds: int, epochs: int) -> int:
        """Return the rounds with `epochs` local epochs that have as many steps as `rounds` of the grid."""
        return max(1, round(rounds * self.task.local_steps(EPOCHS) / self.task.local_steps(epochs)))

    def cells(self) -> list[Cell]:
        """Return the grid, FedAvg first on every partition, then other local epochs on the last partition."""
        names, partitions = sorted(set(self.scope.algorithms), key=list(OWN).index), self.scope.partitions
        pair = [name for name in ("fedavg", "fedspeed") if name in names]
        others = [epochs for epochs in self.scope.epochs if epochs != EPOCHS]
        return [Cell(name, partition) for partition in partitions for name in names] + [
            Cell(name, partitions[-1], epochs) for epochs in others for name in pair
        ]

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
        compiling *= len({cell for cell in self.cells() if cell.epochs != EPOCHS})
        left = 0.92 * (60 * self.options.minutes - compiling) - (time.perf_counter() - self._began)
        a_round = sum(times[cell.algorithm][1] + evaluating / every for cell in self.cells()) * self.scope.num_seeds
        rounds = max(1, int(left / a_round / every)) * every
        return rounds, {name: round(each[1], 4) for name, each in times.items()}


def lines(bench: Bench, ledger: Ledger, rounds: int, bar: Any) -> Iterator[tuple[Cell, Row, Row]]:
    """Yield (cell, its curves, its line) as they finish; cells in the ledger are not run again."""
    fedavg: dict[tuple[str, int], Row] = {}
    about = {name: each for name, each in bench.settings().items() if name != "hyperparameters"}
    for cell in bench.cells():
        bar.set_postfix_str(f"{cell.algorithm}, {cell.partition}, {cell.epochs} epochs")
        row, scaled = ledger.find(cell=cell, rounds=rounds), bench.scaled(rounds, cell.epochs)
        if row is None:
            program = bench.program(cell.algorithm, cell.epochs)
            curves = reproduction.trained(bench.task, program, cell.partition, bench.scope.num_seeds, scaled)
            row = {"cell": cell, "rounds": rounds, **curves}
            ledger.add(row)
        if cell.algorithm == "fedavg":
            fedavg[cell.partition, cell.epochs] = row
        facts = {"local_steps": bench.task.local_steps(cell.epochs), "rounds": scaled, **about}
        summary = reproduction.summary(row, fedavg.get((cell.partition, cell.epochs)))
        bar.update()
        yield cell, row, {**cell._asdict(), **summary, **facts}


def table(lines: list[Row]) -> Table:
    """Return a table of the lines, one section per partition."""
    first = lines[0]
    title = (
        f"{first['suite']}, {first['images']:,} images, {first['cohort']} of {first['clients']} clients, "
        f"{first['partitioner']} partitions, seeds: {first['seeds']}"
    )
    shown = Table("partition", "epochs", "rounds", "algorithm", *SHOWN, title=title, title_justify="left")
    before = None
    for row in lines:
        group = row["partition"], row["epochs"]
        if before not in (None, group):
            shown.add_section()
        to = "never" if row["rounds_to_target"] is None else f"{row['rounds_to_target']}"
        target = "–" if row["target"] is None else f"{to} ({row['target']:.2f})"
        accuracies = [f"{row[name]:.2f} ± {row[f'{name}_std']:.2f}" for name in ("best", "last")]
        partition = "iid" if row["partition"] == "iid" else f"Dirichlet {row['partition']}"
        heads = [partition, str(row["epochs"]), str(row["rounds"])] if group != before else [""] * 3
        shown.add_row(*heads, row["algorithm"], *accuracies, target, f"{row['seconds']:.1f}")
        before = group
    return shown


def draw_picture(rows: dict[Cell, Row], path: Path, title: str) -> None:
    """Draw accuracy over rounds for every partition, then accuracy over local epochs at equal samples."""
    partitions = list(dict.fromkeys(cell.partition for cell in rows))
    ladder = sorted({cell.epochs for cell in rows})
    width = len(partitions) + (len(ladder) > 1)
    figure = Figure(figsize=(2.9 * width + 0.4, 3.4), layout="constrained")
    panels = figure.subplots(1, width, squeeze=False)[0]
    for axes, partition in zip(panels, partitions, strict=False):
        here = {c.algorithm: r for c, r in rows.items() if c.partition == partition and c.epochs == EPOCHS}
        for name, row in here.items():
            _curve(axes, name, row["evaluated"], 100 * np.asarray(row["curves"]))
        means = 100 * np.stack([reproduction.mean_curve(row) for row in here.values()])
        floor = min(np.quantile(means, 0.1), means[:, -1].min())  # hides the steep start, shows the end of every curve
        air = 0.05 * (means.max() - floor) + 0.2
        axes.set_ylim(floor - air, means.max() + air)
        axes.set(title="IID" if partition == "iid" else f"Dirichlet {partition}", xlabel="round", xlim=(0, None))
    if len(ladder) > 1:
        _ladder(panels[-1], rows, ladder, partitions[-1])
    for axes in panels:
        pictures.plain(axes)
    panels[0].set_ylabel("test accuracy, %")
    named = dict(zip(*panels[0].get_legend_handles_labels()[::-1], strict=True))
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=len(named), frameon=False)
    figure.suptitle(title, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _curve(axes: Axes, name: str, along: list[int], values: np.ndarray) -> None:
    """Draw the mean over seeds; a band of one deviation for FedSpeed and FedAvg, the others in grey."""
    mean, spread = values.mean(axis=0), values.std(axis=0)
    if name not in COLOURS:
        axes.plot(along, mean, color="0.75", linewidth=0.9, zorder=1, label="the others")
        return
    axes.plot(along, mean, color=COLOURS[name], linewidth=2.2, zorder=3, label=name)
    if len(values) > 1:
        axes.fill_between(along, mean - spread, mean + spread, color=COLOURS[name], alpha=0.18, linewidth=0, zorder=2)


def _ladder(axes: Axes, rows: dict[Cell, Row], ladder: list[int], partition: str) -> None:
    for name, colour in COLOURS.items():
        here = [(k, rows[Cell(name, partition, k)]) for k in ladder if Cell(name, partition, k) in rows]
        if here:
            best = [100 * np.max(row["curves"], axis=1) for _, row in here]
            mean, spread = [each.mean() for each in best], [each.std() for each in best]
            axes.errorbar([k for k, _ in here], mean, spread, color=colour, marker="o", markersize=4, capsize=2)
    axes.set_xscale("log")
    axes.set_xticks(ladder, [str(k) for k in ladder])
    axes.minorticks_off()
    axes.set(title=f"Dirichlet {partition}, equal samples", xlabel="local epochs per round", ylabel="best, %")


def main(
    scope: Annotated[Scope, tyro.conf.arg(name="")] = Scope(),
    options: Annotated[Options, tyro.conf.arg(name="")] = Options(),
) -> None:
    """Run the missing cells, print lines and orderings, draw the picture."""
    if options.folder is None:
        print(json.dumps({"skipped": "no Fashion-MNIST; pass its folder with --data or $JAXFED_FASHION_MNIST"}))
        return
    bench = Bench(scope, options, options.folder)
    wanted = {"asked": [scope.algorithms, scope.partitions, scope.epochs, options.minutes, bench.plan]}
    budget = Ledger(options.out, bench.settings() | wanted)
    measured = [row["rounds"] for row in budget.rows if "round_seconds" in row]
    rounds = options.rounds or next(reversed(measured), None)
    if rounds is None:
        rounds, times = bench.measure()
        budget.add({"rounds": rounds, "round_seconds": times})
    ledger, rows, finished = Ledger(options.out, bench.settings()), {}, []
    with tqdm(total=len(bench.cells()), desc=f"{rounds} rounds each", disable=options.json) as bar:
        for cell, row, line in lines(bench, ledger, rounds, bar):
            rows[cell] = row
            finished.append(line)
            if options.json:
                print(json.dumps(line), flush=True)
    grid = {(cell.algorithm, cell.partition): row for cell, row in rows.items() if cell.epochs == EPOCHS}
    at_last = {(c.algorithm, c.epochs): row for c, row in rows.items() if c.partition == scope.partitions[-1]}
    last = {"orderings": reproduction.orderings(grid, at_last if len(scope.epochs) > 1 else {})}
    if not options.json:
        Console(width=120).print(table(finished))
    print(json.dumps(last))
    suffix = "" if scope.suite == "mlp" else f"_{scope.suite}"
    title = f"Fashion-MNIST, {scope.suite}, {finished[0]['images']:,} training images, seeds: {scope.num_seeds}"
    draw_picture(rows, options.picture or Path(f"docs/images/reproduce{suffix}.png"), title)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
