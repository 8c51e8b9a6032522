"""What several commands are told: the algorithm, who trains and how much, and how it is computed."""

import dataclasses
import inspect
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import tyro

import jaxfed
from jaxfed.cli._shakespeare import Problem
from jaxfed.core.checks import check_choice
from jaxfed.core.types import LossFn
from jaxfed.layout.plans import named
from jaxfed.rows.choose import AnyStore

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]
PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "numpy")
STORES = ("device", "host", "disk")


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
        clients: how many there are; without --data each is a Shakespeare role.
        rounds: communication rounds in total; more than before continues a run.
        cohort_size: clients a round.
        local_steps: steps of a client a round.
        batch_size: samples a step.
    """

    clients: int = 32
    rounds: int = 60
    cohort_size: int = 8
    local_steps: int = 10
    batch_size: int = 32


@dataclasses.dataclass(frozen=True)
class Execution:
    """How it is computed; the numbers that come out agree.

    Attributes:
        plan: vmap (all clients of a round at once), map (one by one), chunked(4) (four at once), or auto: the fastest.
        store: where clients that are not in the round keep what they remember: device, host or disk.
    """

    plan: str = "vmap"
    store: str = "device"


def check_execution(execution: Execution) -> None:
    """Raise ValueError, with the nearest name, for a plan or a store that does not exist."""
    check_choice("store", execution.store, STORES)
    if execution.plan != "auto":
        named(execution.plan)


def build(method: Method, loss_fn: LossFn) -> jaxfed.FederatedAlgorithm:
    """Build the algorithm with the hyperparameters that were given.

    Raises:
        ValueError: an unknown algorithm, with the nearest name, or a hyperparameter that it does not have.
    """
    given = {name: value for name, value in dataclasses.asdict(method).items() if value is not None}
    del given["algorithm"]
    if strange := sorted(given.keys() - has(method.algorithm)):
        raise ValueError(f"expected hyperparameters of {method.algorithm}, got {', '.join(strange)}; leave it out")
    return jaxfed.algorithms.get(method.algorithm)(loss_fn, **given)


def has(algorithm: str) -> set[str]:
    """Names of what an algorithm takes. Raises ValueError, with the nearest name, if there is no such algorithm."""
    return set(inspect.signature(jaxfed.algorithms.get(algorithm)).parameters)


def federate(
    problem: Problem,
    algorithm: jaxfed.FederatedAlgorithm,
    schedule: Schedule,
    execution: Execution,
    out: Path,
    **options: Any,
) -> tuple[Any, jaxfed.History]:
    """Run all rounds, or those that are left, with checkpoints in ``out``; return parameters and history.

    `options` are those of `jaxfed.simulate`, such as the seed and who is drawn.
    """
    plan: Any = "auto" if execution.plan == "auto" else named(execution.plan)
    server, history = jaxfed.simulate(
        algorithm,
        algorithm.init(problem.params, len(problem.data.lengths)),
        problem.data,
        rounds=schedule.rounds,
        local_steps=schedule.local_steps,
        batch_size=schedule.batch_size,
        plan=plan,
        store=store(execution.store, out),
        evaluate=problem.evaluate,
        checkpoint=jaxfed.Checkpointing(out / "checkpoints", every=max(1, schedule.rounds // 5)),
        **options,
    )
    return server.params, history


def store(name: str, out: Path) -> AnyStore:
    """The store called "device", "host" or "disk"; on disk the rows lie in ``out``/rows."""
    check_choice("store", name, STORES)
    if name == "disk":
        return jaxfed.DiskStore(out / "rows")
    return jaxfed.HostStore() if name == "host" else jaxfed.DeviceStore()


def versions() -> dict[str, str]:
    """Versions of Python and of what numbers depend on."""
    return {"python": sys.version.split()[0], **{name: version(name) for name in PACKAGES}}


def numbers(measured: Mapping[str, Any]) -> dict[str, float]:
    """Return "loss", "accuracy" and "accuracy/worst_10%" as plain numbers."""
    told = {name.removeprefix("unseen_"): float(value) for name, value in measured.items()}
    return {name: told[name] for name in ("loss", "accuracy", "accuracy/worst_10%") if name in told}
