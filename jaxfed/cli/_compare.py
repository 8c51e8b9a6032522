"""``jaxfed compare``: algorithms on one problem with the same cohorts, a table and a picture."""

import dataclasses
import json as jsons
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import rich
import tyro
from rich.table import Table
from tqdm.auto import tqdm

import jaxfed
from jaxfed import plot as pictures
from jaxfed.cli._options import (
    Execution,
    Flag,
    Hyperparameters,
    Rounds,
    build,
    check_execution,
    federate,
    has,
    versions,
)
from jaxfed.cli._problems import Source, tasks
from jaxfed.cli._sending import Sending, sampler_of, with_sending
from jaxfed.core.checks import check_choice, check_range

ACCURACY, WORST = "unseen_accuracy", "unseen_accuracy/worst_10%"


@dataclasses.dataclass(frozen=True)
class Contest:
    """The algorithms to compare, and where the results go.

    Attributes:
        algorithms: names in the registry, separated by commas, or all.
        client_learning_rate: step size of all clients; by default 0.5 on text, 0.1 on images.
        prox_weight: strength of the proximal term, for the algorithms that have one.
        ascent_radius: length of the ascent step, for the algorithms that have one.
        seeds: runs of every algorithm, with seeds 0, 1, …
        target: accuracy to count the rounds to, from 0 to 1; by default what all algorithms reach.
        out: folder for checkpoints, one for every algorithm and seed, and for histories.
        plot: picture to draw; by default compare.png in out.
    """

    algorithms: str = "all"
    client_learning_rate: float | None = None
    prox_weight: float | None = None
    ascent_radius: float | None = None
    seeds: int = 1
    target: float | None = None
    out: Path = Path("out/compare")
    plot: Path | None = None


class Run(NamedTuple):
    """One run: its history, the accuracy before the first round, and the error message if it diverged."""

    history: jaxfed.History
    before: float
    diverged: str | None = None

    def curve(self) -> dict[int, float]:
        """Return rounds done → accuracy."""
        measured = self.history.evaluations
        return {0: self.before, **dict(zip(measured.get("round", []), measured.get(ACCURACY, []), strict=True))}


def compare(
    contest: Annotated[Contest, tyro.conf.arg(name="")] = Contest(),
    schedule: Annotated[Rounds, tyro.conf.arg(name="")] = Rounds(),
    source: Annotated[Source, tyro.conf.arg(name="")] = Source(),
    execution: Annotated[Execution, tyro.conf.arg(name="")] = Execution(),
    sending: Annotated[Sending, tyro.conf.arg(name="")] = Sending(),
    json: Flag = False,  # noqa: A002  the flag is called --json
) -> None:
    """Run algorithms on the same clients with the same cohorts; the same command resumes an interrupted comparison.

    Draws accuracy against rounds, samples and seconds: means over the seeds, with bands of a standard deviation.

    Args:
        contest: the algorithms, and where the results go.
        schedule: clients, rounds and local steps.
        source: the data.
        execution: plan and store.
        sending: what clients send.
        json: end with one JSON object on one line.
    """
    began, methods = time.perf_counter(), hyperparameters_of(contest, "text" if source.data is None else "images")
    check_range("seeds", contest.seeds, least=1)
    if contest.target is not None:
        check_range("target", contest.target, least=0.0, most=1.0)
    check_execution(execution)
    task_of = tasks(source, schedule.clients)
    runs: dict[str, list[Run]] = {name: [] for name in methods}
    with tqdm(total=len(methods) * contest.seeds, desc="algorithms") as bar:
        for seed in range(contest.seeds):
            task = task_of(seed)
            before = task.evaluate(task.params)[ACCURACY]
            for name, method in methods.items():
                bar.set_postfix_str(f"{name}, seed {seed}")
                algorithm = with_sending(build(method, task.loss_fn), sending, schedule)
                out, every = contest.out / name / f"seed-{seed}", max(1, schedule.rounds // 30)
                sampled = partial(federate, sampler=sampler_of(sending, schedule), every=every, seed=seed)
                history, diverged = _run(partial(sampled, task, algorithm, schedule, execution, out))
                runs[name].append(Run(history, before, diverged))
                bar.update()
    outcome = _results(runs, contest.target)
    picture = contest.plot or contest.out / "compare.png"
    lines = {name: line for name, each in runs.items() if (line := line_of(each))}
    if lines:
        picture.parent.mkdir(parents=True, exist_ok=True)
        pictures.comparison(lines, "accuracy on unseen samples", picture, target=outcome["target"])
    rich.print(_table(outcome, schedule, contest.seeds))
    print(f"written: {picture if lines else 'no picture, all diverged'}; histories in {contest.out}")
    if json:
        facts: dict[str, Any] = {}
        for part in (contest, schedule, source, execution, sending):
            facts |= dataclasses.asdict(part)
        facts |= {**outcome, "picture": picture, "versions": versions()}
        facts["wall_seconds"] = round(time.perf_counter() - began, 1)
        print(jsons.dumps(facts, default=str))


def hyperparameters_of(contest: Contest, kind: str) -> dict[str, Hyperparameters]:
    """Return the hyperparameters of every algorithm by name; each gets only those that it has.

    Raises:
        ValueError: no algorithm or an unknown one (nearest name suggested), or a hyperparameter that none of them has.
    """
    names = [name.strip() for name in contest.algorithms.split(",") if name.strip()]
    for name in names:
        check_choice("algorithm", name, ["all", *jaxfed.algorithms.registry])
    names = list(jaxfed.algorithms.registry) if "all" in names else list(dict.fromkeys(names))
    if not names:
        raise ValueError("expected names of algorithms with commas between them, or all, got none")
    chosen = {name: getattr(contest, name) for name in ("prox_weight", "ascent_radius")}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    if strange := [option for option in chosen if not any(option in has(name) for name in names)]:
        raise ValueError(f"expected hyperparameters that some algorithm has, got {', '.join(strange)}; leave it out")
    given = contest.client_learning_rate
    rate = {"text": 0.5, "images": 0.1}[kind] if given is None else given
    return {
        name: Hyperparameters(name, rate, **{option: value for option, value in chosen.items() if option in has(name)})
        for name in names
    }


def _run(federated: Callable[[], tuple[Any, jaxfed.History]]) -> tuple[jaxfed.History, str | None]:
    """Return the history of one run, and the error message if it diverged."""
    try:
        return federated()[1], None
    except FloatingPointError as error:
        return jaxfed.History(), str(error).split(":")[0]


def line_of(runs: Sequence[Run]) -> pictures.Line | None:
    """Return the line of one algorithm, at the rounds where all its seeds were evaluated; None if all diverged."""
    well = [run for run in runs if run.diverged is None]
    if not well:
        return None
    rounds = sorted(set.intersection(*(set(run.curve()) for run in well)))
    along: dict[str, Sequence[float]] = {"rounds": rounds}
    for axis in ("samples", "seconds"):
        axis_values = [run.history.cumulative(axis, rounds) for run in well]
        if all(axis_values):
            along["seconds of training" if axis == "seconds" else axis] = np.mean(axis_values, axis=0).tolist()
    return pictures.Line(along, np.array([[run.curve()[number] for number in rounds] for run in well]))


def _results(runs: Mapping[str, Sequence[Run]], target: float | None) -> dict[str, Any]:
    """Return numbers of every algorithm, means over the seeds that did not diverge, and the target accuracy."""
    best = {name: [max(run.curve().values()) for run in each if run.diverged is None] for name, each in runs.items()}
    reached = [min(each) for each in best.values() if each]
    target = target if target is not None else min(reached, default=None)
    numbers = {}
    for name, each in runs.items():
        well = [run for run in each if run.diverged is None]
        last = [list(run.curve().values())[-1] for run in well]
        worst = [run.history.evaluations[WORST][-1] for run in well if WORST in run.history.evaluations]
        rounds = [next((at for at, number in run.curve().items() if number >= (target or 0)), None) for run in well]
        seconds = [run.history.cumulative("seconds")[-1:] for run in well]
        sizes = [run.history.last_known("sent_bytes") for run in well]
        numbers[name] = {
            "best": _mean(best[name]),
            "best_std": float(np.std(best[name])) if best[name] else None,
            "last": _mean(last),
            "worst_10%": _mean(worst),
            "rounds_to_target": None if None in rounds else _mean(rounds),
            "seconds": _mean([each[0] for each in seconds if each]),
            "bytes_per_client_per_round": _mean([sent for sent in sizes if sent is not None]),
            "diverged": [run.diverged for run in each if run.diverged is not None],
        }
    return {"target": target, "results": numbers}


def _mean(numbers: Sequence[Any]) -> float | None:
    return float(np.mean(numbers)) if len(numbers) else None


def _table(outcome: Mapping[str, Any], schedule: Rounds, seeds: int) -> Table:
    clients = f"{schedule.cohort_size} of {schedule.clients} clients"
    title = f"{schedule.rounds} rounds, {clients}, {seeds} seed{'s' if seeds > 1 else ''}"
    table = Table(title=title, title_justify="left")
    target = "target" if outcome["target"] is None else f"{100 * outcome['target']:.1f} %"
    for column in ("algorithm", "best %", "last %", "worst tenth %", f"rounds to {target}", "seconds", "kB sent"):
        table.add_column(column, justify="left" if column == "algorithm" else "right")
    ranked = sorted(outcome["results"].items(), key=lambda each: -(each[1]["best"] or 0.0))
    for name, numbers in ranked:
        best = _formatted(numbers["best"], 100, 2)
        best += f" ± {100 * numbers['best_std']:.2f}" if seeds > 1 and numbers["best"] is not None else ""
        cells = [best, _formatted(numbers["last"], 100, 2), _formatted(numbers["worst_10%"], 100, 2)]
        cells += [_formatted(numbers["rounds_to_target"], 1, 0), _formatted(numbers["seconds"], 1, 1)]
        cells += [_formatted(numbers["bytes_per_client_per_round"], 1e-3, 0)]
        diverged = f" (diverged: {'; '.join(numbers['diverged'])})" if numbers["diverged"] else ""
        table.add_row(f"{name}{diverged}", *cells)
    return table


def _formatted(number: float | None, scale: float, digits: int) -> str:
    return "–" if number is None else f"{scale * number:.{digits}f}"
