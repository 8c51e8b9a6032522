"""Training of lookahead streams: they predict the tokens after the next one, on text that the target generated."""

from collections.abc import Mapping
from functools import singledispatch
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxspec.drafts.streams import StreamingNetwork, causal_streams, forward, num_streams
from jaxspec.models.attention import causal
from jaxspec.models.base import Array, Model, Network, Params
from jaxspec.training._fit import Schedule, fit
from jaxspec.training.losses import LossFn, distillation_loss, masked_mean, recorded_loss


def streaming_loss(network: Network) -> LossFn:
    """Build the cross-entropy of the next token and of the tokens that the streams predict after it; nats per token.

    L = CE(main; y_{t+1}) + (1/k)·Σ_j CE(stream j; y_{t+1+j}) at every position t of ``tokens`` [B, T]. A batch may
    have the target's output, ``labels`` and also ``top_tokens`` and ``top_logs`` as for ``distillation_loss``: the main
    stream is trained on these, the others on the labels. Without ``labels`` they are the text, up to the first −1.

    Source: Speculative Streaming (arXiv 2402.11131), §3.1, without its weights.

    Raises:
        ValueError: a network without streams.
    """
    if not isinstance(network, StreamingNetwork):
        raise ValueError("expected a draft with streams, got a plain one; make one with jaxspec.streaming(draft)")
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
        main = masked_mean(recorded_loss(logits[:, :, :length], batch), batch)
        ahead = logits[:, :, length:].reshape(*logits.shape[:2], length, count)
        results = [_stream_loss(ahead[..., j], batch, j + 1) for j in range(count)]
        losses, right = zip(*results, strict=True)
        return main + sum(losses) / count, {"main": main} | {f"right {j + 1}": share for j, share in enumerate(right)}

    return loss_fn


def _stream_loss(logits: Array, batch: Mapping[str, Array], ahead: int) -> tuple[Array, Array]:
    """Return a stream's cross-entropy and accuracy for the token ``ahead`` positions after the next one."""
    labels = batch["labels"][:, ahead:]
    logits = logits[:, :, : labels.shape[1]]
    shifted = {name: batch[name] for name in ("mask",) if name in batch} | {"labels": labels}
    right = (jnp.argmax(logits, axis=0) == labels).astype(jnp.float32)
    return masked_mean(recorded_loss(logits, shifted), shifted), masked_mean(right, shifted)


@singledispatch
def draft_loss(network: Network) -> LossFn:
    """Return the loss that trains such a draft: ``distillation_loss``, or ``streaming_loss`` for one with streams."""
    return distillation_loss(network)


draft_loss.register(StreamingNetwork)(streaming_loss)


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
    """Train the streams of a draft (``streaming_loss``).

    Args:
        draft: from ``jaxspec.streaming``.
        tokens: text, best the target's continuations (``federated.continued``): [n, T] int32, −1 after its end.
        frozen: train the streams only, so that the acceptance of the plain draft stays; else train all parameters.
        schedule: optimiser steps; ``sequence_length`` is not used, rows are taken whole.
        seed: of the batches.
        directory: where to save, and to resume from.
        progress: show a bar.

    Raises:
        ValueError: a draft without streams, or rows too short for them.
    """
    loss, params, count = streaming_loss(draft.network), draft.params, num_streams(draft.network)
    if tokens.ndim != 2 or tokens.shape[1] < count + 3:
        raise ValueError(f"expected tokens [n, T] with T >= {count + 3} (streams + 3), got shape {tokens.shape}")

    def batch(step: int) -> dict[str, Any]:
        rows = np.random.default_rng((seed, step)).integers(0, len(tokens), schedule.batch_size)
        return {"tokens": tokens[rows]}

    def streams_alone(own: Params, examples: Mapping[str, Array], key: Array) -> tuple[Array, dict[str, Array]]:
        return loss({**params, "streams": own}, examples, key)

    options: dict[str, Any] = {"directory": directory, "seed": seed, "label": "streams", "progress": progress}
    if frozen:
        own = fit(streams_alone, params["streams"], batch, schedule, **options)
        return draft._replace(params={**params, "streams": own})
    return draft._replace(params=fit(loss, params, batch, schedule, **options))
