"""What every decoding method is made of: its protocol, and the target's side of a step as pure functions."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxspec.cache import cached, init_cache
from jaxspec.candidates import message
from jaxspec.channel import pack
from jaxspec.sampling import greedy
from jaxspec.types import Array, Cache, Network, Params
from jaxspec.verify import Verdict, match


class StepInfo(NamedTuple):
    """What one step did, per sequence.

    Attributes:
        tokens: the target's own tokens; the first ``num_emitted`` of a row are new text: [B, γ+1] int32.
        num_emitted: tokens added, 0 once a sequence has all it may have: [B] int32.
        num_accepted: drafted tokens that were confirmed, the extra token excluded: [B] int32.
        reused: the next window was rolled out before the verdict was known: [B] bool.
    """

    tokens: Array
    num_emitted: Array
    num_accepted: Array
    reused: Array


#: Called with (lane, name, outputs) for every program that a step enqueues.
Watch = Callable[[str, str, Any], None]


def unwatched(lane: str, name: str, outputs: Any) -> None:
    """The default ``Watch``: looks at nothing."""


class DecodingMethod(NamedTuple):
    """One way to decode; ``jaxspec.generate`` drives it.

    Attributes:
        init: (tokens [B, P], lengths [B], max_new_tokens, capacity) → state; prompts are padded on the right.
        step: (state, watch) → (state, StepInfo).
        window: γ, tokens drafted a step; 0 for plain decoding.
        vocab_size: token ids lie below it.
    """

    init: Callable[..., Any]
    step: Callable[..., tuple[Any, StepInfo]]
    window: int
    vocab_size: int


class Progress(NamedTuple):
    """Where each sequence stands: last committed token, its position, and the last position it may reach; all [B]."""

    last: Array
    position: Array
    limit: Array


class TargetState(NamedTuple):
    """Cache rows of all tokens before the last committed one, and progress."""

    cache: Cache
    progress: Progress


@partial(jax.jit, static_argnames=("network", "capacity"))
def prefill(
    network: Network, params: Params, tokens: Array, lengths: Array, max_new: Array, capacity: int
) -> TargetState:
    """Runs the prompts [B, P], padded on the right, and leaves each sequence at its last token."""
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1])[None], tokens.shape)
    cache = init_cache(network.config, tokens.shape[0], capacity)
    x = network.embed(params, tokens)
    _, cache = network.blocks(params, x, positions, cache, cached(positions), range(network.config.num_layers))
    last = jnp.take_along_axis(tokens, lengths[:, None] - 1, axis=1)[:, 0]
    return TargetState(cache, Progress(last, lengths - 1, lengths - 1 + max_new))


def prefix_pass(
    network: Network, params: Params, cache: Cache, progress: Progress, window: Array, stop: int
) -> tuple[Array, Cache]:
    """Layers 1..``stop`` over the last committed token and the window [B, γ]: x [D, B, γ+1] and the new rows."""
    tokens = jnp.concatenate([progress.last[:, None], window], axis=1)
    return _run(network, params, network.embed(params, tokens), cache, progress, range(stop))


def suffix_pass(
    network: Network, params: Params, cache: Cache, progress: Progress, x: Array, start: int
) -> tuple[Array, Cache]:
    """Layers ``start``+1..N over x [D, B, γ+1]: the target's own tokens [B, γ+1] and the new rows."""
    x, cache = _run(network, params, x, cache, progress, range(start, network.config.num_layers))
    return greedy(network.logits(params, x)), cache


def _run(
    network: Network, params: Params, x: Array, cache: Cache, progress: Progress, layers: range
) -> tuple[Array, Cache]:
    positions = progress.position[:, None] + jnp.arange(x.shape[2])[None]
    before, after = (None,) * layers.start, (None,) * (network.config.num_layers - layers.stop)
    x, rows = network.blocks(params, x, positions, (*before, *cache, *after), cached(positions), layers)
    return x, rows[layers.start : layers.stop]


def advance(progress: Progress, window: Array, choices: Array) -> tuple[Progress, Verdict, Array]:
    """Verdict on a window, progress after it, and how many tokens it adds: A + 1, cut at the limit."""
    verdict = match(window, choices, progress.position)
    emitted = jnp.minimum(verdict.num_accepted + 1, progress.limit - progress.position)
    newest = jnp.take_along_axis(choices, jnp.maximum(emitted - 1, 0)[:, None], axis=1)[:, 0]
    last = jnp.where(emitted > 0, newest, progress.last)
    return Progress(last, progress.position + emitted, progress.limit), verdict, emitted


@partial(jax.jit, static_argnames=("network", "exit_layer", "num_candidates"), donate_argnames="cache")
def target_prefix(
    network: Network,
    exit_layer: int,
    num_candidates: int,
    params: Params,
    head: Any,
    cache: Cache,
    progress: Progress,
    window: Array,
) -> tuple[Array, Cache, Array]:
    """The compiled prefix: hidden state, rows of layers 1..ℓₑ, and the packed message of the exit ``head``."""
    x, cache = prefix_pass(network, params, cache, progress, window, exit_layer)
    return x, cache, pack(message(head(network, params, x), window, num_candidates))


@partial(jax.jit, static_argnames=("network", "exit_layer"), donate_argnames="cache")
def target_suffix(
    network: Network, exit_layer: int, params: Params, cache: Cache, progress: Progress, x: Array, window: Array
) -> tuple[Array, Cache, Progress, Array, Array, Array]:
    """The compiled suffix: the target's tokens, rows of layers ℓₑ+1..N, progress, packed verdict, A, tokens emitted."""
    choices, cache = suffix_pass(network, params, cache, progress, x, exit_layer)
    progress, verdict, emitted = advance(progress, window, choices)
    return choices, cache, progress, pack(verdict), verdict.num_accepted, emitted
