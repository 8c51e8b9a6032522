"""Heads that score some of a vocabulary's tokens: which row is whose, and logits over all tokens."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxspec.models.base import Array, Model


def token_index(ids: Sequence[int] | np.ndarray | range, vocab_size: int) -> Array:
    """Return the row of every token in a head that scores ``ids``, and their number for all others: [V] int32."""
    rows = jnp.full(vocab_size, len(ids), jnp.int32)
    return rows.at[np.asarray(ids)].set(jnp.arange(len(ids), dtype=jnp.int32))


def head_over(model: Model, ids: np.ndarray | None) -> Array:
    """Return a decoder's output head, its embedding if they are tied, or the rows of some tokens."""
    head = model.params.get("head", model.params["embedding"])
    return head if ids is None else head[np.asarray(ids)]


def spread(logits: Array, index: Array) -> Array:
    """Return logits over all tokens, −∞ where the head has no row: [V, B, T] from those of its own, [K, B, T]."""
    return jnp.take(logits, index, axis=0, mode="fill", fill_value=-jnp.inf)


def tokens_of_head(index: Array | np.ndarray) -> np.ndarray:
    """Return the token of every row of a head, from ``token_index``."""
    rows = np.asarray(index)
    return np.argsort(rows, kind="stable")[: int((rows < rows.max()).sum())]


def narrowed(model: Model, ids: Sequence[int] | np.ndarray) -> Model:
    """Return a model of which only ``network.logits`` is meant to be used: it scores ``ids`` alone, [K, B, T].

    Raises:
        ValueError: a network of functions of one's own, or whose head scores some tokens only.
    """
    config, ends = model.network.config, model.network.config.ends
    if model.network.with_config is None or ends.head_tokens is not None:
        raise ValueError("expected a decoder whose head scores every token, got another network")
    name = "embedding" if ends.tied else "head"
    params: dict[str, Any] = {**model.params, name: head_over(model, np.asarray(ids))}
    return Model(model.network.with_config(replace(config, vocab_size=len(ids))), params, model.text)
