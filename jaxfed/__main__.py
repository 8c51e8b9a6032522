"""The command line: ``python -m jaxfed run``."""

import dataclasses
import inspect
import json as jsons
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import tyro

import jaxfed
from jaxfed import plot
from jaxfed.checkpoint import CheckpointError
from jaxfed.shakespeare import Problem, next_character
from jaxfed.types import LossFn

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]
Numbers = Mapping[str, float]
PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "numpy")


@dataclasses.dataclass(frozen=True)
class Method:
    """Which algorithm, and its hyperparameters; None leaves one at the algorithm's own default.

    Attributes:
        algorithm: name in the registry: fedspeed, fedavg, fedprox, ...
        client_learning_rate: step size of the clients.
        prox_weight: pull of the clients towards the server, where the algorithm has one.
        ascent_radius: length of the ascent step, where the algorithm has one.
    """

    algorithm: str = "fedspeed"
    client_learning_rate: float = 0.5
    prox_weight: float | None = None
    ascent_radius: float | None = None


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Who trains, and how much.

    Attributes:
        clients: Shakespeare roles that take part, each a client.
        rounds: communication rounds in total; more than before continues a run.
        cohort_size: clients a round.
        local_steps: steps of a client a round.
        batch_size: samples a step.
        seed: of the initial parameters, cohorts and batches.
    """

    clients: int = 32
    rounds: int = 60
    cohort_size: int = 8
    local_steps: int = 10
    batch_size: int = 32
    seed: int = 0


def run(
    method: Annotated[Method, tyro.conf.arg(name="")] = Method(),
    schedule: Annotated[Schedule, tyro.conf.arg(name="")] = Schedule(),
    out: Path | None = None,
    json: Flag = False,  # noqa: A002  the flag is called --json
) -> None:
    """Federate a small next-character model over Shakespeare's roles; the same command resumes an interrupted run.

    Args:
        method: the algorithm.
        schedule: who trains, and how much.
        out: folder for checkpoints, history.json and run.png; default out/<algorithm>.
        json: end with one JSON object on one line.
    """
    began, out = time.perf_counter(), out or Path("out") / method.algorithm
    jaxfed.algorithms.get(method.algorithm)
    problem = next_character(schedule.clients, schedule.seed)
    params, history = federate(problem, method, schedule, out)
    before, after = (numbers(problem.evaluate(each)) for each in (problem.params, params))
    (out / "history.json").write_text(jsons.dumps(history.to_dict()))
    plot.curves(panels(history, before), out / "run.png")
    told = {**dataclasses.asdict(method), **dataclasses.asdict(schedule)}
    found = report(told, history, before, after) | {"seconds": round(time.perf_counter() - began, 1)}
    print(f"{method.algorithm}, {found['rounds']} rounds: {sentence(before, after)}; history.json and run.png in {out}")
    if json:
        print(jsons.dumps(found))


def build(method: Method, loss_fn: LossFn) -> jaxfed.FederatedAlgorithm:
    """Build the algorithm with the hyperparameters that were given.

    Raises:
        ValueError: an unknown algorithm, with the nearest name, or a hyperparameter that it does not have.
    """
    factory = jaxfed.algorithms.get(method.algorithm)
    given = {name: value for name, value in dataclasses.asdict(method).items() if value is not None}
    del given["algorithm"]
    if strange := sorted(given.keys() - inspect.signature(factory).parameters.keys()):
        raise ValueError(f"expected hyperparameters of {method.algorithm}, got {', '.join(strange)}; leave it out")
    return factory(loss_fn, **given)


def federate(problem: Problem, method: Method, schedule: Schedule, out: Path) -> tuple[Any, jaxfed.History]:
    """Run all rounds, or those that are left, with checkpoints in ``out``; return parameters and history."""
    algorithm = build(method, problem.loss_fn)
    server, history = jaxfed.simulate(
        algorithm,
        algorithm.init(problem.params, schedule.clients),
        problem.data,
        rounds=schedule.rounds,
        cohort_size=schedule.cohort_size,
        local_steps=schedule.local_steps,
        batch_size=schedule.batch_size,
        seed=schedule.seed,
        evaluate=problem.evaluate,
        evaluate_every=max(1, schedule.rounds // 15),
        checkpoint=jaxfed.Checkpointing(out / "checkpoints", every=max(1, schedule.rounds // 5)),
    )
    return server.params, history


def numbers(measured: Mapping[str, Any]) -> dict[str, float]:
    """Return "loss" and "accuracy" as plain numbers."""
    return {name.removeprefix("unseen_"): float(value) for name, value in measured.items()}


def panels(history: jaxfed.History, before: Numbers) -> dict[str, dict[str, tuple[list[int], list[float]]]]:
    """Return what the picture shows: accuracy and loss on unseen text from round 0, and while training."""
    trained, evaluated = history.rounds, history.evaluations
    rounds = [0, *evaluated.get("round", [])]
    return {
        label: {
            "clients' own batches": (trained.get("round", []), trained.get(column, [])),
            "unseen text": (rounds, [before[name], *evaluated.get(f"unseen_{name}", [])]),
        }
        for label, name, column in (
            ("accuracy of the next character", "accuracy", "aux/accuracy"),
            ("loss (nats per character)", "loss", "loss"),
        )
    }


def report(told: Mapping[str, Any], history: jaxfed.History, before: Numbers, after: Numbers) -> dict[str, Any]:
    """Return what ``--json`` prints but the time: final numbers on unseen text, those before, settings, versions."""
    done = history.rounds.get("round", [0])[-1]
    versions = {"python": sys.version.split()[0], **{name: version(name) for name in PACKAGES}}
    return {**after, "before": dict(before), **told, "rounds": done, "versions": versions}


def sentence(before: Numbers, after: Numbers) -> str:
    """Say how the numbers on unseen text changed."""
    changes = [f"{name} {before[name]:.3f} → {after[name]:.3f}" for name in ("accuracy", "loss")]
    return f"on the roles' unseen text {', '.join(changes)}"


def main(args: Sequence[str] | None = None) -> None:
    """Entry point of the installed command ``jaxfed``; exits with 1 after bad input, with 130 after Ctrl-C."""
    try:
        tyro.extras.subcommand_cli_from_dict({"run": run}, prog="jaxfed", args=args)
    except (ValueError, FloatingPointError, CheckpointError) as error:
        sys.exit(f"jaxfed: {error}")
    except KeyboardInterrupt as stopped:
        told = str(stopped) or "stopped before the first round"
        print(f"jaxfed: {told} (run the same command again)", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
