"""What clients train on and are judged by: windows of their text, continued by the target, and the target's laws."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm

from jaxspec.autoregressive import autoregressive
from jaxspec.generate import generate
from jaxspec.probe import step_ends
from jaxspec.sampling import guess
from jaxspec.text import Text
from jaxspec.tokenizer import encode
from jaxspec.train import log_probabilities
from jaxspec.types import Array, Model, Network, Params

#: Named arrays [n, ...] of one client.
Examples = dict[str, np.ndarray]


class Continued(NamedTuple):
    """Prompts, then the target's own greedy tokens.

    Attributes:
        tokens: [n, P + L].
        prompt_length: P.
        owners: client that each row belongs to, ascending; None where that does not matter.
    """

    tokens: np.ndarray
    prompt_length: int
    owners: np.ndarray | None = None


class Laws(NamedTuple):
    """The target's most likely next tokens after every token but the last, by falling probability.

    Attributes:
        tokens: [n, T − 1, k] int32.
        log_probabilities: of these, [n, T − 1, k]; nats.
    """

    tokens: np.ndarray
    log_probabilities: np.ndarray


def windows(tokens: np.ndarray, length: int, count: int) -> np.ndarray:
    """At most ``count`` windows [n, length] of a token array, evenly spread, at most half overlapping.

    Raises:
        ValueError: fewer tokens than one window.
    """
    if len(tokens) < length:
        raise ValueError(f"expected at least {length} tokens for one prompt, got {len(tokens)}; leave this client out")
    room = len(tokens) - length
    starts = np.linspace(0, room, min(count, 1 + 2 * room // length)).astype(int)
    return tokens[starts[:, None] + np.arange(length)[None]]


def token_rows(
    tokenizer: Tokenizer | Text, texts: Sequence[str], length: int, count: int
) -> tuple[np.ndarray, list[int]]:
    """Prompts of several texts, [n, length], and the text each belongs to."""
    rows = [windows(tokens_of(tokenizer, text), length, count) for text in texts]
    return np.concatenate(rows), [index for index, part in enumerate(rows) for _ in part]


def tokens_of(tokenizer: Tokenizer | Text, text: str) -> np.ndarray:
    """Token ids [T] int32 of a text, as a tokenizer or a model's own ``Text`` reads it."""
    if not isinstance(tokenizer, Text):
        return encode(tokenizer, text)
    read = tokenizer.encode_marked or tokenizer.encode
    if read is None:
        raise ValueError("expected a tokenizer, got a Text without one; pass jaxspec.Text.of(tokenizer)")
    return read(text)


def continued(
    target: Model, prompts: np.ndarray, new_tokens: int, progress: bool = False, batch_size: int = 96
) -> Continued:
    """The target's greedy continuation of prompts [n, P] by ``new_tokens``, at most ``batch_size`` at a time."""
    method, new = autoregressive(target), []
    with tqdm(total=len(prompts), desc="continue", unit="text", disable=not progress) as bar:
        for start in range(0, len(prompts), batch_size):
            batch = prompts[start : start + batch_size]
            new += generate(method, batch.tolist(), new_tokens).tokens
            bar.update(len(batch))
    return Continued(np.concatenate([prompts, np.asarray(new, np.int32)], axis=1), prompts.shape[1])


def laws(target: Model, tokens: np.ndarray, k: int, progress: bool = False, batch_size: int = 32) -> Laws:
    """The target's first ``k`` next tokens along texts [n, T], by teacher-forced passes: what a client may cache.

    Raises:
        ValueError: ``k`` is not between 1 and the vocabulary's size.
        FloatingPointError: the target's logits are NaN or infinite; names the text.
    """
    size = target.network.config.vocab_size
    if not 1 <= k <= size:
        raise ValueError(f"expected 1 <= top_k <= {size} (tokens of the vocabulary), got {k}")
    starts = tqdm(range(0, len(tokens), batch_size), desc="laws", unit="batch", disable=not progress)
    read = partial(_laws, target.network, k, target.params)
    found = [jax.device_get(read(tokens[start : start + batch_size, :-1])) for start in starts]
    ids, logs = (np.concatenate(part) for part in zip(*found, strict=True))
    if bad := np.flatnonzero(np.isnan(logs).any(axis=(1, 2))).tolist():
        raise FloatingPointError(
            f"expected the target's logits to be numbers, got NaN or infinity along texts {bad[:8]}; look for NaN in "
            "its weights, or load it in bfloat16 or float32 (float16 overflows above 65504)"
        )
    return Laws(ids, logs)


@partial(jax.jit, static_argnums=(0, 1))
def _laws(network: Network, k: int, params: Params, tokens: Array) -> tuple[Array, Array]:
    logs, ids = jax.lax.top_k(jnp.moveaxis(log_probabilities(network, params, tokens), 0, -1), k)
    return ids.astype(jnp.int32), logs


def client_examples(data: Continued, owners: Sequence[int], target_laws: Laws | None = None) -> list[Examples]:
    """Training examples per client, for ``train.distillation_loss`` and ``stream_training.streaming_loss``.

    ``tokens``, and ``labels``: the target's own next token (−1 inside the prompt). With laws the target speaks after
    every token, in the prompt as well: ``labels`` are what follows there, ``top_tokens`` and ``top_logs`` the laws.

    Args:
        data: continuations of all clients' prompts.
        owners: client of each row, ascending.
        target_laws: along ``data.tokens``, by ``laws``.
    """
    labels = data.tokens[:, 1:].copy()
    arrays = {"tokens": data.tokens[:, :-1], "labels": labels}
    if target_laws is None:
        labels[:, : data.prompt_length - 1] = -1
    else:
        arrays |= {"top_tokens": target_laws.tokens, "top_logs": target_laws.log_probabilities}
    owner = np.asarray(owners)
    return [{name: array[owner == i] for name, array in arrays.items()} for i in np.unique(owner)]


def accepted_length(network: Network, params: Params, data: Continued, window: int) -> float:
    """Mean num_accepted a step that greedy speculative decoding has on these continuations.

    Drafted tokens up to the first mismatch are the target's own, so one teacher-forced pass of the draft tells every
    acceptance; the result equals a real decode of all but the last γ tokens of ``data``.
    """
    return mean_accepted([(params, data)], network, window)


def mean_accepted(parts: Sequence[tuple[Params, Continued]], network: Network, window: int) -> float:
    """``accepted_length`` where every part of the continuations has a draft of its own.

    Raises:
        ValueError: no continuation at all, of which there is no mean.
    """
    if not any(len(data.tokens) for _, data in parts):
        raise ValueError("expected at least one continuation to judge by, got none; pass texts of one prompt or more")
    agrees = [
        row
        for params, data in parts
        for row in np.asarray(_agreement(network, params, jnp.asarray(data.tokens)))[:, data.prompt_length - 1 :]
    ]
    return float(np.mean([accepted for _, _, accepted in step_ends(agrees, window)]))


@partial(jax.jit, static_argnums=0)
def _agreement(network: Network, params: Params, tokens: Array) -> Array:
    """Whether the draft's most likely next token is the one that follows, [n, T − 1]; no token if it is NaN."""
    return guess(log_probabilities(network, params, tokens[:, :-1])) == tokens[:, 1:]
