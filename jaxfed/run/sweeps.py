"""Sweeps: many runs of one problem, with other seeds and other hyperparameters, in one compilation."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm.auto import tqdm

from jaxfed.core.checks import check_range
from jaxfed.core.protocol import FederatedAlgorithm, Server
from jaxfed.core.samplers import Sampler
from jaxfed.core.types import Key
from jaxfed.data.batches import ClientData
from jaxfed.data.batching import Batching
from jaxfed.data.streams import check_resident
from jaxfed.layout.plans import Sharded, vmap
from jaxfed.run._together import Runs, Shared, fitting, play
from jaxfed.run.history import History
from jaxfed.run.settings import Layout, Report
from jaxfed.run.state import check_clients

Make = Callable[..., FederatedAlgorithm]
"""`make(**point) -> algorithm`: from one value of every hyperparameter that is varied."""


class SweepRun(NamedTuple):
    """One run of a sweep.

    Attributes:
        point: value of every hyperparameter that is varied.
        seed: of the run.
        server: after its last round.
        history: as of `jaxfed.simulate`. A run that diverged goes on to its last round; its numbers are not finite.
    """

    point: Mapping[str, float]
    seed: int
    server: Server
    history: History

    @property
    def diverged(self) -> bool:
        """Whether no client of its last round that had any returned finite results."""
        last = self.history.rounds.last()
        return last.get("num_used", 1) == 0 and last.get("num_excluded", 0) > 0


class Statistics(NamedTuple):
    """A number over the seeds: mean, standard deviation (n − 1; NaN for one seed), and how many seeds."""

    mean: float
    deviation: float
    seeds: int


class Sweep(NamedTuple):
    """The runs of a sweep: seeds of the first point, then of the second.

    Attributes:
        runs: all of them.
        at_once: runs that were computed together.
    """

    runs: list[SweepRun]
    at_once: int

    @property
    def points(self) -> list[Mapping[str, float]]:
        """The points, in order."""
        return list({tuple(run.point.items()): run.point for run in self.runs}.values())

    def of(self, point: Mapping[str, float]) -> list[SweepRun]:
        """Return the runs of a point, one per seed."""
        return [run for run in self.runs if dict(run.point) == dict(point)]

    def curves(self, name: str) -> dict[str, tuple[list[int], np.ndarray]]:
        """Return a column of every point: label -> (rounds [n], numbers [seeds, n]); NaN where there is none.

        Args:
            name: of an evaluation, or of `History.rounds`.
        """
        return {label_of(point): _column([run.history for run in self.of(point)], name) for point in self.points}

    def last(self, name: str) -> list[tuple[Mapping[str, float], Statistics]]:
        """Return the last number of a column over the seeds of every point."""
        found = []
        for point in self.points:
            numbers = _column([run.history for run in self.of(point)], name)[1][:, -1]
            spread = float(np.std(numbers, ddof=1)) if len(numbers) > 1 else float("nan")
            found.append((point, Statistics(float(np.mean(numbers)), spread, len(numbers))))
        return found

    def best(self, name: str, *, lower_is_better: bool = False) -> Mapping[str, float]:
        """Return the point whose mean over the seeds, at the end, is best; one that is not finite never is."""
        sign = 1.0 if lower_is_better else -1.0
        means = [(point, sign * each.mean) for point, each in self.last(name)]
        return min(means, key=lambda pair: pair[1] if np.isfinite(pair[1]) else np.inf)[0]

    def to_pandas(self) -> Any:
        """Return a `pandas.DataFrame`: one row per run and round, with the point and the seed in its index."""
        tables = {(*run.point.values(), run.seed): run.history.to_pandas() for run in self.runs}
        import pandas as pd  # only now, for the message of `History.to_pandas` where it is not installed

        return pd.concat(tables, names=[*self.runs[0].point, "seed"])


def sweep(
    make: Make,
    start: Callable[[FederatedAlgorithm, Key], Server],
    data: ClientData,
    *,
    over: Mapping[str, Sequence[float]],
    rounds: int,
    batching: Batching,
    sampler: Sampler,
    layout: Layout = Layout(),
    report: Report = Report(),
    at_once: int | None = None,
) -> Sweep:
    """Run every combination of hyperparameters and seeds, all by one compiled program.

    Each run is the `jaxfed.simulate` with the same arguments, up to rounding: seeds and hyperparameters are inputs of
    the program instead of constants.

        jaxfed.sweep(
            lambda lr: jaxfed.fedspeed(loss_fn, client_learning_rate=lr),
            lambda algorithm, key: algorithm.init(model.init(key), 100),
            data, over={"lr": [0.03, 0.1, 0.3], "seed": range(5)}, rounds=200, batching=..., sampler=...,
            report=jaxfed.Report(evaluate, every=10),
        ).last("accuracy")

    Args:
        make: builds the algorithm from one value of everything in `over` but "seed": Python numbers when arguments are
            checked, traced ones in the program.
        start: `start(algorithm, key) -> Server`, from `jax.random.key(seed)`; whoever ignores the key begins all runs
            with the same parameters.
        data: N clients.
        over: name → values of real hyperparameters, such as rates, weights and radii; "seed" → integers, by default 0.
            What changes shapes or the program, such as numbers of steps and choices, needs a sweep for each value.
        rounds: of every run.
        batching: as of `simulate`.
        sampler: as of `simulate`.
        layout: its plan; mesh and store are the default device's.
        report: evaluation (of one run at a time), `at_start`, `clients` and progress, a bar of the rounds of all runs.
        at_once: runs that are one vmapped computation. By default 1 on a CPU, which is busy with one run, and
            elsewhere as many as are estimated to fit into the device's memory.

    Raises:
        ValueError: as of `simulate`, for any of the points, before anything is computed; what a sweep cannot do in
            `layout` and `report`.
        TypeError: values that are no real numbers.
    """
    check_range("rounds", rounds, least=1, whole=True)
    check_resident(data, "sweep")
    _check(layout, report)
    pairs = _pairs(over)
    algorithms = [make(**point) for point, _ in pairs]  # raises for a value out of range
    plan = layout.plan if layout.plan is not None else vmap()
    problem = Shared(make, data, batching, sampler, plan, int(rounds))  # type: ignore[arg-type]
    servers = [start(each, jax.random.key(seed)) for each, (_, seed) in zip(algorithms, pairs, strict=True)]
    for server in servers:
        if int(server.round):
            raise ValueError(
                f"expected new servers, got one after {int(server.round)} rounds; begin with algorithm.init"
            )
        check_clients(server, data)
    for number in {str(point): number for number, (point, _) in enumerate(pairs)}.values():
        problem.check(algorithms[number], servers[number])
    if at_once is not None:
        check_range("at_once", at_once, least=1, whole=True)
    size = min(at_once or fitting(problem, algorithms[0], servers[0], len(pairs)), len(pairs))
    with tqdm(total=rounds * len(pairs), desc="rounds of all runs", disable=not report.progress) as bar:
        finished = play(problem, Runs(pairs, servers), size, report, bar.update)
    return Sweep([SweepRun(*pair, *each) for pair, each in zip(pairs, finished, strict=True)], size)


def label_of(point: Mapping[str, float]) -> str:
    """Return "client_learning_rate 0.1, prox_weight 0.01"."""
    return ", ".join(f"{name} {value:g}" for name, value in point.items()) or "all seeds"


def _check(layout: Layout, report: Report) -> None:
    if layout.mesh is not None or layout.store is not None or isinstance(layout.plan, str | Sharded):
        raise ValueError(
            "expected a layout with a plan alone, such as Layout(jaxfed.map()): a sweep runs on the default device and "
            f"keeps all rows there, got {layout}; simulate each run for a mesh, another store or plan='auto'"
        )
    if report.stop is not None or report.callbacks or report.keep_state:
        raise ValueError(
            "expected a report without stop, callbacks and keep_state: the runs of a sweep go on together to the last "
            "round; simulate each run for these"
        )


def _pairs(over: Mapping[str, Sequence[float]]) -> list[tuple[Mapping[str, float], int]]:
    """Return every point with every seed."""
    for name, values in over.items():
        if not len(values):
            raise ValueError(f"over[{name!r}]: expected at least one value, got none")
        for value in values:
            check_range(f"over[{name!r}]", value, whole=name == "seed")
    for seed in over.get("seed", ()):
        check_range("over['seed']", seed, least=0, most=2**32 - 1)
    varied = {name: [float(value) for value in values] for name, values in over.items() if name != "seed"}
    points = [dict(zip(varied, values, strict=True)) for values in itertools.product(*varied.values())]
    return [(point, int(seed)) for point in points for seed in over.get("seed", (0,))]


def _column(histories: Sequence[History], name: str) -> tuple[list[int], np.ndarray]:
    """Return rounds [n] and the numbers [len(histories), n] of a column of evaluations, or of rounds."""
    tables = [each.evaluations if name in each.evaluations else each.rounds for each in histories]
    if name not in tables[0]:
        known = ", ".join(sorted({*histories[0].evaluations, *histories[0].rounds} - {"round"}))
        raise ValueError(f"expected a column of the runs ({known}), got {name!r}")
    numbers = [[np.nan if each is None else each for each in table[name]] for table in tables]
    return tables[0]["round"], np.array(numbers, np.float64)
