"""The host loop: rounds, evaluation, progress, checkpoints."""

import dataclasses
import time
import warnings
from collections.abc import Callable
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm.auto import tqdm

from jaxfed.core.checks import check_range, python_number
from jaxfed.core.protocol import FederatedAlgorithm, Plan, RoundInfo, Server
from jaxfed.core.samplers import Sampler, checked_weights, cohorts, first_cohort, recorded, weights_of
from jaxfed.data.batches import ClientData
from jaxfed.data.batching import Batching
from jaxfed.data.streams import on_host
from jaxfed.layout import plans
from jaxfed.layout.plans import Sharded, check_divides, vmap
from jaxfed.layout.sharding import Shardings, slowest
from jaxfed.messages import check_cohorts
from jaxfed.rows import DeviceStore, HostStore
from jaxfed.rows.engine import LONGEST_BLOCK, Draw, Engine, Start, Store
from jaxfed.rows.rounds import RoundConfig, World
from jaxfed.run import _fingerprints as fingerprints
from jaxfed.run import identity
from jaxfed.run._autoplan import Trial, fastest
from jaxfed.run.history import History, RunState
from jaxfed.run.probing import examine
from jaxfed.run.resume import Checkpointing, Interrupt, Saver
from jaxfed.run.settings import Layout, Report, rounds_until
from jaxfed.run.state import carrying, check_alone, check_clients, diverged, first_row, put_back, take, warn_if_done

TOO_FEW = (
    "a round had fewer clients with finite results than its aggregate needs, and changed nothing: it has 0 as num_used "
    "in the history; draw more clients, or let the aggregate withstand fewer poisoned ones"
)


class Pace:
    """Number of rounds in one block: about a second of them, so that the bar moves and Ctrl-C is handled."""

    def __init__(self, mesh: Mesh | None, seconds: float = 1.0) -> None:
        self._mesh, self._seconds, self._count, self._compiled = mesh, seconds, 1, False

    def next(self, due: int) -> int:
        """Return the number of rounds of the next block, at most `due`."""
        return min(self._count, due, LONGEST_BLOCK)

    def play(self, advance: Callable[[int], RoundInfo], count: int) -> tuple[RoundInfo, float | None]:
        """Play `count` rounds; return their infos [count, ...] and the seconds of each, None if compilation is part.

        The next block is at most twice as long.
        """
        began = time.perf_counter()
        infos = advance(count)
        per_round = slowest((time.perf_counter() - began) / count, self._mesh)
        self._count = max(1, min(2 * self._count, int(self._seconds / max(per_round, 1e-6))))
        compiled, self._compiled = self._compiled, True
        return infos, per_round if compiled else None


def simulate(
    algorithm: FederatedAlgorithm,
    server: Server | RunState,
    data: ClientData,
    *,
    rounds: int,
    batching: Batching,
    sampler: Sampler,
    layout: Layout = Layout(),
    seed: int = 0,
    report: Report = Report(),
    checkpoint: str | Path | Checkpointing | None = None,
) -> tuple[Server, History]:
    """Run a federated algorithm on one machine.

    The cohorts are drawn on the host, their batches on the device. Rows, batches, step and the writing back of rows are
    one compiled program; with rows on the mesh so are all rounds between two evaluations. All randomness depends on
    (seed, round, client, step) alone. A later run of the same algorithm, plan and seed is not compiled again.

    Args:
        algorithm: from a factory such as `jaxfed.fedspeed`.
        server: `algorithm.init(params, num_clients)`; or a `jaxfed.RunState`, such as `history.state` of a run with
            `Report(keep_state=True)`, to continue it bit for bit. A server alone that has done rounds is accepted only
            where clients keep nothing between rounds.
        data: `jaxfed.data.client_data(...)`, N clients; or `streamed(...)`, whose samples stay on the host.
        rounds: total number of rounds; a state, server or checkpoint that has done some does the rest. Where it has
            done all of them, nothing is trained, with a `NothingTrainedWarning`.
        batching: `jaxfed.Steps(local_steps, batch_size)` or `jaxfed.Epochs(local_epochs, batch_size)`.
        sampler: `jaxfed.FixedSize(cohort_size)`, `jaxfed.CoinFlips(participation)` or another sampler, with the
            `weights` of the clients in the means.
        layout: plan, mesh and store.
        seed: seed of cohorts, batches and the loss function's keys.
        report: evaluation, callbacks, progress bar, and whether the history keeps the run's state.
        checkpoint: a directory, or `jaxfed.Checkpointing(directory, every, keep)`. If it holds checkpoints of this run,
            the same call continues from the last good one, bit for bit as if it had never stopped. Arguments, learning
            rates, samples, and the traced loss function, updates and aggregate are compared with it.

    Returns:
        The server after the last round, and the `History`.

    Raises:
        ValueError: arguments that contradict each other, a cohort larger than the population, a server for another
            number of clients, a server that has done rounds without the rows of its clients, a checkpoint of another
            run (it names what differs), or a sampler that draws no cohort.
        FloatingPointError: a round had clients, and every one returned NaN or infinity; names round and clients.
        KeyboardInterrupt: after Ctrl-C, once the round is done and saved.

    Every exception that ends a run has an attribute `state`: the `RunState` after the last whole round, or None where
    it was raised inside one.
    """
    begun, server = (server, server.server) if isinstance(server, RunState) else (None, server)
    check_range("rounds", rounds, least=0, whole=True)
    rounds, seed, mesh = python_number(rounds), python_number(seed), layout.mesh
    num_clients = check_clients(server, data)
    draw = cohorts(sampler, seed, num_clients)
    if mesh is not None:
        check_divides(mesh, sampler.num_slots(num_clients))
    weights = weights_of(sampler, data.lengths)
    world = World(data, None if weights is None else jnp.asarray(weights))
    check_cohorts(algorithm, sampler, num_clients, weights is not None)
    on_one_device = mesh is None and not isinstance(layout.plan, Sharded)
    config = RoundConfig(algorithm, batching, vmap(), int(np.max(data.lengths)), seed, lazy=on_one_device)
    row = first_row(algorithm, server, begun)
    start = Start(server, row, world, draw, Shardings.of(mesh))
    store = _store(layout, begun, data)
    with (
        closing(store.engine(start)) as engine,
        Saver(checkpoint, _config(config, sampler, data), _identity(config, sampler, start)) as saver,
        Interrupt() as interrupt,
    ):
        history = saver.resume(engine)
        if history is None and begun is None:
            check_alone(algorithm, server, row, "pass history.state of a run with keep_state=True, or its checkpoint=")
        if history is None:
            history = put_back(engine, begun, store) if begun else History()
        warn_if_done(int(engine.server.round), rounds, saver.description)
        with (
            carrying(engine, store, history),
            tqdm(total=rounds, desc="rounds", initial=int(engine.server.round), disable=not report.progress) as bar,
        ):
            config = dataclasses.replace(config, plan=_plan(layout, history.plan, config, start, engine))
            examine(config, engine.server, data, rounds)
            engine.prepare(config)
            history.plan = plans.name_of(config.plan)
            try:
                _play(engine, history, report, draw, saver, interrupt, Pace(layout.mesh), bar, rounds)
            except KeyboardInterrupt as stopped:
                raise saver.interrupted(engine, history, stopped) from None
        history.state = take(engine, store, history) if report.keep_state else None
        return engine.server, history


def _play(
    engine: Engine,
    history: History,
    report: Report,
    draw: Draw,
    saver: Saver,
    interrupt: Interrupt,
    pace: Pace,
    bar: Any,
    rounds: int,
) -> None:
    """Play the rest of `rounds`, one block after the other."""
    ended = report.before_rounds(history, engine.server, engine.sample)
    while not ended and (done := int(engine.server.round)) < rounds:
        count = pace.next(min(report.due(done), rounds_until(done, saver.every), rounds - done))
        infos, seconds = pace.play(engine.advance, count)
        for at in range(count):
            info = jax.tree.map(lambda leaf, at=at: leaf[at], infos)
            history.add_round(done + at + 1, info, seconds, clients=report.clients)
        check_finite(infos, done, draw)
        bar.update(count)
        ended = report.after_round(history, engine.server, info, done + count >= rounds, engine.sample)
        bar.set_postfix(history.latest(), refresh=False)
        saver.save(engine, history, now=ended)
        interrupt.check()
    saver.wait()


def check_finite(infos: RoundInfo, first: int, draw: Draw) -> None:
    """Raise FloatingPointError, with round and clients, if a round had clients and not one finite result.

    Warn of a round that had some, but fewer than the aggregate needs.

    Args:
        infos: infos of rounds, leaves [n, ...].
        first: number of the first of them.
        draw: the cohort of a round.
    """
    for number in np.flatnonzero(infos.num_used == 0):
        ids, excluded = draw(first + int(number)), infos.excluded[number]
        if np.any((ids >= 0) & ~excluded):
            warnings.warn(TOO_FEW, stacklevel=4)
        elif excluded.any():
            raise diverged(first + int(number), ids[excluded])


def _store(layout: Layout, begun: RunState | None, data: ClientData) -> Store:
    """Return where rows are kept: beside samples that stay on the host, on the host."""
    store = layout.store or (begun.store if begun else None)
    if on_host(data) and jax.process_count() > 1:
        raise ValueError(
            f"expected samples on the devices in a run of {jax.process_count()} processes, got streamed(...) ones; "
            "pass shared_client_data(...), which gives every process its own clients"
        )
    if on_host(data) and layout.plan == "auto":
        raise ValueError('expected a plan beside streamed samples, got plan="auto"; take jaxfed.vmap() or map()')
    return store or (HostStore() if on_host(data) else DeviceStore())


def _plan(layout: Layout, resumed: str | None, config: RoundConfig, start: Start, engine: Engine) -> Plan:
    """Return the plan of a run: the one in `layout`; for "auto" that of the resumed run, else the fastest one here."""
    plan, mesh = layout.plan, layout.mesh
    if isinstance(plan, str) and resumed:
        plan = plans.named(resumed)
    elif isinstance(plan, str):
        ids = first_cohort(start.draw)
        trial = Trial(config, engine.server, engine.world, ids, lambda: engine.sample(ids))
        plan = fastest(trial, plans.candidates(trial.slots, mesh), mesh)
    plan = plan or vmap()
    return Sharded(mesh, plan) if mesh is not None and not isinstance(plan, Sharded) else plan


def _identity(config: RoundConfig, sampler: Sampler, start: Start) -> Callable[[identity.Identity], identity.Identity]:
    """Return a function that gives what a run computes, see `jaxfed.run.identity`; traced at the first call."""

    @cache
    def made() -> identity.Identity:
        slots, data = sampler.num_slots(start.num_clients), start.world.data
        digests = identity.of_run(config.algorithm, start.server, data, config.batching, slots)
        digests["starting parameters"] = identity.of_start(start.server)
        return {**digests, "cohorts": identity.of_cohorts(sampler, config.seed, start.num_clients)}

    return lambda saved: made()


def _config(config: RoundConfig, sampler: Sampler, data: ClientData) -> dict[str, Any]:
    lengths = np.ascontiguousarray(data.lengths, np.int64)
    return {
        **config_of(config, sampler, len(lengths)),
        "lengths": fingerprints.of_bytes(lengths),
        **({} if data.order is None else {"order": fingerprints.of_bytes(np.asarray(data.order))}),
    }


def config_of(config: RoundConfig, sampler: Sampler, num_clients: int) -> dict[str, Any]:
    """Return what must be equal in a run and its checkpoints for the rounds to be those of one run, but for the data.

    The names are those of checkpoints of 0.1.0.
    """
    weights = checked_weights(getattr(sampler, "weights", "uniform"))
    if not isinstance(weights, str):
        weights = fingerprints.of_bytes(np.asarray(weights, np.float32))
    return {
        **config.algorithm.hyperparameters,
        "batching": repr(config.batching),
        "sampler": fingerprints.without_address(recorded(sampler)),
        "client_weights": weights,
        "seed": config.seed,
        "clients": num_clients,
    }
