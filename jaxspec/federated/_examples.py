"""Training examples and evaluation texts: windows of the clients' text, continued by the target."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jaxspec.analysis import step_ends
from jaxspec.models.base import Array, Model, Network, Params
from jaxspec.text.prompts import Continued, behind, filled, lengths
from jaxspec.training import hidden_states, log_probabilities
from jaxspec.training.losses import texts_at_once
from jaxspec.verify.sampling import guess

#: Arrays [n, ...] of one client, by name.
Examples = dict[str, np.ndarray]


class TopTokens(NamedTuple):
    """The target's k most likely next tokens after every token but the last, most likely first.

    Attributes:
        tokens: [n, T − 1, k] int32.
        log_probabilities: of these tokens, [n, T − 1, k]; nats.
    """

    tokens: np.ndarray
    log_probabilities: np.ndarray


def top_tokens(target: Model, tokens: np.ndarray, k: int, progress: bool = False, batch_size: int = 32) -> TopTokens:
    """Compute the target's ``k`` most likely next tokens along texts [n, T], by teacher-forced passes.

    Args:
        target: the model whose probabilities are computed.
        tokens: texts; −1 after the end of a text, where the result has no meaning.
        k: number of tokens to keep at each position.
        progress: show a bar.
        batch_size: texts per pass, fewer where the vocabulary is large.

    Raises:
        ValueError: ``k`` is not between 1 and the vocabulary's size.
        FloatingPointError: the target's logits are NaN or infinite; the message names the texts.
    """
    size = target.network.config.vocab_size
    if not 1 <= k <= size:
        raise ValueError(f"expected 1 <= top_k <= {size} (tokens of the vocabulary), got {k}")
    batch_size = texts_at_once(size, tokens.shape[1], batch_size)
    starts = tqdm(range(0, len(tokens), batch_size), desc="top tokens", unit="batch", disable=not progress)
    compute = partial(_top_tokens, target.network, k, target.params)
    texts = filled(tokens)[:, :-1]
    batches = [jax.device_get(compute(texts[start : start + batch_size])) for start in starts]
    ids, logs = (np.concatenate(part) for part in zip(*batches, strict=True))
    if bad := np.flatnonzero(np.isnan(logs).any(axis=(1, 2))).tolist():
        raise FloatingPointError(
            f"expected the target's logits to be numbers, got NaN or infinity along texts {bad[:8]}; look for NaN in "
            "its weights, or load it in bfloat16 or float32 (float16 overflows above 65504)"
        )
    return TopTokens(ids, logs)


@partial(jax.jit, static_argnums=(0, 1))
def _top_tokens(network: Network, k: int, params: Params, tokens: Array) -> tuple[Array, Array]:
    logs, ids = jax.lax.top_k(jnp.moveaxis(log_probabilities(network, params, tokens), 0, -1), k)
    return ids.astype(jnp.int32), logs


def client_examples(data: Continued, owners: Sequence[int], top: TopTokens | None = None) -> list[Examples]:
    """Make each client's training examples, for ``train.distillation_loss`` and ``streams.streaming_loss``.

    ``tokens`` are the inputs. ``labels`` are the target's greedy next tokens; −1 (not counted) inside the prompt and
    after a stop token. With ``top`` the draft also learns inside the prompt: ``labels`` are then the next tokens of the
    text at every position, and ``top_tokens`` and ``top_logs`` hold the target's most likely tokens there.

    Args:
        data: continuations of all clients' prompts.
        owners: client of each row, ascending.
        top: the target's most likely tokens along ``data.tokens``, from ``top_tokens``.
    """
    labels = data.tokens[:, 1:].copy()
    arrays = {"tokens": filled(data.tokens)[:, :-1], "labels": labels}
    if top is None:
        labels[~behind(data.prompt_length, data.tokens.shape)[:, 1:]] = -1
    else:
        arrays |= {"top_tokens": top.tokens, "top_logs": top.log_probabilities}
    owner = np.asarray(owners)
    return [{name: array[owner == i] for name, array in arrays.items()} for i in np.unique(owner)]


def accepted_length(network: Network, params: Params, data: Continued, window: int) -> float:
    """Return the mean num_accepted per step of greedy speculative decoding on these continuations.

    Drafted tokens up to the first mismatch are the target's own tokens, so one teacher-forced pass of the draft gives
    every acceptance. The result equals that of a real decode of all but the last γ tokens of ``data``. A row that ends
    at a stop token counts up to that token.

    Raises:
        ValueError: there is no continuation, or none is longer than a window or ends at a stop token.
    """
    return mean_accepted([(params, data)], network, window)


def mean_accepted(parts: Sequence[tuple[Params, Continued]], network: Network, window: int) -> float:
    """Return ``accepted_length`` where each part of the continuations has its own draft.

    Raises:
        ValueError: there is no continuation, or none is longer than a window or ends at a stop token.
    """
    if not any(len(data.tokens) for _, data in parts):
        raise ValueError("expected at least one continuation to evaluate on, got none; pass longer texts")
    agrees = [row for params, data in parts for row in _agreement_rows(network, params, data, window)]
    accepted = [count for _, _, count in step_ends(agrees, window)]
    if not accepted:
        longest = max(data.most for _, data in parts)
        raise ValueError(f"expected more than {window} tokens after a prompt, got {longest}; use longer continuations")
    return float(np.mean(accepted))


def _agreement_rows(network: Network, params: Params, data: Continued, window: int) -> list[np.ndarray]:
    """Return whether draft and target agree, per new token; False after a stop token, to complete last steps."""
    texts = filled(data.tokens)
    size = texts_at_once(network.config.vocab_size, texts.shape[1], len(texts))
    parts = [_agreement(network, params, texts[at : at + size]) for at in range(0, len(texts), size)]
    agrees = np.concatenate(jax.device_get(parts))
    rows = []
    for row, start, end in zip(agrees, data.starts, lengths(data.tokens), strict=True):
        new = row[start - 1 : end - 1]
        rows.append(np.pad(new, (0, window)) if end - start < data.most else new)
    return rows


@partial(jax.jit, static_argnums=0)
def _agreement(network: Network, params: Params, tokens: Array) -> Array:
    """Return whether the draft's argmax equals the next token of the text, [n, T − 1]; False if its logits are NaN."""
    inputs = tokens[:, :-1]
    return guess(network.logits(params, hidden_states(network, params, inputs)[-1])) == tokens[:, 1:]
