"""Hidden states of the target that a draft reads."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxspec.models.base import Array, Network, Params


class Reads(NamedTuple):
    """Hidden states of the target that a draft reads; static.

    Attributes:
        taps: i of the residual streams r_i before layer i, 0-based and ascending: r_0 is the embedding (without learned
            positions), r_N the stream after the last layer.
        final: whether it reads f = norm(r_N), what the output head reads.
    """

    taps: tuple[int, ...] = ()
    final: bool = False


class Features(NamedTuple):
    """Hidden states at the tokens that the target has run.

    Attributes:
        taps: r_i [B, T, D] in the order of ``Reads.taps``; None for one that has not arrived yet.
        final: f [B, T, D]; None if it is not read or has not arrived yet.
    """

    taps: tuple[Any, ...]
    final: Any = None

    @property
    def complete(self) -> bool:
        """Whether every tap has arrived."""
        return all(tap is not None for tap in self.taps)

    def holds(self, reads: Reads) -> bool:
        """Return whether all that is read has arrived."""
        return self.complete and (self.final is not None or not reads.final)

    def at(self, index: Array) -> "Features":
        """Return the features at positions ``index`` [B, R] of each sequence: [B, R, D]."""
        return jax.tree.map(lambda leaf: jnp.take_along_axis(leaf, index[..., None], axis=1), self)


class Reader(NamedTuple):
    """What the target sends to a draft; static.

    Attributes:
        reads: hidden states.
        fuse: (its parameters, ``Features`` that hold all of these) → leaves [B, T, …] to send in their place; None:
            the features themselves, as far as they have arrived.
        imputes: whether ``fuse`` also takes features up to the exit alone, and guesses the others.
    """

    reads: Reads = Reads()
    fuse: Callable[[Params, Features], Any] | None = None
    imputes: bool = False

    def sent(self, params: Params, early: Features | None, late: Features | None = None) -> Any:
        """Return what is sent once ``late`` features have arrived beside the ``early`` ones; None: nothing."""
        found = joined(early, late)
        if self.fuse is None or found is None:
            return found if late is None else late
        complete = found.holds(self.reads)
        if late is None:
            return self.fuse(params, found) if complete or self.imputes else None
        was_complete = early is not None and early.holds(self.reads)
        return None if was_complete else self.fuse(params, found)


def gathered(
    network: Network, params: Params, reads: Reads, streams: dict[int, Array], x: Array | None = None
) -> Features | None:
    """Gather streams [D, B, T] by tap, and the last one ``x`` once it is there; None if nothing is read."""
    if reads == Reads():
        return None
    rows = {tap: jnp.moveaxis(stream, 0, -1) for tap, stream in streams.items()}
    final = None
    if reads.final and x is not None:
        assert network.final is not None  # checked by check_reads
        final = jnp.moveaxis(network.final(params, x), 0, -1)
    return Features(tuple(rows.get(tap) for tap in reads.taps), final)


def joined(early: Any, late: Any) -> Any:
    """Join what arrived in two messages: features by tap, anything else as it arrived last."""
    if early is None or late is None or not isinstance(late, Features):
        return early if late is None else late
    taps = tuple(one if other is None else other for one, other in zip(early.taps, late.taps, strict=True))
    return Features(taps, early.final if late.final is None else late.final)


def check_reads(network: Network, reads: Reads) -> None:
    """Check that a target has the hidden states that a draft reads; raise ValueError if not."""
    count, tracks = network.config.num_layers, network.config.tracks
    if list(reads.taps) != sorted(set(reads.taps)) or not all(0 <= tap <= count for tap in reads.taps):
        raise ValueError(
            f"expected ascending taps from 0 to {count} (layers of the target), got {reads.taps}; pass other taps=, or "
            "the target that the draft was made for"
        )
    if tracks is not None and tracks.count > 1 and not set(reads.taps) <= set(meetings := tracks.meetings(count)):
        raise ValueError(f"expected taps where the target's tracks meet, of {meetings}, got {reads.taps}")
    if reads.final and network.final is None:
        raise ValueError("expected a target whose Network has final=, which this draft reads, got one without")
