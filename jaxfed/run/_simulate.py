"""The host loop: rounds, evaluation, progress, checkpoints. The only impure module beside `checkpoint`."""

import dataclasses
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array
from numpy.typing import ArrayLike
from tqdm.auto import tqdm

from jaxfed.core.checks import check_choice, check_range, python_number
from jaxfed.core.protocol import FederatedAlgorithm, Plan, RoundInfo, Server
from jaxfed.core.samplers import FixedSize, Sampler, cohorts, first_cohort, recorded
from jaxfed.core.types import Params
from jaxfed.data.batches import ClientData, Epochs, Steps
from jaxfed.layout import plans
from jaxfed.layout.plans import Sharded, check_divides, vmap
from jaxfed.layout.sharding import Shardings
from jaxfed.messages import check_cohorts
from jaxfed.rows import DeviceStore
from jaxfed.rows.choose import AnyStore, Draw, Engine, Start, engine
from jaxfed.rows.rounds import Recipe, World
from jaxfed.run import _fingerprints as fingerprints
from jaxfed.run import identity
from jaxfed.run._autoplan import Trial, fastest
from jaxfed.run.history import History, RunState
from jaxfed.run.probing import examine
from jaxfed.run.resume import Checkpointing, Interrupt, Saver
from jaxfed.run.state import carrying, check_alone, put_back, take, warn_if_done

TOO_FEW = (
    "a round had fewer clients with finite results than its aggregate needs, and changed nothing: it has 0 as num_used "
    "in the history; draw more clients, or let the aggregate withstand fewer poisoned ones"
)

LONGEST_BLOCK = 32
"""Rounds that are one program at most."""

Weights = Literal["uniform", "samples"] | ArrayLike
"""How much each client counts: alike, by its number of samples, or N numbers."""

Callback = Callable[[Server, RoundInfo], None]
"""Called after every round; may raise KeyboardInterrupt to stop the run as Ctrl-C does."""

Evaluate = Callable[[Params], Mapping[str, Any]]
"""`evaluate(params)` -> named numbers, such as {"accuracy": ...}."""


@dataclasses.dataclass(frozen=True)
class Report:
    """What is told after a round, and to whom."""

    evaluate: Evaluate | None
    evaluate_every: int
    callbacks: tuple[Callback, ...]

    def __post_init__(self) -> None:
        check_range("evaluate_every", self.evaluate_every, least=1)

    def due(self, done: int) -> int:
        """Rounds until somebody wants to hear: the next evaluation, or every round with callbacks."""
        return 1 if self.callbacks else _until(done, self.evaluate_every if self.evaluate else None)

    def __call__(self, history: History, server: Server, info: RoundInfo, last: bool) -> dict[str, float]:
        """Evaluate, call the callbacks with the facts of the last round; return the latest numbers for the bar."""
        done = int(server.round)
        if self.evaluate is not None and (last or done % self.evaluate_every == 0):
            history.add_evaluation(done, self.evaluate(server.params))
        for callback in self.callbacks:
            callback(server, info)
        return history.latest()


class Block(NamedTuple):
    """Rounds played at once: their facts [n, ...] on the host, and the seconds that one took, None if it compiled."""

    infos: RoundInfo
    seconds: float | None

    def add_to(self, history: History, done: int) -> RoundInfo:
        """Append all rounds, which follow on `done` others, to the history; return the facts of the last one."""
        rounds = [jax.tree.map(lambda leaf, at=at: leaf[at], self.infos) for at in range(len(self.infos.num_used))]
        for number, info in enumerate(rounds, done + 1):
            history.add_round(number, info, self.seconds)
        return rounds[-1]


class Running(NamedTuple):
    """A run under way: who plays, what was reported so far, who is drawn, and who hears of a round."""

    playing: Engine
    history: History
    report: Report
    draw: Draw
    saver: Saver
    interrupt: Interrupt
    bar: Any


class Pace:
    """How many rounds go into one block: about a second's worth, so that the bar moves and Ctrl-C is heard."""

    def __init__(self, seconds: float = 1.0) -> None:
        self._seconds, self._count, self._compiled = seconds, 1, False

    def next(self, due: int) -> int:
        """Rounds of the next block, at most `due`."""
        return min(self._count, due, LONGEST_BLOCK)

    def play(self, advance: Callable[[int], RoundInfo], count: int) -> Block:
        """Play `count` rounds and learn from how long they take; the next block is at most twice as long."""
        began = time.perf_counter()
        infos = advance(count)
        per_round = (time.perf_counter() - began) / count
        self._count = max(1, min(2 * self._count, int(self._seconds / max(per_round, 1e-6))))
        known, self._compiled = self._compiled, True
        return Block(infos, per_round if known else None)


def simulate(
    algorithm: FederatedAlgorithm,
    server: Server | RunState,
    data: ClientData,
    *,
    rounds: int,
    batch_size: int,
    local_steps: int | None = None,
    local_epochs: int | None = None,
    cohort_size: int | None = None,
    sampler: Sampler | None = None,
    client_weights: Weights = "uniform",
    store: AnyStore | None = None,
    plan: Plan | Literal["auto"] | None = None,
    mesh: Mesh | None = None,
    seed: int = 0,
    evaluate: Evaluate | None = None,
    evaluate_every: int = 1,
    callbacks: Sequence[Callback] = (),
    checkpoint: str | Path | Checkpointing | None = None,
    keep_state: bool = False,
    progress: bool = True,
) -> tuple[Server, History]:
    """Run a federated algorithm on one machine.

    The cohorts are drawn on the host, their batches on the device; rows, batches, step and the writing back of rows are
    one compiled program, and so are all rounds between two evaluations (with rows on the mesh). All randomness hangs on
    (seed, round, client, step). A later run of the same algorithm, plan and seed is not compiled again.

    Args:
      algorithm: from a factory such as `jaxfed.fedspeed`.
      server: `algorithm.init(params, num_clients)`; or a `jaxfed.RunState`, such as `history.state` of a run with
        `keep_state`, to go on from it bit for bit. A server alone that has done rounds will do only where clients keep
        nothing between rounds.
      data: `jaxfed.data.client_data(...)`, N clients.
      rounds: total number of rounds; a state, server or checkpoint that has done some already does the rest. Where it
        has done all of them, a warning says that nothing was trained.
      batch_size: B.
      local_steps: K steps for every client (`jaxfed.data.Steps`); or else
      local_epochs: passes over the client's samples (`jaxfed.data.Epochs`). Exactly one of the two.
      cohort_size: clients in a round, drawn without replacement; or else
      sampler: `jaxfed.CoinFlips(participation)` or another sampler. Exactly one of the two.
      client_weights: how much each client counts in the cohort's means: "uniform", "samples", or N numbers.
      store: where the clients' rows lie: `jaxfed.DeviceStore()` (default), `HostStore()`, `DiskStore(path)`.
      plan: how the cohort is laid out in time: `jaxfed.vmap()` (default), `jaxfed.chunked(size)`, `jaxfed.map()`, or
        "auto", which tries them on the first cohort and takes the fastest; a resumed run keeps its choice. Results
        agree across plans to rounding.
      mesh: devices to spread the clients of a cohort over, all axes together; its size must divide the cohort's slots.
        Results agree with those of one device to rounding.
      seed: seed of cohorts, batches and the loss function's keys.
      evaluate: `evaluate(params)` -> named numbers, into the history.
      evaluate_every: rounds between two evaluations; the last round is always evaluated.
      callbacks: each called as `callback(server, info)` after every round; with any, every round is a program's end.
      checkpoint: a directory, or `jaxfed.Checkpointing(directory, every, keep)`. If it holds checkpoints of this run,
        the same call goes on from the last good one, bit for bit as if it had never stopped. Arguments, learning rates,
        samples, and what loss function, updates and aggregate are traced to are compared with it.
      keep_state: leave the run's whole state, the rows of all clients included, in `history.state`.
      progress: show a bar.

    Returns:
      The server after the last round, and the `History`.

    Raises:
      ValueError: arguments that contradict each other, a cohort larger than the population, a server for another
        number of clients, a server that has done rounds without the rows of its clients, a checkpoint of another run
        (it names what differs), or a sampler that draws no cohort.
      FloatingPointError: a round had clients, and every one returned NaN or infinity; names round and clients.
      KeyboardInterrupt: after Ctrl-C, once the round is done and saved.

    Whatever ends a run once it has begun has an attribute `state`: the `RunState` after the last whole round, or None
    where it broke off inside one.
    """
    begun, server = (server, server.server) if isinstance(server, RunState) else (None, server)
    check_range("rounds", rounds, least=0, whole=True)
    rounds, seed = python_number(rounds), python_number(seed)
    batching, sampler = batching_of(batch_size, local_steps, local_epochs), sampler_of(cohort_size, sampler)
    num_clients = _num_clients(server, data)
    draw = cohorts(sampler, seed, num_clients)
    if mesh is not None:
        check_divides(mesh, sampler.num_slots(num_clients))
    world = World(data, weights_of(client_weights, data.lengths))
    check_cohorts(algorithm, sampler, num_clients, world.weights is not None)
    on_one_device = mesh is None and not isinstance(plan, Sharded)
    recipe = Recipe(algorithm, batching, vmap(), int(np.max(data.lengths)), seed, lazy=on_one_device)
    row = algorithm.init_client(server.params, server.model_state)
    start = Start(server, row, world, draw, Shardings.of(mesh))
    report = Report(evaluate, evaluate_every, tuple(callbacks))
    store = store or (begun.store if begun else DeviceStore())
    with (
        closing(engine(store, start, LONGEST_BLOCK)) as playing,
        Saver(checkpoint, _config(recipe, sampler, client_weights, data), _identity(recipe, sampler, start)) as saver,
        Interrupt() as interrupt,
    ):
        history = saver.resume(playing)
        if history is None and begun is None:
            check_alone(algorithm, server, row, "pass history.state of a run with keep_state=True, or its checkpoint=")
        if history is None:
            history = put_back(playing, begun, store) if begun else History()
        warn_if_done(int(playing.server.round), rounds, saver.place)
        tried = first_cohort(draw) if plan == "auto" else draw(0)
        trial = Trial(recipe, playing.server, playing.world, tried, lambda: playing.sample(tried))
        with (
            carrying(playing, store, history),
            tqdm(total=rounds, desc="rounds", initial=int(playing.server.round), disable=not progress) as bar,
        ):
            recipe = dataclasses.replace(recipe, plan=_plan(plan, history.plan, mesh, trial))
            examine(recipe, playing.server, data, rounds)
            playing.prepare(recipe)
            history.plan = plans.name_of(recipe.plan)
            try:
                _play(Running(playing, history, report, draw, saver, interrupt, bar), rounds)
            except KeyboardInterrupt as stopped:
                raise saver.interrupted(playing, history, stopped) from None
        history.state = take(playing, store, history) if keep_state else None
        return playing.server, history


def _play(running: "Running", rounds: int) -> None:
    """Play until so many rounds are done, one block after the other."""
    playing, history, pace = running.playing, running.history, Pace()
    while (done := int(playing.server.round)) < rounds:
        count = pace.next(min(running.report.due(done), _until(done, running.saver.every), rounds - done))
        played = pace.play(playing.advance, count)
        info, last = played.add_to(history, done), done + count >= rounds
        check_finite(played.infos, done, running.draw)
        running.bar.update(count)
        running.bar.set_postfix(running.report(history, playing.server, info, last), refresh=False)
        running.saver.save(playing, history, now=last)
        running.interrupt.check()
    running.saver.wait()


def _until(done: int, every: int | None) -> int:
    """Rounds from `done` to the next multiple of `every`."""
    return LONGEST_BLOCK if every is None else every - done % every


def check_finite(infos: RoundInfo, first: int, draw: Draw) -> None:
    """Raise FloatingPointError, with round and clients, if a round had clients and not one finite result.

    Warn of a round that had some, but fewer than the aggregate needs.

    Args:
      infos: facts of rounds, leaves [n, ...].
      first: number of the first of them.
      draw: the cohort of a round.
    """
    for number in np.flatnonzero(infos.num_used == 0):
        ids, excluded = draw(first + int(number)), infos.excluded[number]
        if np.any((ids >= 0) & ~excluded):
            warnings.warn(TOO_FEW, stacklevel=3)
        elif excluded.any():
            raise diverged(first + int(number), ids[excluded])


def diverged(number: int, clients: np.ndarray) -> FloatingPointError:
    """The error of a round without one finite result."""
    return FloatingPointError(
        f"round {number}: every client returned NaN or infinity: clients {clients.tolist()}; "
        "lower client_learning_rate, set clip_norm, or look at their data"
    )


def batching_of(batch_size: int, local_steps: int | None, local_epochs: int | None) -> Steps | Epochs:
    """The batching that was asked for. Raises ValueError unless one of the two numbers is given."""
    if local_steps is not None and local_epochs is None:
        return Steps(local_steps, batch_size)
    if local_epochs is not None and local_steps is None:
        return Epochs(local_epochs, batch_size)
    raise ValueError(f"expected one of local_steps and local_epochs, got {local_steps} and {local_epochs}")


def sampler_of(cohort_size: int | None, sampler: Sampler | None) -> Sampler:
    """The sampler that was asked for. Raises ValueError unless one of the two is given."""
    if cohort_size is not None and sampler is None:
        return FixedSize(cohort_size)
    if sampler is not None and cohort_size is None:
        return sampler
    raise ValueError(f"expected one of cohort_size and sampler, got {cohort_size} and {sampler}")


def _num_clients(server: Server, data: ClientData) -> int:
    expected, got = int(server.num_clients), len(data.lengths)
    if expected != got:
        raise ValueError(f"the server was made for {expected} clients, the data has {got}; call init(params, {got})")
    return got


def weights_of(client_weights: Weights, lengths: ArrayLike) -> Array | None:
    """Weights of all clients, [N], or None where all count alike, from their numbers of samples.

    Raises ValueError for anything else than `simulate` takes.
    """
    if isinstance(client_weights, str):
        check_choice("client_weights", client_weights, ("uniform", "samples"))
        return None if client_weights == "uniform" else jnp.asarray(lengths, jnp.float32)
    given = np.asarray(client_weights, np.float32)
    if given.shape != np.shape(lengths) or not np.all(np.isfinite(given) & (given > 0)):
        raise ValueError(f"client_weights must be 'uniform', 'samples' or {np.size(lengths)} finite numbers > 0")
    return jnp.asarray(given)


def _plan(plan: Plan | Literal["auto"] | None, known: str | None, mesh: Mesh | None, trial: Trial) -> Plan:
    """The plan of a run: what was asked for, what a run that is resumed had found, or what is fastest here."""
    if isinstance(plan, str):
        check_choice("plan", plan, ("auto",))
        plan = plans.named(known) if known else fastest(trial, plans.candidates(trial.slots, mesh), mesh)
    plan = plan or vmap()
    return Sharded(mesh, plan) if mesh is not None and not isinstance(plan, Sharded) else plan


def _identity(recipe: Recipe, sampler: Sampler, start: Start) -> Callable[[identity.Identity], identity.Identity]:
    """What a run is beside its arguments; traced at the first call."""

    @cache
    def made() -> identity.Identity:
        slots, data = sampler.num_slots(start.num_clients), start.world.data
        found = identity.of_run(recipe.algorithm, start.server, data, recipe.batching, slots)
        found["starting parameters"] = identity.of_start(start.server)
        return {**found, "cohorts": identity.of_cohorts(sampler, recipe.seed, start.num_clients)}

    return lambda saved: made()


def _config(recipe: Recipe, sampler: Sampler, client_weights: Weights, data: ClientData) -> dict[str, Any]:
    lengths = np.ascontiguousarray(data.lengths, np.int64)
    return {
        **config_of(recipe, sampler, client_weights, len(lengths)),
        "lengths": fingerprints.of_bytes(lengths),
        **({} if data.order is None else {"order": fingerprints.of_bytes(np.asarray(data.order))}),
    }


def config_of(recipe: Recipe, sampler: Sampler, client_weights: Weights, num_clients: int) -> dict[str, Any]:
    """What must agree between a run and its checkpoints for the rounds to be those of one run, the data left out."""
    numbers = None if isinstance(client_weights, str) else np.asarray(client_weights, np.float32)
    return {
        **recipe.algorithm.hyperparameters,
        "batching": repr(recipe.batching),
        "sampler": fingerprints.without_address(recorded(sampler)),
        "client_weights": client_weights if numbers is None else fingerprints.of_bytes(numbers),
        "seed": recipe.seed,
        "clients": num_clients,
    }
