"""The host loop: rounds, evaluation, progress, checkpoints. The only impure module beside `checkpoint`."""

import dataclasses
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array
from numpy.typing import ArrayLike
from tqdm.auto import tqdm

from jaxfed import plans
from jaxfed.algorithm import FederatedAlgorithm, Plan, RoundInfo, Server
from jaxfed.autoplan import Trial, fastest
from jaxfed.checks import check_choice, check_range
from jaxfed.data.batches import ClientData, Epochs, Steps
from jaxfed.engines import AnyStore, Draw, Start, engine
from jaxfed.history import History
from jaxfed.places import Places
from jaxfed.plans import Sharded, check_divides, vmap
from jaxfed.resume import Checkpointing, Interrupt, Saver
from jaxfed.rounds import Recipe, World
from jaxfed.samplers import FixedSize, Sampler
from jaxfed.stores import DeviceStore
from jaxfed.types import Params

LONGEST_BLOCK = 32
"""Rounds that are one program at most."""

Weights = Literal["uniform", "samples"] | ArrayLike

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

    def __call__(self, history: History, server: Server, block: "Block", last: bool) -> dict[str, float]:
        """Fill the history with the rounds of a block, call the callbacks; return the latest numbers for the bar."""
        done = int(server.round)
        count = len(block.infos.num_used)
        rounds = [jax.tree.map(lambda leaf, at=at: leaf[at], block.infos) for at in range(count)]
        for number, info in enumerate(rounds, done - count + 1):
            history.add_round(number, info, block.seconds)
        if self.evaluate is not None and (last or done % self.evaluate_every == 0):
            history.add_evaluation(done, self.evaluate(server.params))
        for callback in self.callbacks:
            callback(server, rounds[-1])
        return history.latest()


class Block(NamedTuple):
    """Rounds played at once: their facts [n, ...] on the host, and the seconds that one took, None if it compiled."""

    infos: RoundInfo
    seconds: float | None


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
    server: Server,
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
    progress: bool = True,
) -> tuple[Server, History]:
    """Run a federated algorithm on one machine.

    The cohorts are drawn on the host, their batches on the device; rows, batches, step and the writing back of rows are
    one compiled program, and so are all rounds between two evaluations (with rows on the mesh). All randomness hangs on
    (seed, round, client, step). A later run of the same algorithm, plan and seed is not compiled again.

    Args:
      algorithm: from a factory such as `jaxfed.fedspeed`.
      server: `algorithm.init(params, num_clients)`.
      data: `jaxfed.data.client_data(...)`, N clients.
      rounds: total number of rounds; a server (or a checkpoint) that has done some already does the rest.
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
        the same call goes on from the last good one, bit for bit as if it had never stopped.
      progress: show a bar.

    Returns:
      The server after the last round, and the `History`.

    Raises:
      ValueError: arguments that contradict each other, a cohort larger than the population, a server for another
        number of clients, or a checkpoint of a run with other arguments.
      FloatingPointError: every client of a round returned NaN or infinity; names round and clients.
      KeyboardInterrupt: after Ctrl-C, once the round is done and saved.
    """
    check_range("rounds", rounds, least=0)
    batching, sampler = batching_of(batch_size, local_steps, local_epochs), sampler_of(cohort_size, sampler)
    num_clients = _num_clients(server, data)
    slots = sampler.num_slots(num_clients)
    if mesh is not None:
        check_divides(mesh, slots)
    world = World(data, weights_of(client_weights, data.lengths))
    on_one_device = mesh is None and not isinstance(plan, Sharded)
    recipe = Recipe(algorithm, batching, vmap(), int(np.max(data.lengths)), seed, lazy=on_one_device)
    row = algorithm.init_client(server.params, server.model_state)
    start = Start(server, row, world, lambda number: sampler.draw(seed, number, num_clients), Places.of(mesh))
    report = Report(evaluate, evaluate_every, tuple(callbacks))
    with (
        closing(engine(store or DeviceStore(), start, LONGEST_BLOCK)) as playing,
        Saver(checkpoint, _config(recipe, sampler, client_weights, data)) as saver,
        Interrupt() as interrupt,
    ):
        history = saver.resume(playing)
        trial = Trial(recipe, playing.server, playing.world, start.draw(0), lambda: playing.sample(start.draw(0)))
        recipe = dataclasses.replace(recipe, plan=_plan(plan, history.plan, mesh, trial))
        playing.prepare(recipe)
        history.plan = plans.name_of(recipe.plan)
        bar = tqdm(total=rounds, desc="rounds", initial=int(playing.server.round), disable=not progress)
        pace = Pace()
        try:
            while (done := int(playing.server.round)) < rounds:
                count = pace.next(min(report.due(done), _until(done, saver.every), rounds - done))
                played = pace.play(playing.advance, count)
                _check_finite(played.infos, done, start.draw)
                bar.update(count)
                last = done + count >= rounds
                bar.set_postfix(report(history, playing.server, played, last), refresh=False)
                saver.save(playing, history, now=last)
                interrupt.check()
        except KeyboardInterrupt as stopped:
            raise saver.interrupted(playing, history, stopped) from None
        finally:
            bar.close()
        return playing.server, history


def _until(done: int, every: int | None) -> int:
    """Rounds from `done` to the next multiple of `every`."""
    return LONGEST_BLOCK if every is None else every - done % every


def _check_finite(infos: RoundInfo, first: int, draw: Draw) -> None:
    """Raise FloatingPointError, with round and clients, if a round had clients and not one finite result."""
    for number in np.flatnonzero((infos.num_used == 0) & infos.excluded.any(axis=1)):
        clients = draw(first + int(number))[infos.excluded[number]].tolist()
        raise FloatingPointError(
            f"round {first + number}: every client returned NaN or infinity: clients {clients}; "
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


def _config(recipe: Recipe, sampler: Sampler, client_weights: Weights, data: ClientData) -> dict[str, Any]:
    lengths = np.ascontiguousarray(data.lengths, np.int64)
    return {
        **config_of(recipe, sampler, client_weights, len(lengths)),
        "lengths": _digest(lengths),
        **({} if data.order is None else {"order": _digest(np.asarray(data.order))}),
    }


def config_of(recipe: Recipe, sampler: Sampler, client_weights: Weights, num_clients: int) -> dict[str, Any]:
    """What must agree between a run and its checkpoints for the rounds to be those of one run, the data left out."""
    weights = client_weights if isinstance(client_weights, str) else _digest(np.asarray(client_weights, np.float32))
    return {
        **recipe.algorithm.hyperparameters,
        "batching": repr(recipe.batching),
        "sampler": repr(sampler),
        "client_weights": weights,
        "seed": recipe.seed,
        "clients": num_clients,
    }


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()[:16]
