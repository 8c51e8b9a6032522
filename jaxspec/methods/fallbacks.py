"""What a sequence drafts when no branch came true: a full window, a short one, or what it said after the same words.

Every sequence of a batch falls back for itself; the others keep the windows that were ready. A window of fewer than γ
tokens is filled up with −1, which no target says.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from jaxspec.core.arguments import whole
from jaxspec.drafts.branches import Drafted, Notes, Pending, Proposer
from jaxspec.drafts.plain import drafted_after, extend
from jaxspec.models.base import Array, Cache, Network, Params, Rows
from jaxspec.verify import Message
from jaxspec.verify.acceptance import Law

#: In place of a token that was not drafted.
NOTHING = -1


class Text(NamedTuple):
    """Committed text: ``tokens`` [B, S] up to and with ``position`` [B]; behind that anything."""

    tokens: Array
    position: Array


class Need(NamedTuple):
    """What a window is to be drafted after.

    Attributes:
        root: the last committed token.
        pending: a token before it whose row the cache lacks, if any.
        proposer: how tokens are drawn.
        text: the committed text, for a fallback that reads it.
    """

    root: Pending
    pending: Pending | None
    proposer: Proposer
    text: Text | None


class Fallback(Protocol):
    """Drafts a window after what was committed: a value, static in the programs of the draft's side."""

    @property
    def reads_text(self) -> bool:
        """Whether the committed text is to be kept on the draft's side."""

    def __call__(
        self, network: Network, params: Params, cache: Cache, window: int, need: Need
    ) -> tuple[Drafted, Cache]:
        """Tokens [B, γ] after the root, their notes and rows; the cache with the pending row."""


@dataclass(frozen=True)
class Full:
    """γ tokens, one after the other: T_draft(γ)."""

    reads_text = False

    def __call__(
        self, network: Network, params: Params, cache: Cache, window: int, need: Need
    ) -> tuple[Drafted, Cache]:
        """As in vanilla speculative decoding."""
        return drafted_after(network, params, cache, need.root, window, need.proposer, need.pending)


@dataclass(frozen=True)
class Short:
    """Only ``length`` tokens: T_draft(length), and no more than these are accepted.

    Raises:
        ValueError: a length below 1.
    """

    length: int
    reads_text = False

    def __post_init__(self) -> None:
        whole("length of a short window", self.length, 1)

    def __call__(
        self, network: Network, params: Params, cache: Cache, window: int, need: Need
    ) -> tuple[Drafted, Cache]:
        """γ tokens where ``length`` is no less."""
        length = min(self.length, window)
        drafted, cache = drafted_after(network, params, cache, need.root, length, need.proposer, need.pending)
        return filled(drafted, window), cache


@dataclass(frozen=True)
class NGram:
    """What followed when the last ``size`` tokens were last said: one pass of the draft, whatever γ.

    Where they are new, one token of the draft's own.

    Raises:
        ValueError: a size below 1.

    Source: prompt lookup decoding (Saxena, 2023).
    """

    size: int = 3
    reads_text = True

    def __post_init__(self) -> None:
        whole("size of an n-gram", self.size, 1)

    def __call__(
        self, network: Network, params: Params, cache: Cache, window: int, need: Need
    ) -> tuple[Drafted, Cache]:
        """The window is looked up; the draft runs over it once, for its rows and for its first token."""
        root, pending, proposer, text = need
        assert text is not None
        if pending is not None:
            _, cache = extend(network, params, cache, pending.token[:, None], pending.position)
        looked_up = continuation(text, self.size, window)
        known = jnp.maximum(jnp.concatenate([root.token[:, None], looked_up[:, :-1]], axis=1), 0)
        logits, cache = extend(network, params, cache, known, root.position)
        places = root.position[:, None] + 1 + jnp.arange(window)[None]
        own, _ = proposer(logits[:, :, :1], places[:, :1])
        first = jnp.where(looked_up[:, :1] >= 0, looked_up[:, :1], own)
        tokens = jnp.concatenate([first, looked_up[:, 1:]], axis=1)
        rows = jax.tree.map(lambda leaf: rows_at(leaf, root.position, window), cache)
        return Drafted(tokens, _certain(proposer, logits, tokens, places), rows), cache


def continuation(text: Text, size: int, count: int) -> Array:
    """The tokens [B, ``count``] that followed the last earlier place of the text's last ``size`` tokens; −1: none."""
    tokens, position = text
    ends = jnp.arange(tokens.shape[1])[None]
    place = position[:, None]
    same = (ends < place) & (ends >= size - 1)
    for back in range(size):
        last = jnp.take_along_axis(tokens, jnp.maximum(place - back, 0), axis=1)
        same &= (jnp.roll(tokens, back, axis=1) == last) & (place >= size - 1)
    found = jnp.max(jnp.where(same, ends, NOTHING), axis=1, keepdims=True)
    source = found + 1 + jnp.arange(count)[None]
    known = (found >= 0) & (source <= place)
    return jnp.where(known, jnp.take_along_axis(tokens, jnp.where(known, source, 0), axis=1), NOTHING)


def rows_at(rows: Array, position: Array, count: int) -> Array:
    """``count`` rows of each sequence from ``position`` [B] on."""
    return jax.vmap(lambda old, start: jax.lax.dynamic_slice_in_dim(old, start, count, axis=1))(rows, position)


def filled(drafted: Drafted, window: int) -> Drafted:
    """A window of fewer tokens, filled up with nothing."""
    more = window - drafted.tokens.shape[1]

    def pad(leaf: Array, axis: int, value: float = 0) -> Array:
        widths = [(0, more if at == axis else 0) for at in range(leaf.ndim)]
        return jnp.pad(leaf, widths, constant_values=value)

    law, likely = drafted.notes
    if law is not None:
        law = Law(pad(law.tokens, 1), pad(law.log_probabilities, 1, -jnp.inf))
    if likely is not None:
        likely = Message(pad(likely.tokens, 1), pad(likely.scores, 1, -jnp.inf), pad(likely.drafted, 1, -jnp.inf))
    rows: tuple[Rows, ...] = jax.tree.map(lambda leaf: pad(leaf, 2), drafted.rows)
    return Drafted(pad(drafted.tokens, 1, NOTHING), Notes(law, likely), rows)


def _certain(proposer: Proposer, logits: Array, tokens: Array, positions: Array) -> Notes:
    """Notes of looked-up tokens: each was certain, and the draft's other candidates are its own."""
    _, (law, likely) = proposer(logits, positions, tokens)
    if law is not None:
        order = jnp.arange(law.tokens.shape[2])[None, None]
        others = (jnp.maximum(tokens, 0)[..., None] + order) % logits.shape[0]
        law = Law(others, jnp.where((order == 0) & (tokens >= 0)[..., None], 0.0, -jnp.inf))
    return Notes(law, likely)
