"""The protocols of a store: the store itself, the engine that runs its rounds, and rows outside the mesh."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import PyTree

from jaxfed.core.protocol import ClientRow, RoundInfo, Server
from jaxfed.layout.sharding import Shardings
from jaxfed.rows.rounds import RoundConfig, World

LONGEST_BLOCK = 32
"""Most rounds that `Engine.advance` runs at once."""

Draw = Callable[[int], np.ndarray]
"""`draw(round) -> ids` int32 [C], −1 in empty slots."""


class Start(NamedTuple):
    """What a run begins with.

    Attributes:
        server: before the first round of the run.
        row: the row of a client that never took part.
        world: what rounds only read.
        draw: the cohort of a round.
        places: shardings of arrays on the run's devices.
    """

    server: Server
    row: ClientRow
    world: World
    draw: Draw
    places: Shardings

    @property
    def num_clients(self) -> int:
        """N."""
        return len(self.world.data.lengths)


class Engine(Protocol):
    """Runs rounds; holds the server and the rows of all clients.

    Attributes:
        server: after the rounds done so far, on all devices.
        world: what rounds only read, on all devices.
    """

    server: Server
    world: World

    @property
    def first(self) -> ClientRow:
        """Row of a client that was never drawn."""
        ...

    def prepare(self, config: RoundConfig) -> None:
        """Compile the program that `advance` runs."""
        ...

    def advance(self, count: int) -> RoundInfo:
        """Run the next `count` ≤ `LONGEST_BLOCK` rounds; return their infos, leaves [count, ...], on the host."""
        ...

    def sample(self, ids: np.ndarray) -> ClientRow:
        """Return the rows [C, ...] of clients `ids` on the mesh, for a trial that changes nothing."""
        ...

    def snapshot(self, step: int, oldest: int) -> dict[str, PyTree]:
        """Return what checkpoint `step` holds, {"server", "rows"}; checkpoints before `oldest` are no longer kept."""
        ...

    def describe(self) -> dict[str, Any]:
        """Return the facts, as JSON, that `like` needs to describe a snapshot."""
        ...

    def like(self, facts: Mapping[str, Any]) -> dict[str, PyTree]:
        """Return structure, shapes, dtypes and shardings of a snapshot."""
        ...

    def restore(self, snapshot: Mapping[str, PyTree]) -> None:
        """Continue from a snapshot."""
        ...

    def lock(self, step: int, rows: Callable[[], PyTree]) -> None:
        """Never overwrite what checkpoint `step`, which holds `rows`, refers to."""
        ...

    def close(self) -> None:
        """Release threads and files."""
        ...


class Store(Protocol):
    """Where the rows of all clients are kept between rounds: a static value that can be compared."""

    def engine(self, start: Start) -> Engine:
        """Return the engine of a run from its start, where every client holds `start.row`."""
        ...


class Population(Protocol):
    """The rows of all clients, by id, on the host. `StagedEngine` calls it from one thread."""

    def read(self, ids: np.ndarray) -> ClientRow:
        """Return rows, NumPy leaves [C, ...], of clients `ids`; an empty slot (−1) gets any row."""
        ...

    def write(self, ids: np.ndarray, rows: ClientRow) -> None:
        """Store rows, NumPy leaves [C, ...], of clients `ids`; empty slots (−1) are left out."""
        ...

    def snapshot(self, step: int, oldest: int) -> PyTree:
        """Return what checkpoint `step` holds of the rows; checkpoints before `oldest` are no longer kept."""
        ...

    def describe(self) -> dict[str, Any]:
        """Return the facts, as JSON, that `like` needs to describe a snapshot."""
        ...

    def like(self, facts: Mapping[str, Any]) -> PyTree:
        """Return structure, shapes and dtypes of a snapshot."""
        ...

    def restore(self, snapshot: Any) -> None:
        """Continue from a snapshot."""
        ...

    def lock(self, step: int, snapshot: Callable[[], Any]) -> None:
        """Never overwrite what checkpoint `step` refers to; nothing to do where a snapshot holds the rows itself."""

    def close(self) -> None:
        """Release files and memory."""
