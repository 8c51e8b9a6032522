"""The target's side of a step as pure functions: prompts, layers before and after an exit, choices, the verdict."""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxspec.models.attention import cached, fill, in_tree, keep_path, with_tree
from jaxspec.models.base import Array, Cache, Network, Params
from jaxspec.models.taps import run_layers
from jaxspec.verify.acceptance import Acceptance, match
from jaxspec.verify.features import Features, Reader, Reads, gathered
from jaxspec.verify.info import Choices
from jaxspec.verify.sampling import SamplingArrays, greedy, log_probability, perturbed
from jaxspec.verify.seen import Seen
from jaxspec.verify.tree import Tree, longest_path, seen_along_paths
from jaxspec.verify.verdict import Verdict, longest_match


class Request(NamedTuple):
    """A batch of sequences to decode.

    Attributes:
        tokens: prompts, padded on the right: [B, P] int32.
        lengths: of the prompts: [B] int32.
        max_new_tokens: [B] int32.
        sampling: how tokens are drawn; None: greedy for all sequences.
        seen: which tokens a prompt holds: marks [B, V].
    """

    tokens: Any
    lengths: Any
    max_new_tokens: Any
    sampling: SamplingArrays | None = None
    seen: Seen = Seen()


class Progress(NamedTuple):
    """The state of each sequence beside its cache rows.

    Attributes:
        last: last committed token: [B].
        position: its position: [B].
        limit: the last position it may reach: [B].
        sampling: how its tokens are drawn.
        seen: tokens that it holds: marks [B, V].
    """

    last: Array
    position: Array
    limit: Array
    sampling: SamplingArrays | None = None
    seen: Seen = Seen()


class TargetState(NamedTuple):
    """Cache rows of all tokens before the last committed one, and progress."""

    cache: Cache
    progress: Progress


@dataclass(frozen=True)
class Target:
    """What is fixed about the target's passes; static in compiled programs.

    Attributes:
        network: of the target.
        acceptance: the rule.
        reader: what is sent to the draft.
    """

    network: Network
    acceptance: Acceptance = match()
    reader: Reader = Reader()

    @property
    def reads(self) -> Reads:
        """Hidden states that the draft reads."""
        return self.reader.reads

    @property
    def num_layers(self) -> int:
        """N."""
        return self.network.config.num_layers


@partial(jax.jit, static_argnames=("network", "capacity", "reader"))
def prefill(
    network: Network, params: Params, request: Request, capacity: int, reader: Reader = Reader(), fusion: Params = ()
) -> tuple[TargetState, Any]:
    """Run the prompts and leave each sequence at its last token; also what is sent to the draft of them [B, P, …]."""

    def finish(streams: dict[int, Array], x: Array) -> Any:
        return reader.sent(fusion, gathered(network, params, reader.reads, streams, x))

    cache, features = fill(network, params, request.tokens, capacity, reader.reads.taps, finish)
    last = jnp.take_along_axis(request.tokens, request.lengths[:, None] - 1, axis=1)[:, 0]
    at = request.lengths - 1
    progress = Progress(last, at, at + request.max_new_tokens, request.sampling, request.seen)
    return TargetState(cache, progress), features


def prefix_pass(
    target: Target, params: Params, cache: Cache, progress: Progress, window: Array, stop: int
) -> tuple[Array, Cache, Features | None]:
    """Run layers 1..``stop`` over the last committed token and the window [B, γ] (< 0: not drafted).

    Returns:
        x [D, B, γ+1], the rows of these layers, and the features at these layers.
    """
    tokens = jnp.concatenate([progress.last[:, None], jnp.maximum(window, 0)], axis=1)
    return _run(target, params, target.network.embed(params, tokens), cache, progress, range(stop))


def suffix_pass(
    target: Target, params: Params, cache: Cache, progress: Progress, x: Array, start: int
) -> tuple[Array, Cache, Features | None]:
    """Run layers ``start``+1..N over x [D, B, γ+1]; return what ``prefix_pass`` does."""
    return _run(target, params, x, cache, progress, range(start, target.num_layers))


def _run(
    target: Target, params: Params, x: Array, cache: Cache, progress: Progress, layers: range
) -> tuple[Array, Cache, Features | None]:
    network, count = target.network, target.num_layers
    positions = progress.position[:, None] + jnp.arange(x.shape[2])[None]
    rows = (*(None,) * layers.start, *cache, *(None,) * (count - layers.stop))
    x, rows, streams = run_layers(network, params, x, positions, rows, cached(positions), layers, target.reads.taps)
    features = gathered(network, params, target.reads, streams, x if layers.stop == count else None)
    return x, rows[layers.start : layers.stop], features


def tree_pass(
    target: Target, params: Params, cache: Cache, progress: Progress, tree: Tree
) -> tuple[Choices, Verdict, Array, Cache, Features | None]:
    """Run all layers over a tree's nodes [B, N]; choose the target's token after each, and the path that they confirm.

    Returns:
        Choices along the path [B, D+1], the verdict, the path's nodes [B, D+1], the cache with the path's rows, and the
        features along it.
    """
    network, at, depth = target.network, progress.position, jnp.asarray(tree.depth)
    attend = in_tree(at, tree.depth, tree.ancestors, range(tree.tokens.shape[1]))
    x, positions = network.embed(params, jnp.maximum(tree.tokens, 0)), at[:, None] + depth
    layers = range(target.num_layers)
    x, rows, streams = run_layers(network, params, x, positions, with_tree(cache), attend, layers, target.reads.taps)
    logits = network.logits(params, x)
    levels = at[:, None] + 1 + jnp.arange(tree.paths.shape[2])[None]
    seen = seen_along_paths(progress.seen, tree)
    tokens = greedy(perturbed(logits, progress.sampling, levels, seen, depth))
    verdict, path = longest_path(tree, tokens, at)
    along = lambda values: jnp.take_along_axis(values, path, axis=1)  # noqa: E731
    choices = Choices(along(tokens), along(log_probability(logits, tokens)))
    features = gathered(network, params, target.reads, streams, x)
    return choices, verdict, path, keep_path(rows, at, path), None if features is None else features.at(path)


def choose(
    target: Target, params: Params, progress: Progress, x: Array, window: Array, probabilities: Any = None
) -> Choices:
    """Choose the target's token after the last committed one and each of the window [B, γ]: r_N = x [D, B, γ+1].

    Args:
        target: network and rule.
        params: of the network.
        progress: before the window.
        x: the residual stream after the last layer.
        window: drafted tokens.
        probabilities: what they were drawn from, for a rule that needs it.
    """
    logits = target.network.logits(params, x)
    seen, at = progress.seen.along(window), positions_of(progress, window)
    tokens = target.acceptance.choose(logits, window, probabilities, progress.sampling, at, seen)
    return Choices(tokens, log_probability(logits, tokens))


def positions_of(progress: Progress, window: Array) -> Array:
    """Return positions of the tokens chosen after the last committed one and each of the window: [B, γ+1]."""
    return progress.position[:, None] + 1 + jnp.arange(window.shape[1] + 1)[None]


def advance(progress: Progress, window: Array, choices: Array) -> tuple[Progress, Verdict, Array]:
    """Return progress after a window, the verdict on it, and how many tokens it adds: A + 1, cut at the limit."""
    return advanced(progress, choices, longest_match(window, choices, progress.position))


def advanced(progress: Progress, choices: Array, verdict: Verdict) -> tuple[Progress, Verdict, Array]:
    """Return what ``advance`` does for a given verdict; the first A + 1 of ``choices`` are the new text."""
    emitted = jnp.minimum(verdict.num_accepted + 1, progress.limit - progress.position)
    newest = jnp.take_along_axis(choices, jnp.maximum(emitted - 1, 0)[:, None], axis=1)[:, 0]
    last = jnp.where(emitted > 0, newest, progress.last)
    seen = progress.seen.add(choices, emitted)
    return progress._replace(last=last, position=progress.position + emitted, seen=seen), verdict, emitted
