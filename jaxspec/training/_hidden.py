"""The target's hidden states along training text on disk, so that they are computed once and not at every step."""

import os
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jaxspec.core.digests import digest
from jaxspec.models.base import Array, Model, Network, Params
from jaxspec.models.config import described
from jaxspec.text.prompts import lengths
from jaxspec.training.losses import hidden_states

#: Texts of one pass are padded to a multiple of so many tokens.
BUCKET = 64


class Hidden(NamedTuple):
    """Streams along texts.

    Attributes:
        values: of all tokens, text by text: [N, S, D].
        starts: of each text in ``values``: [n].
        lengths: of each text: [n].
        which: of the S streams are wanted.
    """

    values: Any
    starts: np.ndarray
    lengths: np.ndarray
    which: tuple[int, ...]

    def window(self, row: int, first: int, length: int) -> np.ndarray:
        """Return the streams along a window of a text, [S, length, D]; zeros behind its end."""
        count = min(length, int(self.lengths[row]) - first)
        part = self.values[self.starts[row] + first :][:count, list(self.which)]
        return np.moveaxis(np.pad(part, ((0, length - count), (0, 0), (0, 0))), 0, 1)

    def along(self, length: int) -> np.ndarray:
        """Return the streams along the first tokens of all texts, [n, S, length, D]."""
        return np.stack([self.window(row, 0, length) for row in range(len(self.starts))])

    def rows(self, index: np.ndarray | slice) -> "Hidden":
        """Return the streams of some of the texts."""
        return self._replace(starts=self.starts[index], lengths=self.lengths[index])


def stored_hidden(
    target: Model, taps: tuple[int, ...], tokens: np.ndarray, folder: Path, progress: bool = False, batch_size: int = 16
) -> Hidden:
    """Return the streams at ``taps`` and after the last layer along texts, from a file of ``folder``.

    The file is written once, and continued where an interrupted call ended. It takes ``hidden_bytes``. Texts of like
    length run together. A file of more taps serves as well.

    Args:
        target: runs over the texts.
        taps: as of ``Reads``.
        tokens: [n, T]; −1 behind the end of a text.
        folder: is made if it is absent.
        progress: show a bar.
        batch_size: texts at a time.
    """
    sizes = lengths(tokens)
    order, like = np.argsort(sizes, kind="stable"), _token(target, taps)
    starts = np.zeros(len(sizes), np.int64)
    starts[order] = np.cumsum(sizes[order]) - sizes[order]
    name = f"states-{digest(f'{described(target.network.config)} {tokens.shape}', target.params, tokens)}"
    path, kept = _file(folder, name, taps)
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".partial")
        parts = np.split(order, range(batch_size, len(order), batch_size))
        with part.open("ab") as file:
            done = _whole_parts(file, [int(sizes[rows].sum()) for rows in parts], like)
            for rows in tqdm(parts[done:], "hidden states", disable=not progress, unit="batch"):
                file.write(_read(target, taps, tokens[rows], sizes[rows], batch_size).tobytes())
        os.replace(part, path)
    values = np.memmap(path, like.dtype, "r", shape=(int(sizes.sum()), len(kept) + 1, like.shape[1]))
    return Hidden(values, starts, sizes, (*map(kept.index, taps), len(kept)))


def hidden_within(
    target: Model,
    taps: tuple[int, ...],
    tokens: np.ndarray,
    most: int,
    folder: Path | None = None,
    progress: bool = False,
) -> Hidden | None:
    """Return what ``stored_hidden`` does, or None if it takes more than ``most`` bytes.

    Args:
        target: runs over the texts.
        taps: as of ``Reads``.
        tokens: [n, T]; −1 behind the end of a text.
        most: bytes.
        folder: of the file; None: the streams are kept in memory.
        progress: show a bar.
    """
    if hidden_bytes(target, taps, tokens) > most:
        return None
    if folder is not None:
        return stored_hidden(target, taps, tokens, folder, progress)
    with TemporaryDirectory() as temporary:
        stored = stored_hidden(target, taps, tokens, Path(temporary), progress)
        return stored._replace(values=np.array(stored.values))


def _file(folder: Path, name: str, taps: tuple[int, ...]) -> tuple[Path, tuple[int, ...]]:
    """Return a file and its taps: one that has these, or the one to write."""
    for path in sorted(folder.glob(f"{name}-*.bin")):
        found = tuple(int(tap) for tap in path.stem.removeprefix(f"{name}-").split("-") if tap)
        if set(taps) <= set(found):
            return path, found
    return folder / f"{name}-{'-'.join(map(str, taps))}.bin", taps


def hidden_bytes(target: Model, taps: tuple[int, ...], tokens: np.ndarray) -> int:
    """Return the size of the file of ``stored_hidden``."""
    like = _token(target, taps)
    return int(lengths(tokens).sum()) * like.size * like.dtype.itemsize


def _token(target: Model, taps: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    """Return shape and type of what is kept of a token: [S, D]."""
    x = jax.eval_shape(partial(_streams, target.network, taps), target.params, np.zeros((1, 1), np.int32))
    return jax.ShapeDtypeStruct(x.shape[2:], x.dtype)


def _whole_parts(file: Any, counts: list[int], like: jax.ShapeDtypeStruct) -> int:
    """Cut a file after its last whole part; return how many there are."""
    ends = np.cumsum([0, *counts]) * like.size * like.dtype.itemsize
    done = int(np.searchsorted(ends, file.tell(), "right")) - 1
    file.truncate(ends[done])
    return done


def _read(target: Model, taps: tuple[int, ...], tokens: np.ndarray, sizes: np.ndarray, batch: int) -> np.ndarray:
    """Return the streams of the texts' tokens, one text after another: [N, S, D]."""
    width = -(-int(sizes.max()) // BUCKET) * BUCKET
    padded = np.full((batch, width), -1, np.int32)
    padded[: len(tokens), : min(width, tokens.shape[1])] = tokens[:, :width]
    rows = np.asarray(_streams(target.network, taps, target.params, padded))
    return np.concatenate([row[:size] for row, size in zip(rows, sizes, strict=False)])


@partial(jax.jit, static_argnums=(0, 1))
def _streams(network: Network, taps: tuple[int, ...], params: Params, tokens: Array) -> Array:
    """Return streams [B, T, S, D]."""
    streams = hidden_states(network, params, jnp.where(tokens >= 0, tokens, 0), taps)
    return jnp.moveaxis(jnp.stack(streams), (0, 1), (2, 3))
