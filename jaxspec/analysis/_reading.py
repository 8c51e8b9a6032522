"""Reading a recorded text: one pass of each model gives every step of greedy speculative decoding, without decoding.

In the target's greedy text, a drafted token is accepted where the draft's most likely token equals the text's.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.generation.requests import bucket
from jaxspec.models.base import Array, Network, Params


def check_layers(layers: Sequence[int], count: int) -> tuple[int, ...]:
    """Check the exits to read.

    Raises:
        ValueError: layers that do not ascend from 1 to N.
    """
    if list(layers) != sorted(set(layers)) or not all(1 <= layer <= count for layer in layers):
        raise ValueError(f"expected ascending layers from 1 to {count}, got {tuple(layers)}")
    return tuple(layers)


def padded_length(length: int, longest: int) -> int:
    """Return the length to which a text is padded: 256 times a power of two, so that few programs are compiled.

    Args:
        length: of the text.
        longest: of all texts; none is padded beyond its bucket.
    """
    size = 256
    while size < length:
        size *= 2
    return min(size, bucket(longest))


def map_exits(
    network: Network, params: Params, head: Any, states: Sequence[Array], summary: Callable[[Array], Any]
) -> Any:
    """Apply ``summary`` to the logits [V, B, T] of each exit, one exit at a time; results are stacked."""
    return jax.lax.map(lambda x: summary(head(network, params, x)), jnp.stack(states))


def step_ends(agrees: Iterable[np.ndarray], window: int) -> list[tuple[int, int, int]]:
    """Return (sequence, position of the token that ends it, A) of every step of greedy speculative decoding.

    Args:
        agrees: for each sequence, whether the draft's most likely token equals the token of the text: [T], or [T, K] by
            depth, for a draft whose tokens depend on the place where a window begins.
        window: γ, at most K.
    """
    ends = []
    for row, line in enumerate(agrees):
        start = 0
        while start + window < len(line):
            wrong = np.flatnonzero(~(line[start : start + window] if line.ndim == 1 else line[start, :window]))
            accepted = int(wrong[0]) if len(wrong) else window
            ends.append((row, start + accepted, accepted))
            start += accepted + 1
    return ends
