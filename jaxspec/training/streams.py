"""Training of lookahead streams: the next token and those behind it, on text that the target wrote."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxspec.drafts.streams import StreamingNetwork, causal_streams, forward, num_streams
from jaxspec.models.attention import causal
from jaxspec.models.base import Array, Model, Network, Params
from jaxspec.training.train import LossFn, Schedule, fit, mean_counted, told_loss


def streaming_loss(network: Network) -> LossFn:
    """Cross-entropy of the next token and, stream by stream, of those behind it; nats per token.

    L = CE(main; y_{t+1}) + (1/k)·Σ_j CE(stream j; y_{t+1+j}) at every place t of ``tokens`` [B, T]. A batch may carry
    what the target said, ``labels`` or ``top_tokens`` and ``top_logs`` as for ``train.distillation_loss``: the main
    stream learns these, and the others the labels; without them the text itself is what is learnt, up to where its
    tokens are −1.

    Source: Speculative Streaming (arXiv 2402.11131), §3.1, without its weights.
    """
    assert isinstance(network, StreamingNetwork)
    count, layers = network.count, network.config.num_layers
    attends = causal(), causal_streams(count)

    def loss_fn(params: Params, batch: Mapping[str, Array], key: Array) -> tuple[Array, dict[str, Array]]:
        if "labels" not in batch:
            ended = batch["tokens"]
            batch = {**batch, "tokens": jnp.maximum(ended[:, :-1], 0), "labels": ended[:, 1:]}
        tokens = batch["tokens"]
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1])[None], tokens.shape)
        x, _ = forward(network, params, tokens, positions, (None,) * layers, attends)
        logits, length = network.logits(params, x), tokens.shape[1]
        main = mean_counted(told_loss(logits[:, :, :length], batch), batch)
        ahead = logits[:, :, length:].reshape(*logits.shape[:2], length, count)
        found = [_guess(ahead[..., j], batch, j + 1) for j in range(count)]
        losses, right = ([pair[part] for pair in found] for part in (0, 1))
        return main + sum(losses) / count, {"main": main} | {f"right {j + 1}": share for j, share in enumerate(right)}

    return loss_fn


def _guess(logits: Array, batch: Mapping[str, Array], ahead: int) -> tuple[Array, Array]:
    """Cross-entropy of a stream's logits [V, B, T] at the token ``ahead`` of the next one; how often it is right."""
    known = batch["labels"][:, ahead:]
    logits = logits[:, :, : known.shape[1]]
    counted = {name: batch[name] for name in ("mask",) if name in batch} | {"labels": known}
    right = (jnp.argmax(logits, axis=0) == known).astype(jnp.float32)
    return mean_counted(told_loss(logits, counted), counted), mean_counted(right, counted)


def fit_streams(
    draft: Model,
    tokens: np.ndarray,
    *,
    frozen: bool = True,
    schedule: Schedule = Schedule(steps=400, learning_rate=4e-3),  # noqa: B008  a frozen default
    seed: int = 0,
    directory: str | Path | None = None,
    progress: bool = True,
) -> Model:
    """Trains the streams of a draft (``streaming_loss``).

    Args:
        draft: from ``jaxspec.streaming``.
        tokens: text to train on, best the target's own continuations (``federated.continued``): [n, T] int32, −1
            behind the end of a text.
        frozen: leave the plain draft as it is, so that it accepts what it did; else it is trained along.
        schedule: optimiser steps; ``sequence_length`` counts for nothing, the rows are taken whole.
        seed: of the batches.
        directory: where to save, and to go on from.
        progress: show a bar.

    Raises:
        ValueError: a draft without streams, or rows too short for them.
    """
    network, count = draft.network, num_streams(draft.network)
    if not count:
        raise ValueError("expected a draft with streams, got a plain one; make one with jaxspec.streaming(draft)")
    if tokens.ndim != 2 or tokens.shape[1] < count + 3:
        raise ValueError(f"expected tokens [n, T] with T >= {count + 3} (streams and 3), got shape {tokens.shape}")
    loss, whole = streaming_loss(network), draft.params

    def batch(step: int) -> dict[str, Any]:
        rows = np.random.default_rng((seed, step)).integers(0, len(tokens), schedule.batch_size)
        return {"tokens": tokens[rows]}

    def streams_alone(own: Params, examples: Mapping[str, Array], key: Array) -> tuple[Array, dict[str, Array]]:
        return loss({**whole, "streams": own}, examples, key)

    options: dict[str, Any] = {"directory": directory, "seed": seed, "label": "streams", "progress": progress}
    if frozen:
        own = fit(streams_alone, whole["streams"], batch, schedule, **options)
        return draft._replace(params={**whole, "streams": own})
    return draft._replace(params=fit(loss, whole, batch, schedule, **options))
