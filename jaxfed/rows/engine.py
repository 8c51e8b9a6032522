"""What every engine offers, and what it begins with."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import PyTree

from jaxfed.core.protocol import ClientRow, RoundInfo, Server
from jaxfed.layout.sharding import Shardings
from jaxfed.rows.rounds import Recipe, World

Draw = Callable[[int], np.ndarray]
"""`draw(round) -> ids` int32 [C], −1 in empty slots."""


class Start(NamedTuple):
    """What a run begins with: server, the row of a client never drawn, what is only read, who is drawn, and where."""

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
    """Plays rounds; holds the server and all clients' rows.

    Attributes:
      server: after the rounds played so far, on all devices.
      world: what rounds only read, where they read it.
    """

    server: Server
    world: World

    def prepare(self, recipe: Recipe) -> None:
        """Make the program that `advance` plays rounds with."""
        ...

    def advance(self, count: int) -> RoundInfo:
        """Play the next `count` rounds; return their facts [count, ...] on the host."""
        ...

    def sample(self, ids: np.ndarray) -> ClientRow:
        """Rows [C, ...] of clients `ids` on the mesh, for a trial that changes nothing."""
        ...

    def snapshot(self, step: int, oldest: int) -> dict[str, PyTree]:
        """What a checkpoint holds: {"server": ..., "rows": ...}; checkpoints before `oldest` are no longer kept."""
        ...

    def describe(self) -> dict[str, Any]:
        """JSON beside the snapshot, which `like` needs."""
        ...

    def like(self, told: Mapping[str, Any]) -> dict[str, PyTree]:
        """Structure, shapes, dtypes and places of a snapshot."""
        ...

    def restore(self, snapshot: Mapping[str, PyTree]) -> None:
        """Go on from a snapshot."""
        ...

    def lock(self, step: int, rows: Callable[[], PyTree]) -> None:
        """Never overwrite what checkpoint `step`, with these `rows`, refers to."""
        ...

    def close(self) -> None:
        """Give back threads and files."""
        ...
