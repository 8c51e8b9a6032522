"""Text as a draft that reads hidden states sees it in training: rows of pairs, run again and again on its own output.

Row t has the target's hidden states at t. At step s it comes with the text's own token at t + 1 + s, and with what the
draft made of it at step s − 1 (at step 0, the hidden states), so that training sees what drafting will see.

Source: Li et al., EAGLE-3 (arXiv 2503.01840), training-time test.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxspec.drafts.networks import DraftNetwork
from jaxspec.models.base import Array, Attend, Model, Params
from jaxspec.models.config import Scores
from jaxspec.training.losses import hidden_states
from jaxspec.verify.features import Features, Reads, gathered


class Lesson(NamedTuple):
    """Texts and what the target makes of them.

    Attributes:
        tokens: [B, T]; 0 behind the end of a text.
        present: which of them belong to a text: [B, T].
        counted: which of these the draft is to learn: [B, T].
        features: what the draft reads at each token.
        last: the target's stream after its last layer, [D, B, T].
        documents: number of the text that a row belongs to, [B, T]; None: one text in each sequence.
    """

    tokens: Array
    present: Array
    counted: Array
    features: Features
    last: Array
    documents: Array | None


def lesson(target: Model, reads: Reads, batch: Mapping[str, Any]) -> Lesson:
    """Read a batch, running the target over its tokens unless the batch has the target's hidden states.

    Args:
        target: is not trained.
        reads: of the draft.
        batch: ``tokens`` [B, T] int32, −1 behind the end of a text. Optional: ``mask`` [B, T] or [B], which tokens
            count, for example those of the assistant; ``hidden``, the streams [B, T, D] of ``reads.taps`` and the one
            after the last layer; ``documents`` [B, T], if sequences hold several texts, each without the first token.
    """
    present = batch["tokens"] >= 0
    tokens = jnp.where(present, batch["tokens"], 0)
    mask = batch.get("mask", present)
    counted = present & jnp.reshape(mask, (len(tokens), -1)).astype(bool)
    if "hidden" in batch:
        *taps, last = (jnp.moveaxis(jnp.asarray(stream), -1, 0) for stream in batch["hidden"])
    else:
        *taps, last = hidden_states(target.network, target.params, tokens, reads.taps)
    streams = dict(zip(reads.taps, taps, strict=True))
    features = gathered(target.network, target.params, reads, streams, last)
    assert features is not None  # such a draft reads something
    return Lesson(tokens, present, counted, features, last, batch.get("documents"))


def shifted(values: Array, by: int) -> Array:
    """Move values [..., T] ``by`` places to the left; zeros follow."""
    return jnp.pad(values[..., by:], [(0, 0)] * (values.ndim - 1) + [(0, by)])


def fused(network: DraftNetwork, params: Params, taught: Lesson) -> Array:
    """Return what the rows come with at step 0: [D', B, T]."""
    return jnp.moveaxis(network.fuse(network.fusion_of(params), taught.features), -1, 0)


def drafted_logits(network: DraftNetwork, params: Params, target: Model, tokens: Array, depths: int) -> list[Array]:
    """Return what a draft that reads hidden states predicts along texts, from every place: logits [V, B, T] by depth.

    Row t at depth s is the draft's for the token at t + 2 + s, where the target has run the tokens up to t, and the
    draft those behind: as if all it drafted before had been the text's.

    Args:
        network: of the draft.
        params: of the draft.
        target: whose hidden states it reads.
        tokens: [B, T].
        depths: tokens behind t + 1, at most as many as the network has heads.
    """
    taught = lesson(target, network.reads, {"tokens": tokens})
    states = unroll(network, params, fused(network, params, taught), taught, depths)
    return [network.logits(params, x, depth) for depth, x in enumerate(states)]


def unroll(network: DraftNetwork, params: Params, inputs: Any, taught: Lesson, steps: int) -> list[Array]:
    """Run all rows ``steps`` times: x [D'', B, T] of each time, read by ``network.logits(params, x, step)``.

    Row t of step s sees the rows up to t of step 0, and itself at the steps 1 to s, at the position t + s: the rows of
    a draft that has run s tokens behind t. What x predicts is the token at t + 2 + s.
    """
    count = 0 if network.config is None else network.config.num_layers
    cache: Any = ((),) * count
    attend = _own_steps(taught.documents)
    results: list[Array] = []
    positions = jnp.broadcast_to(jnp.arange(taught.tokens.shape[1])[None], taught.tokens.shape)
    for step in range(steps):
        tokens = shifted(taught.tokens, step + 1)
        x, cache = network.run(params, inputs, tokens, positions + step, cache, attend, step)
        inputs = network.following(params, x)
        results.append(x)
    return results


def _own_steps(documents: Array | None) -> Attend:
    """Return attention to the rows of step 0, and to what the own row was at later steps.

    ``rows`` are keys and values [B, G, T, head_size] of every step so far. Only those of step 0 make a T × T product.
    """

    def attend(queries: Array, keys: Array, values: Array, rows: Any, scores: Scores = Scores()) -> tuple[Array, Any]:
        if scores.sinks:
            raise ValueError("expected a draft without attention sinks to train over steps, got one with sinks")
        rows = (*rows, (keys, values))
        (first_keys, first_values), *later = rows
        scale = queries.shape[-1] ** -0.5 if scores.scale is None else scores.scale
        queries = queries * jnp.asarray(scale, queries.dtype)
        block = jnp.einsum("bgqth,bgsh->bgqts", queries, first_keys, preferred_element_type=jnp.float32)
        own = [jnp.einsum("bgqth,bgth->bgqt", queries, k, preferred_element_type=jnp.float32) for k, _ in later]
        weights = jnp.concatenate([block, *(each[..., None] for each in own)], axis=-1)
        if scores.softcap is not None:
            weights = scores.softcap * jnp.tanh(weights / scores.softcap)
        seen = _seen(keys.shape[2], scores.window, documents)
        seen = jnp.pad(seen, ((0, 0), (0, 0), (0, len(later))), constant_values=True)
        weights = jax.nn.softmax(jnp.where(seen[:, None, None], weights, -jnp.inf), axis=-1).astype(values.dtype)
        length = keys.shape[2]
        context = jnp.einsum("bgqts,bgsh->bgqth", weights[..., :length], first_values)
        for index, (_, own_values) in enumerate(later):
            context = context + weights[..., length + index, None] * own_values[:, :, None]
        return context, rows

    return attend


def _seen(length: int, window: int | None, documents: Array | None) -> Array:
    """Return which rows of step 0 each row sees: [B or 1, T, T]; a sliding window counts from the row."""
    behind = jnp.arange(length)[:, None] - jnp.arange(length)[None]
    seen = (behind >= 0)[None] if window is None else ((behind >= 0) & (behind < window))[None]
    return seen if documents is None else seen & (documents[:, :, None] == documents[:, None, :])
