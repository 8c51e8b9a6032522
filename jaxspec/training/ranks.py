"""How often a draft's r-th likeliest token is the target's: what static trees are fitted to."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.core.arguments import whole
from jaxspec.drafts.base import Draft
from jaxspec.drafts.networks import DraftNetwork
from jaxspec.models.base import Array, Model, Network, Params
from jaxspec.text.prompts import Continued, behind
from jaxspec.training._trained import network_of
from jaxspec.training._unroll import drafted_logits, shifted
from jaxspec.training.losses import hidden_states


def rank_accuracy(
    draft: Model | Draft,
    target: Model,
    tokens: np.ndarray | Continued,
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
        tokens: best the target's continuations: [n, T], −1 behind the end of a text, or with the length of each prompt.
        prompt_length: tokens of each text [n, T] at which no draft begins.
        depth: D, at most as many as the draft has heads.
        ranks: K, at most as many as there are tokens.
        batch_size: texts at a time.

    Raises:
        ValueError: another draft or one for another target, a number below 1, or texts too short.
    """
    whole("ranks", ranks, 1, target.network.config.vocab_size)
    whole("depth of a tree", depth, 1)
    texts = Continued.of(tokens, prompt_length)
    rows, mask = texts.tokens, behind(texts.prompt_length, texts.tokens.shape[:2])
    if rows.ndim != 2 or rows.shape[1] < np.max(texts.prompt_length) + depth + 2:
        raise ValueError(f"expected texts [n, T] with T > prompt_length + depth + 1, got shape {rows.shape}")
    network: Any = draft.network if isinstance(draft, Model) else network_of(draft, target)
    levels = 1 if isinstance(draft, Model) else min(depth, network.depth or depth)
    count = partial(_counts, network, target.network, levels, ranks, draft.params, target.params)
    parts = [count(rows[at : at + batch_size], mask[at : at + batch_size]) for at in range(0, len(rows), batch_size)]
    right, places = (np.sum(part, axis=0) for part in zip(*jax.device_get(parts), strict=True))
    table = right / np.maximum(places, 1)[:, None]
    return np.repeat(table, depth, axis=0) if isinstance(draft, Model) else table


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _counts(
    network: Any,
    of: Network,
    depth: int,
    ranks: int,
    params: Params,
    of_params: Params,
    tokens: Array,
    mask: Array,
) -> tuple[Array, Array]:
    """Return how often each of the first ranks is right, [D, K], and at how many places: [D]."""
    text, target, found = jnp.where(tokens >= 0, tokens, 0), Model(of, of_params), []
    best = jnp.argmax(_logits(of, of_params, text), axis=0)
    if reads := isinstance(network, DraftNetwork):
        levels = drafted_logits(network, params, target, text, depth)
    else:
        levels = [_logits(network, params, text)]
    for ahead, logits in enumerate(levels, start=int(reads)):
        counted = shifted(mask & (tokens >= 0), ahead + 1)
        found.append((_hits(logits, shifted(best, ahead), counted, ranks), jnp.sum(counted)))
    right, places = zip(*found, strict=True)
    return jnp.stack(right), jnp.stack(places)


def _logits(network: Network, params: Params, tokens: Array) -> Array:
    return network.logits(params, hidden_states(network, params, tokens)[-1])


def _hits(logits: Array, best: Array, counted: Array, ranks: int) -> Array:
    """Return how often ``best`` [B, T] has each of the first ranks in logits [V, B, T]: [K]."""
    of_best = jnp.take_along_axis(logits, best[None], axis=0)
    rank = jnp.sum(logits > of_best, axis=0)
    return jnp.sum((rank[..., None] == jnp.arange(ranks)[None, None]) & counted[..., None], axis=(0, 1))
