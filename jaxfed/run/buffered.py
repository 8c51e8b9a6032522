"""Buffered asynchronous rounds in simulated time: clients of different speed, and a server that waits for a few."""

import dataclasses
import functools
import heapq
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree
from tqdm.auto import tqdm

from jaxfed.algorithms.parts import finish_round, received_as
from jaxfed.core import keys, tree
from jaxfed.core.checks import check_range, python_fields
from jaxfed.core.protocol import ClientUpdate, Cohort, FederatedAlgorithm, Plan, RoundInfo, Server
from jaxfed.core.types import Key
from jaxfed.data.batches import ClientData, draw_indices
from jaxfed.data.batching import Batching
from jaxfed.data.streams import check_resident
from jaxfed.layout import plans
from jaxfed.rows import DeviceStore
from jaxfed.rows.rounds import INDEX, RoundConfig, fetched
from jaxfed.run.history import History
from jaxfed.run.probing import examine
from jaxfed.run.settings import Report
from jaxfed.run.state import check_clients, diverged

Duration = Callable[[np.random.Generator, int], float]
"""`duration(generator, client) -> time` that a client takes for its local steps, > 0."""


def half_normal(generator: np.random.Generator, client: int) -> float:
    """Return |N(0, 1)|, the distribution of training times that FedBuff's authors fitted to devices."""
    return abs(float(generator.normal())) + 1e-6


def inverse_root(staleness: Array) -> Array:
    """Return 1/√(1 + τ)."""
    return 1.0 / jnp.sqrt(1.0 + staleness)


@dataclasses.dataclass(frozen=True)
class Buffer:
    """How clients and server run side by side.

    Attributes:
        size: results that the server waits for before it moves.
        concurrency: clients that train at any time, at least `size`.
        duration: time of a client's local steps.
        weight: `weight(τ) -> s`, weight of a result that is τ server steps old, [C] -> [C].

    Raises:
        ValueError: numbers out of range.
    """

    size: int = 10
    concurrency: int = 20
    duration: Duration = half_normal
    weight: Callable[[Array], Array] = inverse_root

    def __post_init__(self) -> None:
        check_range("size", self.size, least=1, whole=True)
        check_range("concurrency", self.concurrency, least=self.size, whole=True)
        python_fields(self)


class Arrival(NamedTuple):
    """A client that has finished: when, which, and the server step from which it began."""

    time: float
    client: int
    version: int


class Clock:
    """Simulated time: who trains, and who finishes next.

    Args:
        buffer: sizes and durations.
        num_clients: N.
        seed: of durations and of who is drawn.
    """

    def __init__(self, buffer: Buffer, num_clients: int, seed: int) -> None:
        self._buffer, self._generator = buffer, np.random.default_rng([seed, 0])
        self._running: list[Arrival] = []
        self._idle = list(range(num_clients))
        self.time = 0.0
        for _ in range(buffer.concurrency):
            self._begin(0)

    def _begin(self, version: int) -> None:
        """Let a random idle client begin."""
        at = int(self._generator.integers(len(self._idle)))
        client = self._idle.pop(at)
        taken = self._buffer.duration(self._generator, client)
        if not (np.isfinite(taken) and taken > 0.0):
            raise ValueError(f"duration: expected a finite time > 0, got {taken!r} for client {client}")
        heapq.heappush(self._running, Arrival(self.time + taken, client, version))

    def next(self, version: int) -> list[Arrival]:
        """Return the results of one server step from `version`.

        Whenever one arrives another client begins, with the last of them from the next version. A client whose result
        waits is not drawn.
        """
        arrived: list[Arrival] = []
        while len(arrived) < self._buffer.size:
            arrived.append(heapq.heappop(self._running))
            self.time = arrived[-1].time
            self._begin(version + (len(arrived) == self._buffer.size))
        self._idle.extend(arrival.client for arrival in arrived)
        return arrived

    def oldest(self) -> int:
        """Return the oldest server step from which a client is still training."""
        return min(arrival.version for arrival in self._running)


def simulate_buffered(
    algorithm: FederatedAlgorithm,
    server: Server,
    data: ClientData,
    *,
    rounds: int,
    batching: Batching,
    buffer: Buffer = Buffer(),
    plan: Plan | None = None,
    seed: int = 0,
    report: Report = Report(),
) -> tuple[Server, History]:
    """Run a federated algorithm asynchronously, in simulated time (FedBuff).

    `buffer.concurrency` clients train at any time, each from the parameters that the server had when it began. As soon
    as `buffer.size` = K results wait, the server takes a step with them, τᵢ steps old:

        xᵗ⁺¹ = xᵗ + η_g·(1/K)·Σ s(τᵢ)·Uᵢ                (FedAvg's server)

    With another algorithm the whole message of a client is weighed, and its row moves by what the server received.

    Who finishes when is drawn on the host; the updates of one server step are one compiled computation.

    Args:
        algorithm: any; FedAvg is the paper's.
        server: `algorithm.init(params, num_clients)`.
        data: N clients, N ≥ concurrency + K.
        rounds: server steps.
        batching: as of `simulate`.
        buffer: sizes, durations and weights of old results.
        plan: of the K updates; `jaxfed.vmap()` by default.
        seed: of durations, batches and the loss function's keys.
        report: as of `simulate`, without `keep_state`.

    Returns:
        The server after the last step, and the `History`, which also has "time" (simulated, at the end of the step),
        "staleness" (mean of τᵢ) and "staleness_max".

    Raises:
        ValueError: too few clients, or a server that has done rounds; an algorithm that was not composed, or whose
            aggregate adds noise for privacy.
        FloatingPointError: all results of a step were NaN or infinite.

    Source: Nguyen et al., Federated Learning with Buffered Asynchronous Aggregation, AISTATS 2022, Algorithm 1.
    """
    check_range("rounds", rounds, least=0, whole=True)
    check_resident(data, "simulate_buffered")
    num_clients, history = check_clients(server, data), History(plan=plans.name_of(plan or plans.vmap()))
    _check(algorithm, server, report, buffer)
    longest = int(np.max(data.lengths))
    config = RoundConfig(algorithm, batching, plan or plans.vmap(), longest, seed)
    examine(config, server, data, rounds)
    store, clock, versions = DeviceStore(), Clock(buffer, num_clients, seed), {0: server}
    rows = store.init(algorithm.init_client(server.params, server.model_state), num_clients)
    step = jax.jit(functools.partial(_step, config, buffer), donate_argnums=2)
    report.before_rounds(history, server, functools.partial(store.gather, rows))
    for number in tqdm(range(rounds), desc="server steps", disable=not report.progress):
        arrived = clock.next(number)
        begun = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(versions[each.version] for each in arrived))
        ids = np.array([each.client for each in arrived], np.int32)
        server, rows, info = step(server, begun, rows, data, ids)
        versions[number + 1] = server
        versions = {version: kept for version, kept in versions.items() if version >= clock.oldest()}
        late = [number - each.version for each in arrived]
        facts = {"time": clock.time, "staleness": float(np.mean(late)), "staleness_max": max(late)}
        info = jax.device_get(info)
        history.add_round(number + 1, info, None, facts, clients=report.clients)
        if not info.num_used and info.excluded.all():
            raise diverged(number, ids)
        gather = functools.partial(store.gather, rows)
        if report.after_round(history, server, info, number + 1 == rounds, gather):
            break
    return server, history


def _check(algorithm: FederatedAlgorithm, server: Server, report: Report, buffer: Buffer) -> None:
    if int(server.num_clients) < buffer.concurrency + buffer.size:
        raise ValueError(
            f"expected at least {buffer.concurrency + buffer.size} clients, {buffer.concurrency} that train and "
            f"{buffer.size} whose results wait, got {int(server.num_clients)}; lower concurrency or size"
        )
    if algorithm.parts is None:
        raise ValueError(
            "expected an algorithm with `parts`, got one without; build it with jaxfed.algorithms.parts.compose"
        )
    if algorithm.parts.aggregate.noise is not None:
        raise ValueError(
            "expected an aggregate without noise for privacy, whose guarantee is that of drawn cohorts, got "
            f"{algorithm.parts.aggregate.name}; simulate it in rounds"
        )
    if int(server.round):
        raise ValueError(f"expected a new server, got one after {int(server.round)} rounds; begin with algorithm.init")
    if report.keep_state:
        raise ValueError("expected a report without keep_state: clients are still training when the last step is done")


def _step(
    config: RoundConfig, buffer: Buffer, server: Server, begun: Server, population: PyTree, data: ClientData, ids: Array
) -> tuple[Server, PyTree, RoundInfo]:
    """Compute the updates of clients `ids` [K], each from its own server in `begun`, leaves [K, ...], and use them."""
    store, algorithm, parts = DeviceStore(), config.algorithm, config.algorithm.parts
    assert parts is not None  # checked before the first step

    def batches_of(version: Array, client: Array) -> tuple[Array, Array]:
        key = keys.round_key(keys.batch_key(config.seed), version)
        index, mask = draw_indices(data, client[None], key, config.batching, config.longest)
        return index[0], mask[0]

    index, mask = jax.vmap(batches_of)(begun.round, ids)
    fetch = functools.partial(fetched, data)

    def client(member: Cohort, key: Key) -> ClientUpdate:
        row, own = member.rows  # type: ignore[misc]
        of_round = keys.round_key(keys.training_key(config.seed), own.round)
        update = algorithm.client_update(own, member._replace(rows=row), keys.client_key(of_round, member.ids), fetch)
        # Divided by the number of results, not by the sum of their weights: an old result also shortens the step.
        weight = buffer.weight((server.round - own.round).astype(jnp.float32))
        trained = update.message._replace(model_state=())
        sent = tree.scale(weight, trained)._replace(model_state=update.message.model_state)
        update = received_as(update, sent, parts)
        pair: Any = update.row, own
        return update._replace(row=pair)

    pairs: Any = (store.gather(population, ids), begun)
    cohort = Cohort(ids, pairs, {INDEX: index, "mask": mask})
    run = functools.partial(plans.gathered, config.plan) if parts.aggregate.gathers else config.plan
    key = keys.round_key(keys.training_key(config.seed), server.round)
    result = run(client, cohort, key)
    sent = jax.eval_shape(lambda: client(jax.tree.map(lambda leaf: leaf[0], cohort), key).message)
    server, rows, info = finish_round(algorithm.server_update, parts, server, cohort, key, result, sent)
    kept: Any = rows
    return server, store.scatter(population, ids, kept[0]), info
