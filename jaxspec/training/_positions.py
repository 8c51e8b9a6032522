"""Places of training text, drawn one by one, with the target's hidden states there."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxspec.models.base import Model
from jaxspec.text.prompts import Continued
from jaxspec.training._hidden import stored_hidden


class Places(NamedTuple):
    """Where in texts an exit is trained or measured.

    Attributes:
        values: hidden states at some layers of all tokens of the texts, [N, …, D].
        which: of these layers are wanted, S.
        rows: rows of ``values``, one of each place, [m].
        following: token behind each place, [m].
    """

    values: Any
    which: tuple[int, ...]
    rows: np.ndarray
    following: np.ndarray

    def at(self, chosen: np.ndarray) -> np.ndarray:
        """Return hidden states at some of the m places: [S, D, 1, n]."""
        states = self.values[self.rows[chosen]][:, list(self.which)]
        return np.ascontiguousarray(np.moveaxis(states, 0, 2))[:, :, None]

    def drawn(self, seed: int, step: int, count: int) -> np.ndarray:
        """Return ``at`` for ``count`` places, a function of (seed, step) alone."""
        return self.at(np.random.default_rng((seed, step)).integers(0, len(self.rows), count))

    def followed_by(self, tokens: np.ndarray) -> "Places":
        """Return the places before one of some tokens."""
        where = np.isin(self.following, tokens)
        return self._replace(rows=self.rows[where], following=self.following[where])


def places_of(
    target: Model, layers: tuple[int, ...], texts: Continued, folder: Path, progress: bool, prompts: bool = False
) -> Places:
    """Run a target over texts, or read what an earlier call stored, and return the places that a token follows.

    Args:
        target: whose hidden states are stored.
        layers: ascending; the states after the last layer come behind them.
        texts: prompts and the target's tokens.
        folder: of the file.
        progress: show a bar.
        prompts: whether places within prompts count too, not those before answers alone.
    """
    hidden = stored_hidden(target, layers, texts.tokens, folder, progress)
    places = np.arange(texts.tokens.shape[1] - 1)[None]
    firsts = np.zeros(len(texts.tokens), int) if prompts else texts.starts - 1
    row, place = np.nonzero((places >= firsts[:, None]) & (places < hidden.lengths[:, None] - 1))
    return Places(hidden.values, hidden.which, hidden.starts[row] + place, texts.tokens[row, place + 1])
