"""Client rows on the mesh: gathered and written back inside the compiled round."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike

from jaxfed.core import tree
from jaxfed.core.protocol import ClientRow


@dataclasses.dataclass(frozen=True)
class DeviceStore:
    """Rows of all N clients on the device or the mesh, leaves [N, ...]: fastest, and memory grows with N.

    Attributes:
      dtype: floating-point type in which rows are kept, for instance bfloat16; None keeps the algorithm's own.
    """

    dtype: DTypeLike | None = None

    def init(self, row: ClientRow, num_clients: int) -> ClientRow:
        """N copies of `row`."""
        stored = tree.cast(row, self.dtype)
        return jax.tree.map(lambda leaf: jnp.repeat(leaf[None], num_clients, axis=0), stored)

    def gather(self, state: ClientRow, ids: Array) -> ClientRow:
        """Rows [C, ...] as stored; an empty slot gets client 0's."""
        return jax.tree.map(lambda leaf: leaf[jnp.maximum(ids, 0)], state)

    def scatter(self, state: ClientRow, ids: Array, rows: ClientRow) -> ClientRow:
        """Write rows in place where the state is donated."""

        def write(leaf: Array, new: Array) -> Array:
            beyond = leaf.shape[0]
            return leaf.at[jnp.where(ids >= 0, ids, beyond)].set(new.astype(leaf.dtype), mode="drop")

        return jax.tree.map(write, state, rows)
