"""Both models along the target's own text: hidden states of every position, heads at those behind the prompts alone."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jaxspec.analysis._reading import map_exits, padded_length
from jaxspec.models.base import Array, Model, Network, Params
from jaxspec.text.prompts import Continued, lengths
from jaxspec.training import hidden_states
from jaxspec.verify.sampling import guess

#: Most logits of one exit at a time, 64 MiB in float32; more positions are read in several passes.
MAX_LOGITS = 2**24


class ExitReading(NamedTuple):
    """Both models at the P positions whose next token the target wrote, one text after the other.

    Attributes:
        counts: positions of each text: [n].
        agrees: whether the draft's most likely token is the target's: [P].
        ranks: of the target's most likely token in every exit's logits: [layers, P].
        masked_ranks: the same without the drafted token.
        mass: Ω_κ: [layers, κ, P].
    """

    counts: np.ndarray
    agrees: np.ndarray
    ranks: np.ndarray
    masked_ranks: np.ndarray
    mass: np.ndarray

    @property
    def lines(self) -> list[np.ndarray]:
        """``agrees`` of each text."""
        return np.split(self.agrees, np.cumsum(self.counts)[:-1])

    def places(self, rows: Sequence[int], positions: Sequence[int]) -> np.ndarray:
        """Return indices into P of positions within texts."""
        starts = np.cumsum(self.counts) - self.counts
        return starts[np.asarray(rows, int)] + np.asarray(positions, int)


class _Reader(NamedTuple):
    """What is read, and how.

    Attributes:
        networks: of the target and of the draft, if there is one.
        params: of both.
        layers: ℓₑ.
        kappas: κ.
        head: exit head.
    """

    networks: tuple[Network, Network | None]
    params: tuple[Params, Params]
    layers: tuple[int, ...]
    kappas: tuple[int, ...]
    head: Any

    def states(self, tokens: np.ndarray, places: np.ndarray) -> list[Array]:
        """Return hidden states [D, 1, p] of the exits, of the target's last layer, and of the draft's."""
        found = _states(self.networks[0], self.layers, self.params[0], tokens, places)
        if self.networks[1] is None:
            return [*found, found[-1]]
        return [*found, _states(self.networks[1], (), self.params[1], tokens, places)[-1]]

    def read(self, states: Sequence[Array]) -> tuple[Array, ...]:
        """Return the arrays of ``ExitReading`` at p positions."""
        return _read_heads(self.networks, self.kappas, self.params, self.head, states)


def read_exits(
    target: Model,
    draft: Model | None,
    texts: Continued,
    layers: tuple[int, ...],
    kappas: tuple[int, ...],
    head: Any,
    progress: bool = False,
) -> ExitReading:
    """Read every text once with each model, at most ``MAX_LOGITS`` logits at a time.

    Raises:
        ValueError: no text has a token behind its prompt.
    """
    counts = np.maximum(lengths(texts.tokens) - texts.starts, 0)
    if not counts.sum():
        raise ValueError("expected text behind the prompts, got none; continue them first")
    networks, params = (target.network, draft and draft.network), (target.params, draft and draft.params)
    reader = _Reader(networks, params, layers, kappas, head)
    size = max(1, min(int(counts.max()), MAX_LOGITS // target.network.config.vocab_size))
    with tqdm(total=int(counts.sum()), desc="read exits", unit="token", disable=not progress) as bar:
        parts = [part for each in _pieces(texts, counts, size) for part in [_read_piece(reader, *each, bar)]]
    return ExitReading(counts, *(np.concatenate(leaves, axis=-1) for leaves in zip(*parts, strict=True)))


def _pieces(texts: Continued, counts: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Yield padded texts [1, T], ``size`` positions of each, and how many of these count."""
    longest = int(np.max(texts.starts + counts))
    for row, start, count in zip(texts.tokens, texts.starts, counts, strict=True):
        whole = row[: start + count]
        padded = np.pad(whole, (0, padded_length(len(whole), longest) - len(whole)))[None]
        for first in range(0, count, size):
            places = np.minimum(start - 1 + first + np.arange(size), len(whole) - 1)
            yield padded, places, min(size, count - first)


def _read_piece(reader: _Reader, tokens: np.ndarray, places: np.ndarray, count: int, bar: tqdm) -> list[np.ndarray]:
    found = jax.device_get(reader.read(reader.states(tokens, places)))
    bar.update(count)
    return [leaf[..., 0, :count] for leaf in found]


@partial(jax.jit, static_argnums=(0, 1))
def _states(network: Network, layers: tuple[int, ...], params: Params, tokens: Array, places: Array) -> list[Array]:
    return [x[:, :, places] for x in hidden_states(network, params, tokens, layers)]


@partial(jax.jit, static_argnums=(0, 1))
def _read_heads(
    networks: tuple[Network, Network | None],
    kappas: tuple[int, ...],
    params: tuple[Params, Params],
    head: Any,
    states: Sequence[Array],
) -> tuple[Array, ...]:
    (target, draft), (*early, final, drafting) = networks, states
    logits = target.logits(params[0], final)
    choice = jnp.argmax(logits, axis=0)
    drafted = choice if draft is None else guess(draft.logits(params[1], drafting))
    log_probabilities = jax.nn.log_softmax(logits, axis=0)
    exits = map_exits(
        target, params[0], head, early, lambda scores: _ranks(scores, log_probabilities, choice, drafted, kappas)
    )
    return drafted == choice, *exits


def _ranks(
    scores: Array, log_probabilities: Array, choice: Array, drafted: Array, kappas: tuple[int, ...]
) -> tuple[Array, Array, Array]:
    """Return ranks of the target's choice, with and without the drafted token, [1, p], and Ω_κ, [κ, 1, p]."""
    own = jnp.take_along_axis(scores, choice[None], axis=0)
    rank = jnp.sum(~(scores <= own), axis=0)  # every token, where the scores are NaN
    of_drafted = jnp.take_along_axis(scores, jnp.maximum(drafted, 0)[None], axis=0)
    drafted_above = ~(of_drafted <= own)[0] & (drafted >= 0)
    order = jnp.moveaxis(jax.lax.top_k(jnp.moveaxis(scores, 0, -1), max(kappas))[1], -1, 0)
    summed = jnp.cumsum(jnp.exp(jnp.take_along_axis(log_probabilities, order, axis=0)), axis=0)
    mass = jnp.stack([summed[kappa - 1] for kappa in kappas])
    return rank, rank - drafted_above.astype(rank.dtype), mass
