"""The program of a sweep: rounds whose seed and hyperparameters are inputs, for one run or several at once."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from jaxfed.core.checks import traced_numbers
from jaxfed.core.protocol import FederatedAlgorithm, Plan, RoundInfo, Server
from jaxfed.core.samplers import Sampler, cohorts, weights_of
from jaxfed.data.batches import ClientData
from jaxfed.data.batching import Batching
from jaxfed.layout.sharding import Shardings
from jaxfed.messages import check_cohorts
from jaxfed.rows import DeviceStore
from jaxfed.rows.device import rounds_of
from jaxfed.rows.engine import LONGEST_BLOCK
from jaxfed.rows.rounds import RoundConfig, World, placed
from jaxfed.run.evaluation import Evaluate, form_of
from jaxfed.run.history import History
from jaxfed.run.probing import examine
from jaxfed.run.settings import Report

Point = Mapping[str, Any]
"""Name → value of what is varied: Python numbers, or traced ones."""

SHARE_OF_MEMORY = 0.6
"""Of a device's memory that the runs of a group may take by the estimate of `fitting`."""


class Shared(NamedTuple):
    """What all runs of a sweep share."""

    make: Callable[..., FederatedAlgorithm]
    data: ClientData
    batching: Batching
    sampler: Sampler
    plan: Plan
    rounds: int

    @property
    def num_clients(self) -> int:
        """N."""
        return len(self.data.lengths)

    @property
    def longest(self) -> int:
        """Number of samples of the longest client."""
        return int(np.asarray(self.data.lengths).max())

    def world(self) -> World:
        """Return what rounds only read, on the device."""
        weights = weights_of(self.sampler, self.data.lengths)
        world = World(self.data, None if weights is None else jnp.asarray(weights))
        return placed((), world, Shardings())[1]  # type: ignore[arg-type]

    def check(self, algorithm: FederatedAlgorithm, server: Server) -> None:
        """Raise or warn as `jaxfed.simulate` does before its first round."""
        check_cohorts(
            algorithm, self.sampler, self.num_clients, weights_of(self.sampler, self.data.lengths) is not None
        )
        config = RoundConfig(algorithm, self.batching, self.plan, self.longest, 0)
        examine(config, server, self.data, self.rounds)

    def built(self, point: Point) -> FederatedAlgorithm:
        """Return the algorithm of traced hyperparameters."""
        with traced_numbers():
            return self.make(**point)

    def rows(self, point: Point, server: Server) -> PyTree:
        """Return the rows of all clients before the first round."""
        algorithm = self.built(point)
        with traced_numbers():
            row = algorithm.init_client(server.params, server.model_state)
        return DeviceStore().init(row, self.num_clients)

    def advance(
        self, point: Point, seed: Array, server: Server, rows: PyTree, world: World, ids: Array, count: Array
    ) -> tuple[Server, PyTree, RoundInfo]:
        """Play the first `count` rounds of the cohorts `ids` [R, C] of one run."""
        config = RoundConfig(self.built(point), self.batching, self.plan, self.longest, seed)  # type: ignore[arg-type]
        return rounds_of(config, DeviceStore(), Shardings())(server, rows, world, ids, count)


class Runs(NamedTuple):
    """The runs of a sweep.

    Attributes:
        pairs: point and seed of each.
        servers: of each, before its first round.
    """

    pairs: Sequence[tuple[Mapping[str, float], int]]
    servers: Sequence[Server]


class Group:
    """Runs that are computed together: their state, their cohorts and their histories.

    Args:
        problem: of all runs.
        runs: all runs.
        numbers: which of them are in this group.
        programs: compiled for groups of this size.
    """

    def __init__(self, problem: Shared, runs: Runs, numbers: Sequence[int], programs: "GroupPrograms") -> None:
        points, seeds = zip(*(runs.pairs[each] for each in numbers), strict=True)
        dtype = jnp.result_type(float)
        self._programs, self._alone = programs, len(numbers) == 1
        self._point = self._joined([{name: np.asarray(each[name], dtype) for name in each} for each in points])
        self._seeds = self._joined([np.uint32(seed) for seed in seeds])
        self._draws = [cohorts(problem.sampler, seed, problem.num_clients) for seed in seeds]
        self.server = self._joined([runs.servers[each] for each in numbers])
        self.rows = programs.rows(self._point, self.server)
        self.histories = [History() for _ in numbers]

    def _joined(self, trees: Sequence[Any]) -> Any:
        """Return trees with a leading axis; the tree itself where it is alone."""
        return trees[0] if self._alone else jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)

    def one(self, tree: Any, at: int) -> Any:
        """Return that of one run."""
        return tree if self._alone else jax.tree.map(lambda leaf: leaf[at], tree)

    def advance(self, world: World, done: int, count: int, clients: bool) -> None:
        """Play rounds `done` … `done + count − 1` and record them."""
        ids = self._joined([_cohorts(draw, done, count) for draw in self._draws])
        arguments = self._point, self._seeds, self.server, self.rows, world, ids, jnp.int32(count)
        self.server, self.rows, infos = self._programs.advance(*arguments)
        infos = jax.device_get(infos)
        for at, history in enumerate(self.histories):
            its = self.one(infos, at)
            for number in range(count):
                info = jax.tree.map(lambda leaf, number=number: leaf[number], its)
                history.add_round(done + number + 1, info, clients=clients)

    def evaluate(self, evaluate: Evaluate, done: int) -> None:
        """Evaluate every run."""
        for at, history in enumerate(self.histories):
            server, rows = self.one(self.server, at), functools.partial(DeviceStore().gather, self.one(self.rows, at))
            history.add_evaluation(done, evaluate(*form_of(evaluate)(server, rows)))


class GroupPrograms(NamedTuple):
    """Compiled for groups of one size: the rows before the first round, and a block of rounds."""

    rows: Callable[..., PyTree]
    advance: Callable[..., tuple[Server, PyTree, RoundInfo]]


def play(
    problem: Shared, runs: Runs, size: int, report: Report, tell: Callable[[int], Any]
) -> list[tuple[Server, History]]:
    """Return server and history of every run, `size` of them at once; `tell` hears of rounds that are done."""
    rows, advance = problem.rows, problem.advance
    if size > 1:  # alone without an axis of length 1, which would cost on a CPU
        rows, advance = jax.vmap(rows), jax.vmap(advance, in_axes=(0, 0, 0, 0, None, 0, None))
    programs = GroupPrograms(jax.jit(rows), jax.jit(advance, donate_argnums=3))
    world, finished = problem.world(), []
    for at in range(0, len(runs.pairs), size):
        numbers = [min(at + each, len(runs.pairs) - 1) for each in range(size)]
        group, real = Group(problem, runs, numbers, programs), min(size, len(runs.pairs) - at)
        _play(problem, group, world, report, functools.partial(_tell, tell, real))
        finished += [(group.one(group.server, each), group.histories[each]) for each in range(real)]
    return finished


def _tell(tell: Callable[[int], Any], runs: int, count: int) -> None:
    tell(runs * count)


def _play(problem: Shared, group: Group, world: World, report: Report, tell: Callable[[int], Any]) -> None:
    """Play all rounds of a group."""
    done = 0
    if report.evaluate is not None and report.at_start:
        group.evaluate(report.evaluate, done)
    while done < problem.rounds:
        count = min(LONGEST_BLOCK, problem.rounds - done, report.due(done))
        group.advance(world, done, count, report.clients)
        done += count
        tell(count)
        if report.evaluate is not None and (done % report.every == 0 or done == problem.rounds):
            group.evaluate(report.evaluate, done)


def _cohorts(draw: Callable[[int], np.ndarray], first: int, count: int) -> np.ndarray:
    """Return the cohorts [LONGEST_BLOCK, C] of `count` rounds, the last one repeated."""
    played = np.stack([draw(first + number) for number in range(count)])
    return np.pad(played, ((0, LONGEST_BLOCK - count), (0, 0)), mode="edge")


def fitting(problem: Shared, algorithm: FederatedAlgorithm, server: Server, count: int) -> int:
    """Return how many of `count` runs to compute at once: 1 on a CPU, else as many as should fit into memory.

    A run is estimated to hold the rows of all clients, and 8 times the parameters for every client of a cohort: the
    model, gradients, moments and activations.
    """
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return 1
    row = jax.eval_shape(algorithm.init_client, server.params, server.model_state)
    trees = row, server.params
    of_row, of_params = (sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(each)) for each in trees)
    held = problem.num_clients * of_row + 8 * problem.sampler.num_slots(problem.num_clients) * of_params
    limit = (device.memory_stats() or {}).get("bytes_limit", 8 << 30)
    return int(np.clip(SHARE_OF_MEMORY * limit // max(held, 1), 1, count))
