"""How often a draft's r-th likeliest token is the target's: what static trees are fitted to."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.core.arguments import whole
from jaxspec.drafts.base import Draft
from jaxspec.models.base import Array, Model, Network, Params
from jaxspec.training._trained import as_float32, network_of
from jaxspec.training._unroll import fused, lesson, shifted, unroll
from jaxspec.training.losses import hidden_states


def rank_accuracy(
    draft: Model | Draft,
    target: Model,
    tokens: np.ndarray,
    *,
    prompt_length: int = 0,
    depth: int = 5,
    ranks: int = 10,
    batch_size: int = 8,
) -> np.ndarray:
    """Return how often a draft's r-th likeliest token is the target's likeliest, along texts: [D, K].

    Row d is of the token d + 1 places behind the root, drafted behind the text's own tokens in between.

    Args:
        draft: a language model, or one that reads hidden states of the target.
        target: what the draft's tokens are compared with.
        tokens: best the target's continuations: [n, T], −1 behind the end of a text.
        prompt_length: tokens of each text at which no draft begins.
        depth: D, at most as many as the draft has heads.
        ranks: K, at most as many as there are tokens.
        batch_size: texts at a time.

    Raises:
        ValueError: another draft or one for another target, a number below 1, or texts too short.
    """
    whole("ranks", ranks, 1, target.network.config.vocab_size)
    whole("depth of a tree", depth, 1)
    if tokens.ndim != 2 or tokens.shape[1] < prompt_length + depth + 2:
        raise ValueError(f"expected texts [n, T] with T > prompt_length + depth + 1, got shape {tokens.shape}")
    if isinstance(draft, Model):
        count = partial(_of_language_model, draft.network, target.network, ranks, prompt_length)
    else:
        network = network_of(draft, target)
        count = partial(
            _of_feature_draft, network, target.network, min(depth, network.depth or depth), ranks, prompt_length
        )
    parts = [
        count(draft.params, target.params, tokens[at : at + batch_size]) for at in range(0, len(tokens), batch_size)
    ]
    right, places = (np.sum(part, axis=0) for part in zip(*jax.device_get(parts), strict=True))
    table = right / np.maximum(places, 1)[:, None]
    return np.broadcast_to(table, (depth, ranks)).copy() if isinstance(draft, Model) else table


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _of_language_model(
    network: Network, of: Network, ranks: int, prompt_length: int, params: Params, of_params: Params, tokens: Array
) -> tuple[Array, Array]:
    text = jnp.where(tokens >= 0, tokens, 0)
    logits, best = (
        one.logits(own, hidden_states(one, own, text)[-1]) for one, own in ((network, params), (of, of_params))
    )
    counted = _counted(tokens, prompt_length, 1)
    right = _hits(logits, jnp.argmax(best, axis=0), counted, ranks)
    return right[None], jnp.sum(counted)[None]


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _of_feature_draft(
    network: Any,
    of: Network,
    depth: int,
    ranks: int,
    prompt_length: int,
    params: Params,
    of_params: Params,
    tokens: Array,
) -> tuple[Array, Array]:
    taught = lesson(Model(of, of_params), network.reads, {"tokens": tokens})
    taught, params = taught._replace(features=as_float32(taught.features)), as_float32(params)
    best, found = jnp.argmax(of.logits(of_params, taught.last), axis=0), []
    for step, x in enumerate(unroll(network, params, fused(network, params, taught), taught, depth)):
        counted = _counted(tokens, prompt_length, step + 2)
        hits = _hits(network.logits(params, x, step), shifted(best, step + 1), counted, ranks)
        found.append((hits, jnp.sum(counted)))
    right, places = zip(*found, strict=True)
    return jnp.stack(right), jnp.stack(places)


def _counted(tokens: Array, prompt_length: int, ahead: int) -> Array:
    """Return the rows whose prediction, ``ahead`` places on, is of a token behind the prompt: [B, T]."""
    behind = jnp.arange(tokens.shape[1])[None] + ahead >= prompt_length
    return behind & (shifted(tokens + 1, ahead) > 0)


def _hits(logits: Array, best: Array, counted: Array, ranks: int) -> Array:
    """Return how often ``best`` [B, T] has each of the first ranks in logits [V, B, T]: [K]."""
    of_best = jnp.take_along_axis(logits, best[None], axis=0)
    rank = jnp.sum(logits > of_best, axis=0)
    return jnp.sum((rank[..., None] == jnp.arange(ranks)[None, None]) & counted[..., None], axis=(0, 1))
