"""Where a round's samples come from: the devices, or the host, which reads them while the round before runs."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxfed.core.types import Batch
from jaxfed.data.flat import flattened
from jaxfed.data.streams import on_host
from jaxfed.layout.sharding import on_device, pinned, put
from jaxfed.rows.engine import Start
from jaxfed.rows.rounds import INDEX, RoundConfig, World, drawn


class RoundSamples(NamedTuple):
    """What a round reads: the world, and, of samples from the host, the batches as indices of them."""

    world: World
    indices: Batch | None = None


class Resident:
    """All samples are on the devices; their batches are drawn inside the round."""

    def __init__(self, world: World) -> None:
        self._samples = RoundSamples(world)

    def prepare(self, config: RoundConfig) -> None:
        """Nothing to do."""

    def of(self, number: int) -> RoundSamples:
        """Return the samples of a round."""
        return self._samples

    def close(self) -> None:
        """Nothing to do."""


class Streamed:
    """A worker reads the samples that the next round's batches hold, each once, in the order of the data."""

    def __init__(self, world: World, start: Start) -> None:
        self._world, self._start = world, start
        self._arrays, self._most = start.world.data.arrays, 0
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="client-samples")
        self._next: tuple[int, Future[RoundSamples]] | None = None
        self._draw: Callable[..., Batch]

    def prepare(self, config: RoundConfig) -> None:
        """Compile the drawing of batches."""
        self._draw = jax.jit(lambda data, number, ids: drawn(config, data, number, ids))

    def of(self, number: int) -> RoundSamples:
        """Return the samples of a round, and begin to read those of the next."""
        asked = self._next[1] if self._next is not None and self._next[0] == number else self._ask(number)
        samples = asked.result()
        self._next = number + 1, self._ask(number + 1)
        return samples

    def _ask(self, number: int) -> "Future[RoundSamples]":
        # Drawn here, before the round that is about to run: a device does one after the other.
        ids = put(jnp.asarray(self._start.draw(number)), self._start.places.spread)
        return self._worker.submit(self._read, self._draw(self._world.data, jnp.int32(number), ids))

    def _read(self, batch: Batch) -> RoundSamples:
        index = np.asarray(batch[INDEX])
        wanted, places = np.unique(index, return_inverse=True)
        self._most = max(self._most, min(index.size, _rounded(len(wanted))))
        read = {name: np.asarray(array[wanted]) for name, array in self._arrays.items()}
        arrays: dict[str, Any] = {name: _padded(samples, self._most) for name, samples in read.items()}
        shared, spread = self._start.places.everywhere, self._start.places.spread
        data = self._world.data._replace(arrays=arrays)
        data = flattened(data) if self._start.places.platform == "tpu" else data
        world = self._world._replace(data=data._replace(arrays=self._put(data.arrays, shared)))
        indices = {INDEX: places.reshape(index.shape).astype(np.int32), "mask": batch["mask"]}
        return RoundSamples(world, self._put(indices, spread))

    def _put(self, tree: Any, sharding: Any) -> Any:
        return put(pinned(tree, sharding), on_device(sharding))

    def close(self) -> None:
        """Stop the worker."""
        self._worker.shutdown(cancel_futures=True)


def samples_of(world: World, start: Start) -> Resident | Streamed:
    """Return the samples of a run: those of `world` on the devices, or of `start.world` on the host."""
    return Streamed(world, start) if on_host(start.world.data) else Resident(world)


def _rounded(count: int) -> int:
    """Return a size of at least `count`, at most a quarter above, so that few programs are compiled."""
    step = max(1, 1 << max(0, count.bit_length() - 3))
    return -(-count // step) * step


def _padded(samples: np.ndarray, size: int) -> np.ndarray:
    made = np.zeros((size, *samples.shape[1:]), samples.dtype)
    made[: len(samples)] = samples
    return made
