"""Client rows on the mesh, and what every store that lives inside the compiled round offers."""

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from jaxfed.algorithm import ClientRow


class Store(Protocol):
    """Holds every client's row: a static value; its state is a pytree, traced within the compiled round."""

    def init(self, row: ClientRow, num_clients: int) -> PyTree:
        """State of a store in which every client holds `row`."""
        ...

    def gather(self, state: PyTree, ids: Array) -> ClientRow:
        """Rows [C, ...] of the clients `ids`; whatever is finite for an empty slot."""
        ...

    def scatter(self, state: PyTree, ids: Array, rows: ClientRow) -> PyTree:
        """State in which the clients `ids` hold `rows`, everybody else what they held; empty slots are dropped."""
        ...


@dataclasses.dataclass(frozen=True)
class DeviceStore:
    """Rows of all clients on the device, leaves [N, ...]."""

    def init(self, row: ClientRow, num_clients: int) -> ClientRow:
        """N copies of `row`."""
        return jax.tree.map(lambda leaf: jnp.repeat(leaf[None], num_clients, axis=0), row)

    def gather(self, state: ClientRow, ids: Array) -> ClientRow:
        """Rows [C, ...]; an empty slot gets client 0's."""
        return jax.tree.map(lambda leaf: leaf[jnp.maximum(ids, 0)], state)

    def scatter(self, state: ClientRow, ids: Array, rows: ClientRow) -> ClientRow:
        """Write rows in place where the state is donated."""

        def write(leaf: Array, new: Array) -> Array:
            beyond = leaf.shape[0]
            return leaf.at[jnp.where(ids >= 0, ids, beyond)].set(new, mode="drop")

        return jax.tree.map(write, state, rows)
