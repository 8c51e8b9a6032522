"""Losses for language models and drafts.

A loss is ``loss_fn(params, batch, key) -> (loss, aux)``, the form that ``fit`` and ``jaxfed`` take. A batch is a
mapping with ``tokens`` [B, T] int32 and, where some examples are padding, ``mask`` [B] bool.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.models.attention import causal
from jaxspec.models.base import Array, Model, Network, Params
from jaxspec.text.prompts import prompt_prefix, with_prefix

LossFn = Callable[[Params, Mapping[str, Array], Array], tuple[Array, dict[str, Array]]]
"""``loss_fn(params, batch, key) -> (loss, aux)``."""


#: Most logits in one pass, 512 MiB in float32.
MAX_LOGITS = 2**27


def texts_at_once(vocab_size: int, length: int, most: int) -> int:
    """Return how many texts of a length make at most ``MAX_LOGITS`` logits: 1 to ``most``."""
    return max(1, min(most, MAX_LOGITS // (vocab_size * length)))


def hidden_states(network: Network, params: Params, tokens: Array, exits: tuple[int, ...] = ()) -> list[Array]:
    """Return hidden states x [D, B, T] after each layer count in ``exits`` and after the last layer; no cache."""
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1])[None], tokens.shape)
    count = network.config.num_layers
    x, start = network.embed(params, tokens), 0
    states: list[Array] = []
    for stop in (*exits, count):
        x, _ = network.blocks(params, x, positions, (None,) * count, causal(), range(start, stop))
        states, start = [*states, x], stop
    return states


def log_probabilities(network: Network, params: Params, tokens: Array) -> Array:
    """Return log p(next token | tokens so far): [V, B, T]."""
    return jax.nn.log_softmax(network.logits(params, hidden_states(network, params, tokens)[-1]), axis=0)


def language_model_loss(network: Network, exit_layer: int | None = None, exit_weight: float = 0.2) -> LossFn:
    """Build the cross-entropy of the next token, plus ``exit_weight`` times the same of an early exit.

    L = CE(head(norm(x^(N))), y) + w·CE(head(norm(x^(ℓₑ))), y). The exit shares the final norm and the head, so the
    logit lens becomes a good exit head. Nats per token.

    Source: LayerSkip (arXiv 2404.16710), §3.
    """
    exits = () if exit_layer is None else (exit_layer,)

    def loss_fn(params: Params, batch: Mapping[str, Array], key: Array) -> tuple[Array, dict[str, Array]]:
        inputs, labels = batch["tokens"][:, :-1], batch["tokens"][:, 1:]
        *early, final = (
            masked_mean(cross_entropy(network.logits(params, x), labels), batch)
            for x in hidden_states(network, params, inputs, exits)
        )
        return final + exit_weight * sum(early), {"final": final} | dict(zip(("exit",), early, strict=False))

    return loss_fn


def distillation_loss(network: Network, teacher: Model | None = None) -> LossFn:
    """Build the cross-entropy of a draft against a teacher: L = −Σ_v p^N(v)·log p^D(v), nats per token.

    With a ``teacher`` its distribution is computed for every batch. Without one the batch has the teacher's output:
    either ``labels`` [B, T], its most likely token at each position (−1: not counted), L = −log p^D(label); or its k
    most likely tokens in descending order, ``top_tokens`` [B, T, k] and ``top_logs``, renormalised to sum to 1.
    """

    def loss_fn(params: Params, batch: Mapping[str, Array], key: Array) -> tuple[Array, dict[str, Array]]:
        log_draft = log_probabilities(network, params, batch["tokens"])
        if teacher is None:
            losses, choice = _against_recorded(log_draft, batch)
        else:
            log_target = jax.lax.stop_gradient(log_probabilities(teacher.network, teacher.params, batch["tokens"]))
            losses, choice = -jnp.sum(jnp.exp(log_target) * log_draft, axis=0), jnp.argmax(log_target, axis=0)
        agreement = jnp.argmax(log_draft, axis=0) == choice
        return masked_mean(losses, batch), {"agreement": masked_mean(agreement.astype(jnp.float32), batch)}

    return loss_fn


def recorded_loss(logits: Array, batch: Mapping[str, Array]) -> Array:
    """Return the cross-entropy [B, T] of logits [V, B, T] against the teacher's output in a batch.

    The batch has ``labels``, or ``top_tokens`` and ``top_logs`` (``distillation_loss``).
    """
    return _against_recorded(jax.nn.log_softmax(logits, axis=0), batch)[0]


def _against_recorded(log_draft: Array, batch: Mapping[str, Array]) -> tuple[Array, Array]:
    """Return losses and the teacher's most likely tokens, [B, T] each."""
    if "top_tokens" not in batch:
        labels = batch["labels"]
        return jnp.where(labels >= 0, _pick(-log_draft, jnp.maximum(labels, 0)), 0.0), labels
    tokens, weights = batch["top_tokens"], jax.nn.softmax(batch["top_logs"], axis=-1)
    parts = [weights[..., i] * _pick(-log_draft, tokens[..., i]) for i in range(tokens.shape[-1])]
    return sum(parts[1:], parts[0]), tokens[..., 0]


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Return −log softmax(logits [V, B, T]) of labels [B, T], nats: [B, T]."""
    return _pick(-jax.nn.log_softmax(logits, axis=0), labels)


def _pick(table: Array, labels: Array) -> Array:
    """Return entry ``labels`` [B, T] of table [V, B, T]; no gather, whose gradient is a scatter (slow on CPU)."""
    return jnp.sum(jnp.where(jnp.arange(table.shape[0])[:, None, None] == labels[None], table, 0.0), axis=0)


def masked_mean(values: Array, batch: Mapping[str, Array]) -> Array:
    """Average values [B, T] over the positions that count: examples under ``mask``, labels other than −1."""
    counted = jnp.ones_like(values)
    if "labels" in batch:
        counted = counted * (batch["labels"] >= 0).astype(values.dtype)
    if "mask" in batch:
        counted = counted * batch["mask"].astype(values.dtype)[:, None]
    return jnp.sum(values * counted) / jnp.maximum(jnp.sum(counted), 1.0)


def bits_per_character(model: Model, corpus: np.ndarray, characters: int, length: int = 256, batch: int = 8) -> float:
    """Return the cross-entropy of a flat token array in bits per character, over windows of ``length`` labels.

    Windows do not overlap, so the first tokens of each have little context. The incomplete last window is left out.
    Each begins with the tokens that the model's tokenizer puts before a prompt.

    Raises:
        ValueError: fewer tokens than one window.
    """
    count = (len(corpus) - 1) // length
    if count < 1:
        raise ValueError(f"expected more than {length} tokens, got {len(corpus)}; use a longer text")
    windows = corpus[: count * length + 1][np.arange(count)[:, None] * length + np.arange(length + 1)[None]]
    windows = with_prefix(windows, prompt_prefix(model.text))
    loss = jax.jit(
        lambda params, tokens: language_model_loss(model.network)(params, {"tokens": tokens}, jax.random.key(0))[0]
    )
    parts = [windows[start : start + batch] for start in range(0, count, batch)]
    nats = sum(float(loss(model.params, jnp.asarray(part))) * len(part) for part in parts) / count
    return nats / np.log(2) * (len(corpus) / characters)
