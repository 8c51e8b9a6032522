"""The host loop: rounds, evaluation, progress, checkpoints. The only impure module beside `checkpoint`."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree
from tqdm.auto import tqdm

from jaxfed.algorithm import Cohort, FederatedAlgorithm, Plan, RoundInfo, Server
from jaxfed.checks import check_range
from jaxfed.data.batches import Batching, ClientData, Epochs, Steps, draw_batches
from jaxfed.history import History
from jaxfed.plans import vmap
from jaxfed.resume import Checkpointing, Interrupt, RunState, Saver
from jaxfed.samplers import FixedSize, Sampler
from jaxfed.stores import DeviceStore, Store
from jaxfed.types import Params

Callback = Callable[[Server, RoundInfo], None]
"""Called after every round; may raise KeyboardInterrupt to stop the run as Ctrl-C does."""

Evaluate = Callable[[Params], Mapping[str, Any]]
"""`evaluate(params)` -> named numbers, such as {"accuracy": ...}."""


@dataclasses.dataclass(frozen=True)
class Run:
    """Static configuration of a run: what a round is made of."""

    algorithm: FederatedAlgorithm
    batching: Batching
    sampler: Sampler
    store: Store
    plan: Plan
    longest: int
    seed: int


@dataclasses.dataclass(frozen=True)
class Report:
    """What is told after a round, and to whom."""

    evaluate: Evaluate | None
    evaluate_every: int
    callbacks: tuple[Callback, ...]

    def __post_init__(self) -> None:
        check_range("evaluate_every", self.evaluate_every, least=1)

    def __call__(self, history: History, server: Server, info: RoundInfo, last: bool) -> dict[str, float]:
        """Fill the history, call the callbacks; return the latest numbers for the bar."""
        done = int(server.round)
        history.add_round(done, info)
        if self.evaluate is not None and (last or done % self.evaluate_every == 0):
            history.add_evaluation(done, self.evaluate(server.params))
        for callback in self.callbacks:
            callback(server, info)
        return history.latest()


def compiled_round(run: Run) -> Callable[[RunState, ClientData, Array], tuple[RunState, RoundInfo]]:
    """One whole round as one compiled program: rows and batches gathered, step, rows scattered.

    The store's state is donated: its rows are updated in place.
    """

    def one_round(rows: PyTree, server: Server, data: ClientData, ids: Array) -> tuple[RunState, RoundInfo]:
        train_key, batch_key = jax.random.split(jax.random.key(run.seed))
        batch_key = jax.random.fold_in(batch_key, server.round)
        batches = draw_batches(data, ids, batch_key, run.batching, run.longest)
        cohort = Cohort(ids, run.store.gather(rows, ids), batches)
        server, new_rows, info = run.algorithm.step(server, cohort, train_key, plan=run.plan)
        return RunState(server, run.store.scatter(rows, ids, new_rows)), info

    compiled = jax.jit(one_round, donate_argnums=0)
    return lambda state, data, ids: compiled(state.rows, state.server, data, ids)


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
    store: Store | None = None,
    plan: Plan | None = None,
    mesh: Mesh | None = None,
    seed: int = 0,
    evaluate: Evaluate | None = None,
    evaluate_every: int = 1,
    callbacks: Sequence[Callback] = (),
    checkpoint: str | Path | Checkpointing | None = None,
    progress: bool = True,
) -> tuple[Server, History]:
    """Run a federated algorithm on one machine.

    The cohort of a round is drawn on the host, its batches on the device; rows, batches, step and the writing back of
    rows are one compiled program. All randomness hangs on (seed, round, client, step).

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
      store: holds the clients' rows; default on the device.
      plan: how the cohort is laid out in time; default `jaxfed.vmap()`.
      mesh: devices to spread the clients of a cohort over, all axes together; its size must divide the cohort's slots.
        Results agree with those of one device to rounding.
      seed: seed of cohorts, batches and the loss function's keys.
      evaluate: `evaluate(params)` -> named numbers, into the history.
      evaluate_every: rounds between two evaluations; the last round is always evaluated.
      callbacks: each called as `callback(server, info)` after every round.
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
    batching, sampler = _batching(batch_size, local_steps, local_epochs), _sampler(cohort_size, sampler)
    run = Run(algorithm, batching, sampler, store or DeviceStore(), plan or vmap(), int(np.max(data.lengths)), seed)
    report = Report(evaluate, evaluate_every, tuple(callbacks))
    state, data, place = _place(mesh, run, server, data)
    with Saver(checkpoint, _config(run, data)) as saver, Interrupt() as interrupt:
        state, history = saver.resume(state)
        played = _play(run, state, data, place, rounds)
        bar = tqdm(played, "rounds", rounds, initial=int(state.server.round), disable=not progress)
        try:
            for state, info in bar:
                last = int(state.server.round) >= rounds
                bar.set_postfix(report(history, state.server, info, last), refresh=False)
                saver.save(state, history, now=last)
                interrupt.check()
        except KeyboardInterrupt as stopped:
            raise saver.interrupted(state, history, stopped) from None
    return state.server, history


def _play(
    run: Run, state: RunState, data: ClientData, place: Callable[[np.ndarray], Array], rounds: int
) -> Iterator[tuple[RunState, RoundInfo]]:
    """Play rounds until `rounds` are done; yields the state after each, and its facts on the host."""
    one_round = compiled_round(run)
    for number in range(int(state.server.round), rounds):
        ids = run.sampler.draw(run.seed, number, len(data.lengths))
        state, on_device = one_round(state, data, place(ids))
        info = jax.device_get(on_device)
        if np.any(info.excluded) and not info.num_used:
            raise FloatingPointError(
                f"round {number}: every client returned NaN or infinity: clients {ids[info.excluded].tolist()}; "
                "lower client_learning_rate, set clip_norm, or look at their data"
            )
        yield state, info


def _batching(batch_size: int, local_steps: int | None, local_epochs: int | None) -> Batching:
    if local_steps is not None and local_epochs is None:
        return Steps(local_steps, batch_size)
    if local_epochs is not None and local_steps is None:
        return Epochs(local_epochs, batch_size)
    raise ValueError(f"expected one of local_steps and local_epochs, got {local_steps} and {local_epochs}")


def _sampler(cohort_size: int | None, sampler: Sampler | None) -> Sampler:
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


def _config(run: Run, data: ClientData) -> dict[str, Any]:
    """What must agree between a run and its checkpoints for the rounds to be those of one run."""
    return {
        **run.algorithm.hyperparameters,
        "batching": repr(run.batching),
        "sampler": repr(run.sampler),
        "seed": run.seed,
        "lengths": np.asarray(data.lengths).tolist(),
    }


def _place(
    mesh: Mesh | None, run: Run, server: Server, data: ClientData
) -> tuple[RunState, ClientData, Callable[[np.ndarray], Array]]:
    """Everything on every device of the mesh, except that the slots of a cohort are spread over all of them."""
    num_clients = _num_clients(server, data)
    slots = run.sampler.num_slots(num_clients)
    state = RunState(server, run.store.init(run.algorithm.init_client(server.params), num_clients))
    if mesh is None:
        return state, data, jax.device_put
    if slots % mesh.size:
        raise ValueError(f"a mesh of {mesh.size} devices must divide the cohort's {slots} slots; change one of them")
    automatic = Mesh(mesh.devices, mesh.axis_names)
    everywhere = NamedSharding(automatic, PartitionSpec())
    spread = NamedSharding(automatic, PartitionSpec(automatic.axis_names))
    state, data = jax.device_put((state, data), everywhere)
    return state, data, lambda ids: jax.device_put(ids, spread)
