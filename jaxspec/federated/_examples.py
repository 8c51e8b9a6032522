"""What clients train on and are judged by: windows of their text, continued by the target, and the target's laws."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jaxspec.analysis import step_ends
from jaxspec.generation import generate
from jaxspec.methods import autoregressive
from jaxspec.models.base import Array, Model, Network, Params
from jaxspec.text import filled, lengths
from jaxspec.training import log_probabilities
from jaxspec.verify.sampling import guess

#: Named arrays [n, ...] of one client.
Examples = dict[str, np.ndarray]


class Continued(NamedTuple):
    """Prompts, then the target's own greedy tokens.

    Attributes:
        tokens: [n, P + L]; −1 behind a stop token of the target, which is the last token of its row.
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


def continued(
    target: Model, prompts: np.ndarray, new_tokens: int, progress: bool = False, batch_size: int = 96
) -> Continued:
    """The target's greedy continuation of prompts [n, P], as ``generate`` decodes it, ``batch_size`` rows at a time.

    A row ends after ``new_tokens``, or earlier at a stop token that the target came with (``Text.stop``).
    """
    method, new = autoregressive(target), []
    with tqdm(total=len(prompts), desc="continue", unit="text", disable=not progress) as bar:
        for start in range(0, len(prompts), batch_size):
            batch = prompts[start : start + batch_size]
            new += generate(method, batch.tolist(), new_tokens).tokens
            bar.update(len(batch))
    rows = [np.pad(np.asarray(row, np.int32), (0, new_tokens - len(row)), constant_values=-1) for row in new]
    return Continued(np.concatenate([prompts, np.stack(rows)], axis=1), prompts.shape[1])


def laws(target: Model, tokens: np.ndarray, k: int, progress: bool = False, batch_size: int = 32) -> Laws:
    """The target's first ``k`` next tokens along texts [n, T], by teacher-forced passes: what a client may cache.

    Args:
        target: whose laws these are.
        tokens: texts; −1 behind the end of one, where a law means nothing.
        k: tokens to keep.
        progress: show a bar.
        batch_size: texts a pass.

    Raises:
        ValueError: ``k`` is not between 1 and the vocabulary's size.
        FloatingPointError: the target's logits are NaN or infinite; names the text.
    """
    size = target.network.config.vocab_size
    if not 1 <= k <= size:
        raise ValueError(f"expected 1 <= top_k <= {size} (tokens of the vocabulary), got {k}")
    starts = tqdm(range(0, len(tokens), batch_size), desc="laws", unit="batch", disable=not progress)
    read = partial(_laws, target.network, k, target.params)
    texts = filled(tokens)[:, :-1]
    found = [jax.device_get(read(texts[start : start + batch_size])) for start in starts]
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
    """Training examples per client, for ``training.distillation_loss`` and ``training.streaming_loss``.

    ``tokens``, and ``labels``: the target's own next token (−1, not counted, inside the prompt and behind a stop
    token). With laws the target speaks after every token, in the prompt as well: ``labels`` are what follows there,
    ``top_tokens`` and ``top_logs`` the laws.

    Args:
        data: continuations of all clients' prompts.
        owners: client of each row, ascending.
        target_laws: along ``data.tokens``, by ``laws``.
    """
    labels = data.tokens[:, 1:].copy()
    arrays = {"tokens": filled(data.tokens)[:, :-1], "labels": labels}
    if target_laws is None:
        labels[:, : data.prompt_length - 1] = -1
    else:
        arrays |= {"top_tokens": target_laws.tokens, "top_logs": target_laws.log_probabilities}
    owner = np.asarray(owners)
    return [{name: array[owner == i] for name, array in arrays.items()} for i in np.unique(owner)]


def accepted_length(network: Network, params: Params, data: Continued, window: int) -> float:
    """Mean num_accepted a step that greedy speculative decoding has on these continuations.

    Drafted tokens up to the first mismatch are the target's own, so one teacher-forced pass of the draft tells every
    acceptance; the result equals a real decode of all but the last γ tokens of ``data``. A row that ends at a stop
    token counts up to there.

    Raises:
        ValueError: no continuation is longer than a window, and none ends by itself.
    """
    return mean_accepted([(params, data)], network, window)


def mean_accepted(parts: Sequence[tuple[Params, Continued]], network: Network, window: int) -> float:
    """``accepted_length`` where every part of the continuations has a draft of its own.

    Raises:
        ValueError: no continuation at all, or none longer than the window: there is no mean.
    """
    if not any(len(data.tokens) for _, data in parts):
        raise ValueError("expected at least one continuation to judge by, got none; pass texts of one prompt or more")
    agrees = [line for params, data in parts for line in _lines(network, params, data, window)]
    found = [accepted for _, _, accepted in step_ends(agrees, window)]
    if not found:
        longest = max(data.tokens.shape[1] - data.prompt_length for _, data in parts)
        raise ValueError(f"expected more than {window} tokens behind a prompt, got {longest}; continue them further")
    return float(np.mean(found))


def _lines(network: Network, params: Params, data: Continued, window: int) -> list[np.ndarray]:
    """Whether the draft agrees, token by token; behind a stop token it never does, so that the last steps are whole."""
    agrees = np.asarray(_agreement(network, params, jnp.asarray(filled(data.tokens))))
    lines = []
    for row, tokens in zip(agrees, data.tokens, strict=True):
        line = row[data.prompt_length - 1 : lengths(tokens[None])[0] - 1]
        lines.append(np.pad(line, (0, window)) if tokens[-1] < 0 else line)
    return lines


@partial(jax.jit, static_argnums=0)
def _agreement(network: Network, params: Params, tokens: Array) -> Array:
    """Whether the draft's most likely next token is the one that follows, [n, T − 1]; no token if it is NaN."""
    return guess(log_probabilities(network, params, tokens[:, :-1])) == tokens[:, 1:]
