"""Client data of a run of several processes, each of which loads only its own clients."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from numpy.typing import ArrayLike

from jaxfed.data.batches import ClientData, client_data
from jaxfed.layout.sharding import Shardings, put


def shared_client_data(own_clients: Sequence[Mapping[str, ArrayLike]], mesh: Mesh) -> ClientData:
    """Lay out the clients of all processes of `jax.distributed` over a mesh; a device holds samples of its process.

    Clients are numbered by process, and within a process in the order of `own_clients`. Sample arrays are padded to
    those of the largest process and sharded over the mesh; lengths and offsets are replicated. Rounds fetch what a
    cohort needs.

    Args:
        own_clients: this process's clients, as of `client_data`; arrays of the same names, sample shapes and dtypes in
            every process.
        mesh: of all processes, each with as many devices as the others, one process after the other.

    Raises:
        ValueError: what `client_data` raises, and a mesh whose devices are not ordered by process.
    """
    shardings = Shardings.of(mesh)
    _check_order(mesh)
    own = client_data(own_clients)
    lengths = np.asarray(own.lengths)
    counts = _gathered(np.array([len(lengths), lengths.sum()]))
    (most_clients, most_samples), devices = counts.max(axis=0), mesh.size // len(counts)
    padded = -(-int(most_samples) // devices) * devices
    every_length = _gathered(np.pad(lengths, (0, int(most_clients) - len(lengths))))
    offsets = np.concatenate(
        [
            process * padded + np.cumsum(row[:count]) - row[:count]
            for process, (row, count) in enumerate(zip(every_length, counts[:, 0], strict=True))
        ]
    )
    if (end := len(counts) * padded) >= 2**31:
        raise ValueError(f"expected fewer than 2³¹ samples, got positions up to {end}; positions are int32")
    lengths = np.concatenate([row[:count] for row, count in zip(every_length, counts[:, 0], strict=True)])

    def spread(array: ArrayLike) -> jax.Array:
        host = np.asarray(array)
        filled = np.concatenate([host, np.zeros((padded - len(host), *host.shape[1:]), host.dtype)])
        return jax.make_array_from_process_local_data(shardings.spread, filled)

    arrays = put((jnp.asarray(offsets, jnp.int32), jnp.asarray(lengths, jnp.int32)), shardings.everywhere)
    return ClientData({name: spread(array) for name, array in own.arrays.items()}, *arrays)


def _gathered(numbers: np.ndarray) -> np.ndarray:
    """Return every process's numbers, [P, ...]."""
    gathered = np.asarray(multihost_utils.process_allgather(numbers.astype(np.int32)))
    return gathered.reshape(jax.process_count(), *numbers.shape)


def _check_order(mesh: Mesh) -> None:
    owners = [device.process_index for device in mesh.devices.flat]
    if owners != sorted(owners) or len({owners.count(owner) for owner in owners}) > 1:
        raise ValueError(
            f"expected a mesh with as many devices of every process, one process after the other, got {owners}; "
            'take jax.make_mesh((jax.device_count(),), ("clients",))'
        )
