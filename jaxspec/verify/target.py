"""What every decoding method is made of: its protocol, and the target's side of a step as pure functions."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.devices.channel import pack
from jaxspec.models.attention import cached, fill
from jaxspec.models.base import Array, Cache, Network, Params
from jaxspec.verify._message import message
from jaxspec.verify.acceptance import Acceptance, match
from jaxspec.verify.sampling import INVALID, SamplingArrays, log_probability, mark_seen, perturbed, seen_along
from jaxspec.verify.verdict import Verdict, longest_match


class StepInfo(NamedTuple):
    """What one step did, per sequence: one array for all of it, since every array that the host reads costs it time.

    Attributes:
        packed: [B, 2·(γ+1) + 4] int32, what the properties read.
        reused: the next window was rolled out before the verdict was known: [B] bool; None where that cannot be.
    """

    packed: Array
    reused: Array | None = None

    def read(self) -> "StepInfo":
        """On the host; waits for the step."""
        return StepInfo(np.asarray(self.packed), None if self.reused is None else np.asarray(self.reused))  # type: ignore[arg-type]

    @property
    def tokens(self) -> np.ndarray:
        """The target's own tokens; the first ``num_emitted`` of a row are new text: [B, γ+1]."""
        return np.asarray(self.packed)[:, : self._places]

    @property
    def log_probabilities(self) -> np.ndarray:
        """Of ``tokens`` under the target's own law, unfiltered, at temperature 1: [B, γ+1].

        One of them is finite exactly if all logits at its place are numbers (single ones may be −∞).
        """
        return np.ascontiguousarray(np.asarray(self.packed)[:, self._places : -4]).view(np.float32)

    @property
    def num_emitted(self) -> np.ndarray:
        """Tokens added, 0 once a sequence has all it may have: [B]."""
        return np.asarray(self.packed)[:, -4]

    @property
    def num_accepted(self) -> np.ndarray:
        """Of the ``num_emitted`` tokens, those that were drafted: [B]."""
        return np.minimum(self.num_verified, self.num_emitted)

    @property
    def num_verified(self) -> np.ndarray:
        """Drafted tokens that the target confirmed, A, those behind a sequence's limit included: [B]."""
        return np.asarray(self.packed)[:, -3]

    @property
    def num_invalid(self) -> np.ndarray:
        """Tokens of the window that were not drafted since the draft's logits were not numbers: [B]."""
        return np.asarray(self.packed)[:, -2]

    @property
    def invalid_exit(self) -> np.ndarray:
        """Whether the exit's logits were not numbers: [B] bool."""
        return np.asarray(self.packed)[:, -1] > 0

    @property
    def _places(self) -> int:
        return self.packed.shape[1] // 2 - 2


class Request(NamedTuple):
    """What a batch of sequences asks for.

    Attributes:
        tokens: prompts, padded on the right: [B, P] int32.
        lengths: of the prompts: [B] int32.
        max_new_tokens: [B] int32.
        sampling: how tokens are drawn; None: every sequence takes the most likely ones.
        seen: which tokens a prompt holds, [B, V] bool; None where no repetition is penalised.
    """

    tokens: Any
    lengths: Any
    max_new_tokens: Any
    sampling: SamplingArrays | None = None
    seen: Any = None


class Progress(NamedTuple):
    """Where each sequence stands.

    Attributes:
        last: last committed token: [B].
        position: its position: [B].
        limit: the last position it may reach: [B].
        sampling: how its tokens are drawn.
        seen: tokens that it holds, [B, V] bool, where repetitions are penalised.
    """

    last: Array
    position: Array
    limit: Array
    sampling: SamplingArrays | None
    seen: Array | None


class TargetState(NamedTuple):
    """Cache rows of all tokens before the last committed one, and progress."""

    cache: Cache
    progress: Progress


@partial(jax.jit, static_argnames=("network", "capacity"))
def prefill(network: Network, params: Params, request: Request, capacity: int) -> TargetState:
    """Runs the prompts and leaves each sequence at its last token."""
    cache = fill(network, params, request.tokens, capacity)
    last = jnp.take_along_axis(request.tokens, request.lengths[:, None] - 1, axis=1)[:, 0]
    at = request.lengths - 1
    return TargetState(cache, Progress(last, at, at + request.max_new_tokens, request.sampling, request.seen))


class Choices(NamedTuple):
    """The target's own tokens after the last committed one and each of the window, and their log-probabilities."""

    tokens: Array
    log_probabilities: Array

    def packed(self, window: Array, verdict: Verdict, num_emitted: Array, sent: Array | None = None) -> Array:
        """What ``StepInfo`` holds, after a window and, where an exit was asked, its packed message ``sent``."""
        invalid = jnp.sum(window == INVALID, axis=1, dtype=jnp.int32)
        # Token ids below 2³¹ − 2²³, read as numbers, are numbers: NaN in a message is the NaN of a score.
        scores = None if sent is None else jax.lax.bitcast_convert_type(sent, jnp.float32)
        exits = jnp.zeros_like(invalid) if scores is None else jnp.any(jnp.isnan(scores), axis=1)
        return pack((self.tokens, self.log_probabilities, num_emitted, verdict.num_accepted, invalid, exits))


def prefix_pass(
    network: Network, params: Params, cache: Cache, progress: Progress, window: Array, stop: int
) -> tuple[Array, Cache]:
    """Layers 1..``stop`` over the last token and the window [B, γ] (< 0: nothing): x [D, B, γ+1] and the new rows."""
    tokens = jnp.concatenate([progress.last[:, None], jnp.maximum(window, 0)], axis=1)
    return _run(network, params, network.embed(params, tokens), cache, progress, range(stop))


def suffix_pass(
    network: Network,
    params: Params,
    cache: Cache,
    progress: Progress,
    x: Array,
    start: int,
    window: Array,
    law: Any = None,
    acceptance: Acceptance | None = None,
) -> tuple[Choices, Cache]:
    """Layers ``start``+1..N over x [D, B, γ+1]: the target's choices and the new rows."""
    x, cache = _run(network, params, x, cache, progress, range(start, network.config.num_layers))
    logits = network.logits(params, x)
    rule, seen = acceptance or match(), seen_along(progress.seen, window)
    tokens = rule.choose(logits, window, law, progress.sampling, places(progress, window), seen)
    return Choices(tokens, log_probability(logits, tokens)), cache


def places(progress: Progress, window: Array) -> Array:
    """Positions of the tokens that are chosen after the last committed one and each of the window: [B, γ+1]."""
    return progress.position[:, None] + 1 + jnp.arange(window.shape[1] + 1)[None]


def _run(
    network: Network, params: Params, x: Array, cache: Cache, progress: Progress, layers: range
) -> tuple[Array, Cache]:
    positions = progress.position[:, None] + jnp.arange(x.shape[2])[None]
    before, after = (None,) * layers.start, (None,) * (network.config.num_layers - layers.stop)
    x, rows = network.blocks(params, x, positions, (*before, *cache, *after), cached(positions), layers)
    return x, rows[layers.start : layers.stop]


def advance(progress: Progress, window: Array, choices: Array) -> tuple[Progress, Verdict, Array]:
    """Verdict on a window, progress after it, and how many tokens it adds: A + 1, cut at the limit."""
    verdict = longest_match(window, choices, progress.position)
    emitted = jnp.minimum(verdict.num_accepted + 1, progress.limit - progress.position)
    newest = jnp.take_along_axis(choices, jnp.maximum(emitted - 1, 0)[:, None], axis=1)[:, 0]
    last = jnp.where(emitted > 0, newest, progress.last)
    seen = mark_seen(progress.seen, choices, emitted)
    return progress._replace(last=last, position=progress.position + emitted, seen=seen), verdict, emitted


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
    seen = seen_along(progress.seen, window)
    scores = perturbed(head(network, params, x), progress.sampling, places(progress, window), seen)
    return x, cache, pack(message(scores, window, num_candidates))


@partial(jax.jit, static_argnames=("network", "exit_layer", "acceptance"), donate_argnames="cache")
def target_suffix(
    network: Network,
    exit_layer: int,
    acceptance: Acceptance,
    params: Params,
    cache: Cache,
    progress: Progress,
    x: Array,
    window: Array,
    law: Any,
    sent: Array | None = None,
) -> tuple[Cache, Progress, Array, Array]:
    """The compiled suffix: rows of layers ℓₑ+1..N, progress, the packed verdict, what ``StepInfo`` holds."""
    choices, cache = suffix_pass(network, params, cache, progress, x, exit_layer, window, law, acceptance)
    progress, verdict, emitted = advance(progress, window, choices.tokens)
    return cache, progress, pack(verdict), choices.packed(window, verdict, emitted, sent)


@partial(jax.jit, static_argnames=("network", "acceptance"), donate_argnames="cache")
def target_whole(
    network: Network, acceptance: Acceptance, params: Params, cache: Cache, progress: Progress, window: Array, law: Any
) -> tuple[Cache, Progress, Array, Array]:
    """Prefix and suffix in one, without a message: what ``target_suffix`` returns, with the rows of all layers."""
    count = network.config.num_layers
    x, cache = prefix_pass(network, params, cache, progress, window, count)
    choices, _ = suffix_pass(network, params, (), progress, x, count, window, law, acceptance)
    progress, verdict, emitted = advance(progress, window, choices.tokens)
    return cache, progress, pack(verdict), choices.packed(window, verdict, emitted)
