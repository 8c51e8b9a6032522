"""The target's hidden states along training text on disk, so that they are computed once and not at every step."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jaxspec.core.digests import digest
from jaxspec.models.base import Array, Model, Network, Params
from jaxspec.training.losses import hidden_states


def stored_hidden(
    target: Model, taps: tuple[int, ...], tokens: np.ndarray, folder: Path, progress: bool = False, batch_size: int = 16
) -> np.ndarray:
    """Return the streams at ``taps`` and after the last layer along texts, in a file of ``folder``: [n, S, T, D].

    The file is written once, and continued where an interrupted call ended. It takes ``hidden_bytes``.

    Args:
        target: runs over the texts.
        taps: as of ``Reads``.
        tokens: [n, T]; −1 behind the end of a text, where the result has no meaning.
        folder: is made if it is absent.
        progress: show a bar.
        batch_size: texts at a time.
    """
    x = jax.eval_shape(partial(_streams, target.network, taps), target.params, tokens[:1])
    path = folder / f"hidden-{digest(f'{target.network.config} {taps} {tokens.shape}', target.params, tokens)}.bin"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".partial")
        _append(partial(_streams, target.network, taps, target.params), tokens, part, x, progress, batch_size)
        os.replace(part, path)
    return np.memmap(path, x.dtype, "r", shape=(len(tokens), *x.shape[1:]))


def hidden_bytes(target: Model, taps: tuple[int, ...], tokens: np.ndarray) -> int:
    """Return the size of the file of ``stored_hidden``."""
    x = jax.eval_shape(partial(_streams, target.network, taps), target.params, tokens[:1])
    return len(tokens) * x.size * x.dtype.itemsize


def _append(
    run: Callable[[np.ndarray], Array],
    tokens: np.ndarray,
    path: Path,
    like: jax.ShapeDtypeStruct,
    progress: bool,
    size: int,
) -> None:
    row = like.size * like.dtype.itemsize
    with path.open("ab") as file:
        done = file.tell() // row
        file.truncate(done * row)
        starts = tqdm(range(done, len(tokens), size), "hidden states", disable=not progress, unit="batch")
        for start in starts:
            batch = tokens[start : start + size]
            rows = run(np.pad(batch, ((0, size - len(batch)), (0, 0))))
            file.write(np.asarray(rows)[: len(batch)].tobytes())


@partial(jax.jit, static_argnums=(0, 1))
def _streams(network: Network, taps: tuple[int, ...], params: Params, tokens: Array) -> Array:
    streams = hidden_states(network, params, jnp.where(tokens >= 0, tokens, 0), taps)
    return jnp.moveaxis(jnp.stack(streams), (1, 2), (3, 0))
