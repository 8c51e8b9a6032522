"""``jaxfed run``: one algorithm on the embedded text, with checkpoints and a picture."""

import dataclasses
import json as jsons
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import tyro

import jaxfed
from jaxfed import plot
from jaxfed.cli._options import (
    Execution,
    Flag,
    Hyperparameters,
    Rounds,
    build,
    check_execution,
    federate,
    numbers,
    versions,
)
from jaxfed.cli._sending import Sending, guarantee, sampler_of, with_sending
from jaxfed.cli._shakespeare import next_character

Numbers = Mapping[str, float]


def run(
    method: Annotated[Hyperparameters, tyro.conf.arg(name="")] = Hyperparameters(),
    schedule: Annotated[Rounds, tyro.conf.arg(name="")] = Rounds(),
    execution: Annotated[Execution, tyro.conf.arg(name="")] = Execution(),
    sending: Annotated[Sending, tyro.conf.arg(name="")] = Sending(),
    seed: int = 0,
    out: Path | None = None,
    json: Flag = False,  # noqa: A002  the flag is called --json
) -> None:
    """Federate a small next-character model over Shakespeare's roles; the same command resumes an interrupted run.

    Args:
        method: the algorithm and its hyperparameters.
        schedule: clients, rounds and local steps.
        execution: plan and store.
        sending: what clients send.
        seed: of the initial parameters, cohorts and batches.
        out: folder for checkpoints, history.json, history.csv and run.png; default out/<algorithm>.
        json: end with one JSON object on one line.
    """
    began, out = time.perf_counter(), out or Path("out") / method.algorithm
    jaxfed.algorithms.get(method.algorithm)
    check_execution(execution)
    task = next_character(schedule.clients, seed)
    algorithm = with_sending(build(method, task.loss_fn), sending, schedule)
    private = guarantee(sending, schedule)
    sampler, every = sampler_of(sending, schedule), max(1, schedule.rounds // 15)
    params, history = federate(task, algorithm, schedule, execution, out, sampler=sampler, every=every, seed=seed)
    before, after = (numbers(task.evaluate(each)) for each in (task.params, params))
    plot.curves(panels(history, before), out / "run.png")
    settings: dict[str, Any] = {"seed": seed, "privacy": private and dataclasses.asdict(private)}
    for part in (method, schedule, execution, sending):
        settings |= dataclasses.asdict(part)
    facts = report(settings, history, before, after) | {"seconds": round(time.perf_counter() - began, 1)}
    print(f"{method.algorithm}, {facts['rounds']} rounds: {sentence(before, after)}; history.json and run.png in {out}")
    if private:
        print(f"what was sent is {private}")
    if json:
        print(jsons.dumps(facts))


def panels(history: jaxfed.History, before: Numbers) -> dict[str, dict[str, tuple[list[int], list[float]]]]:
    """Return the curves of the picture: accuracy and loss on unseen text from round 0, and while training."""
    trained, evaluated = history.rounds, history.evaluations
    rounds = [0, *evaluated.get("round", [])]
    drawn = {
        label: {
            "clients' own batches": (trained.get("round", []), trained.get(column, [])),
            "unseen text": (rounds, [before[name], *evaluated.get(f"unseen_{name}", [])]),
        }
        for label, name, column in (
            ("accuracy of the next character", "accuracy", "aux/accuracy"),
            ("loss (nats per character)", "loss", "loss"),
        )
    }
    worst = "accuracy/worst_10%"
    if worst in before and f"unseen_{worst}" in evaluated:
        drawn["accuracy of the next character"]["unseen text, worst tenth of the clients"] = (
            rounds,
            [before[worst], *evaluated[f"unseen_{worst}"]],
        )
    return drawn


def report(settings: Mapping[str, Any], history: jaxfed.History, before: Numbers, after: Numbers) -> dict[str, Any]:
    """Return what ``--json`` prints but the time: final numbers on unseen text, those before, settings, versions."""
    done = history.rounds.get("round", [0])[-1]
    sent = history.last_known("sent_bytes")
    known = {"plan": history.plan, "rounds": done, "sent_bytes": sent, "versions": versions()}
    return {**after, "before": dict(before), **settings, **known}


def sentence(before: Numbers, after: Numbers) -> str:
    """Return a sentence on how the numbers on unseen text changed."""
    changes = [f"{name} {before[name]:.3f} → {after[name]:.3f}" for name in ("accuracy", "loss")]
    return f"on the roles' unseen text {', '.join(changes)}"
