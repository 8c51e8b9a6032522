"""Where a round's samples come from: the devices, or the host, which reads them while the round before runs."""

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxfed.core.types import Batch
from jaxfed.data.flat import flattened
from jaxfed.data.streams import on_host
from jaxfed.layout.sharding import on_device, pinned, put
from jaxfed.rows._background import BackgroundThread
from jaxfed.rows.engine import Draw, Start
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
        self._world, self._start, self._arrays = world, start, start.world.data.arrays
        self._lengths = np.sort(np.asarray(start.world.data.lengths))
        self._worker = BackgroundThread("client-samples")
        self._next: tuple[int, Future[RoundSamples]] | None = None
        self._draw: Callable[..., Batch]

    def prepare(self, config: RoundConfig) -> None:
        """Compile the drawing of batches."""
        self._draw = jax.jit(lambda data, number, ids: drawn(config, data, number, ids))

    def of(self, number: int) -> RoundSamples:
        """Return the samples of a round, and begin to read those of the next."""
        asked = self._next[1] if self._next is not None and self._next[0] == number else None
        samples = (asked or self._ask(number, self._start.draw(number))).result()
        following = drawn_ahead(self._start.draw, number + 1)
        self._next = None if following is None else (number + 1, self._ask(number + 1, following))
        return samples

    def _ask(self, number: int, cohort: np.ndarray) -> "Future[RoundSamples]":
        # Drawn here, before the round that is about to run: a device does one after the other.
        ids = put(jnp.asarray(cohort), self._start.places.spread)
        return self._worker.submit(self._read, self._draw(self._world.data, jnp.int32(number), ids))

    def _read(self, batch: Batch) -> RoundSamples:
        index = held(np.asarray(batch[INDEX]), np.asarray(batch["mask"]))
        wanted, places = np.unique(index, return_inverse=True)
        most = min(index.size, max(1, int(np.sum(self._lengths[-len(index) :]))))
        read = {name: np.asarray(array[wanted]) for name, array in self._arrays.items()}
        arrays: dict[str, Any] = {name: _padded(samples, most) for name, samples in read.items()}
        data = self._world.data._replace(arrays=arrays)
        data = flattened(data) if self._start.places.platform == "tpu" else data
        world = self._world._replace(data=data._replace(arrays=self._everywhere(data.arrays)))
        indices: Any = {INDEX: places.reshape(index.shape).astype(np.int32), "mask": batch["mask"]}
        return RoundSamples(world, put(indices, on_device(self._start.places.spread)))

    def _everywhere(self, arrays: Any) -> Any:
        sharding = self._start.places.everywhere
        return put(arrays if sharding else pinned(arrays, None), on_device(sharding))

    def close(self) -> None:
        """Stop the worker."""
        if self._next is not None:
            self._next[1].cancel()
        self._worker.close()


def samples_of(world: World, start: Start) -> Resident | Streamed:
    """Return the samples of a run: those of `world` on the devices, or of `start.world` on the host."""
    return Streamed(world, start) if on_host(start.world.data) else Resident(world)


def drawn_ahead(draw: Draw, number: int) -> np.ndarray | None:
    """Return the cohort of a round that may come; None where it cannot be drawn, an error only once it does come."""
    try:
        return draw(number)
    except Exception:
        return None


def held(index: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the samples [C, K, B] of batches; empty places have one that the client's, or another's, batches hold."""
    flat, present = index.reshape(len(index), -1), mask.reshape(len(mask), -1)
    first = flat[np.arange(len(flat)), np.argmax(present, axis=1)]
    any_held = first[np.argmax(present.any(axis=1))]
    first = np.where(present.any(axis=1), first, any_held)
    return np.where(mask, index, first[:, None, None])


def _padded(samples: np.ndarray, size: int) -> np.ndarray:
    made = np.zeros((size, *samples.shape[1:]), samples.dtype)
    made[: len(samples)] = samples
    return made
