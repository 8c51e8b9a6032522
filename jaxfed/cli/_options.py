"""Options of several commands: algorithm, rounds, execution."""

import dataclasses
import inspect
import json
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

import jaxfed
from jaxfed.cli._shakespeare import LearningTask
from jaxfed.core.checks import check_choice
from jaxfed.core.protocol import Plan
from jaxfed.core.samplers import Sampler
from jaxfed.core.types import LossFn, Params
from jaxfed.layout.plans import named
from jaxfed.rows import Store

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]
PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "numpy")
STORES = ("device", "host", "disk")


@dataclasses.dataclass(frozen=True)
class Hyperparameters:
    """An algorithm and its hyperparameters; None leaves the algorithm's default.

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
class Rounds:
    """Clients, rounds and local steps.

    Attributes:
        clients: number of clients; without --data each is a Shakespeare role.
        rounds: communication rounds in total; more than before continues a run.
        cohort_size: clients per round.
        local_steps: steps of a client per round.
        batch_size: samples per step.
    """

    clients: int = 32
    rounds: int = 60
    cohort_size: int = 8
    local_steps: int = 10
    batch_size: int = 32


@dataclasses.dataclass(frozen=True)
class Execution:
    """How rounds are computed; results agree to rounding.

    Attributes:
        plan: vmap (all clients of a round at once), map (one by one), chunked(4) (four at once), or auto: the fastest.
        store: where the rows of all clients are kept between rounds: device, host or disk.
    """

    plan: str = "vmap"
    store: str = "device"


def check_execution(execution: Execution) -> None:
    """Raise ValueError, with the nearest name, for a plan or a store that does not exist."""
    check_choice("store", execution.store, STORES)
    if execution.plan != "auto":
        named(execution.plan)


def build(method: Hyperparameters, loss_fn: LossFn) -> jaxfed.FederatedAlgorithm:
    """Build the algorithm with its hyperparameters.

    Raises:
        ValueError: an unknown algorithm, with the nearest name, or a hyperparameter that it does not have.
    """
    chosen = {name: value for name, value in dataclasses.asdict(method).items() if value is not None}
    del chosen["algorithm"]
    if strange := sorted(chosen.keys() - has(method.algorithm)):
        raise ValueError(f"expected hyperparameters of {method.algorithm}, got {', '.join(strange)}; leave it out")
    return jaxfed.algorithms.get(method.algorithm)(loss_fn, **chosen)


def has(algorithm: str) -> set[str]:
    """Return the argument names of an algorithm. Raises ValueError, with the nearest name, for an unknown algorithm."""
    return set(inspect.signature(jaxfed.algorithms.get(algorithm)).parameters)


def federate(
    task: LearningTask,
    algorithm: jaxfed.FederatedAlgorithm,
    schedule: Rounds,
    execution: Execution,
    out: Path,
    *,
    sampler: Sampler,
    every: int,
    seed: int,
) -> tuple[Params, jaxfed.History]:
    """Run all rounds, or those that are left, with checkpoints in ``out``; return parameters and history.

    The history is written into ``out`` as well. `every` is the number of rounds between two evaluations.
    """
    plan: Plan | Literal["auto"] = "auto" if execution.plan == "auto" else named(execution.plan)
    server, history = jaxfed.simulate(
        algorithm,
        algorithm.init(task.params, len(task.data.lengths)),
        task.data,
        rounds=schedule.rounds,
        batching=jaxfed.Steps(schedule.local_steps, schedule.batch_size),
        sampler=sampler,
        layout=jaxfed.Layout(plan, store=store(execution.store, out)),
        seed=seed,
        report=jaxfed.Report(task.evaluate, every),
        checkpoint=jaxfed.Checkpointing(out / "checkpoints", every=max(1, schedule.rounds // 5)),
    )
    (out / "history.json").write_text(json.dumps(history.to_dict()))
    history.to_csv(out / "history.csv")
    return server.params, history


def store(name: str, out: Path) -> Store:
    """Return the store named "device", "host" or "disk"; on disk the rows are in ``out``/rows."""
    check_choice("store", name, STORES)
    if name == "disk":
        return jaxfed.DiskStore(out / "rows")
    return jaxfed.HostStore() if name == "host" else jaxfed.DeviceStore()


def versions() -> dict[str, str]:
    """Return versions of Python and of the packages that results depend on."""
    return {"python": sys.version.split()[0], **{name: version(name) for name in PACKAGES}}


def numbers(measured: Mapping[str, Any]) -> dict[str, float]:
    """Return "loss", "accuracy" and "accuracy/worst_10%" as plain numbers."""
    plain = {name.removeprefix("unseen_"): float(value) for name, value in measured.items()}
    return {name: plain[name] for name in ("loss", "accuracy", "accuracy/worst_10%") if name in plain}
