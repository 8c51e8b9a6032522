"""Continued training of a target so that its own head reads an early layer, and what that costs in perplexity."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.models.base import Array, Model, Network, Params
from jaxspec.text.prompts import Continued, behind, filled
from jaxspec.training._fit import Schedule, fit, within
from jaxspec.training._hidden import stored_hidden
from jaxspec.training._rows import TextRows, batches
from jaxspec.training._trained import as_float32
from jaxspec.training.divergences import SOFT, weighted
from jaxspec.training.exits import KAPPAS, check_layers
from jaxspec.training.losses import LossFn, cross_entropy, hidden_states, masked_mean, texts_at_once


class ExitCost(NamedTuple):
    """What held-out texts say of a target with early exits.

    Attributes:
        prompts: perplexity of the tokens of the prompts, which people wrote.
        answers: perplexity of those behind them.
        contained: from an exit's layer and κ to how often its κ likeliest tokens contain the next token of an answer.
    """

    prompts: float
    answers: float
    contained: dict[int, dict[int, float]]


def early_exit_loss(target: Model, layers: Sequence[int], weight: float = 0.2) -> LossFn:
    """Build L = CE(P, Q^N) + w·Σ_ℓ CE(P, Q^ℓ) over all tokens of a text, prompts included; nats per token.

    P is the distribution of the target as it was, from ``batch["hidden"]`` [1, B, T, D], its stream after the last
    layer; Q^ℓ that of the trained target's final norm and head after ℓ layers. The first term keeps what it says.

    Args:
        target: as it was.
        layers: ℓ of the exits.
        weight: w.

    Source: the loss of LayerSkip (arXiv 2404.16710), §4.1.2, with P in place of the text.
    """
    network, frozen, exits = target.network, target.params, tuple(sorted(layers))

    def loss_fn(params: Params, batch: Mapping[str, Any], key: Array) -> tuple[Array, dict[str, Array]]:
        last = jnp.moveaxis(jnp.asarray(batch["hidden"][-1]), -1, 0)
        expected, counted = network.logits(frozen, last), {"labels": batch["tokens"]}
        *early, final = (
            masked_mean(weighted(SOFT, network.logits(params, x), expected), counted)
            for x in hidden_states(network, params, jnp.maximum(batch["tokens"], 0), exits)
        )
        named = {f"exit {layer}": loss for layer, loss in zip(exits, early, strict=True)}
        return final + weight * sum(early[1:], early[0]), {"final": final} | named

    return loss_fn


def fit_target(
    target: Model,
    layers: Sequence[int],
    texts: Continued,
    *,
    weight: float = 0.2,
    schedule: Schedule = Schedule(learning_rate=1e-4),  # noqa: B008  a frozen default
    seed: int = 0,
    directory: str | Path,
    hidden: str | Path | None = None,
    progress: bool = True,
) -> Model:
    """Train a target further so that its own head reads some early layers (``early_exit_loss``).

    All parameters are trained, in float32; the result has the target's types. It is another model: with drafts, exits
    and texts of the first one it decodes correctly, but worse.

    Args:
        target: is not changed.
        layers: ℓ of the exits.
        texts: best the target's own answers (``generation.continued``).
        weight: w, of each exit.
        schedule: optimiser steps; rows longer than its ``sequence_length`` are cut.
        seed: of the batches.
        directory: of steps, to resume from with the same arguments.
        hidden: where the target's hidden states are kept; default: in ``directory``.
        progress: show bars.

    Raises:
        ValueError: layers that the target lacks or that occur twice.
        FloatingPointError: the loss is not finite; names the step.
    """
    check_layers(target, layers)
    folder = Path(directory)
    states = stored_hidden(target, (), texts.tokens, Path(hidden or folder / "hidden"), progress)
    batch_fn = partial(TextRows(texts, states, schedule.sequence_length).batch, schedule.batch_size, seed)
    loss, start = early_exit_loss(target, layers, weight), as_float32(target.params)
    schedule = within(schedule, loss, start, batch_fn, folder)
    params = fit(
        loss, start, batch_fn, schedule, directory=folder / "steps", seed=seed, label="target", progress=progress
    )
    return target._replace(params=jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), params, target.params))


def exit_cost(target: Model, layers: Sequence[int], held_out: Continued) -> ExitCost:
    """Measure the perplexity of a target on texts, and what its own head reads after some layers."""
    rows, answers = held_out.tokens, behind(held_out.prompt_length, held_out.tokens.shape)
    count = partial(_counts, target.network, tuple(layers), target.params)
    size = texts_at_once(target.network.config.vocab_size, rows.shape[1], 8)
    parts = jax.device_get([count(*part) for part in batches((filled(rows), rows >= 0, answers), size)])
    nats, tokens, hits = (np.sum(part, axis=0) for part in zip(*parts, strict=True))
    prompts, said = np.exp(nats / np.maximum(tokens, 1)).tolist()
    shares = (hits / max(tokens[1], 1)).tolist()
    return ExitCost(
        prompts, said, {layer: dict(zip(KAPPAS, row, strict=True)) for layer, row in zip(layers, shares, strict=True)}
    )


@partial(jax.jit, static_argnums=(0, 1))
def _counts(
    network: Network, layers: tuple[int, ...], params: Params, tokens: Array, present: Array, answers: Array
) -> tuple[Array, Array, Array]:
    """Return nats and numbers of tokens of prompts and answers, [2] each, and hits by exit and κ: [E, K]."""
    labels = tokens[:, 1:]
    *early, final = (x[:, :, :-1] for x in hidden_states(network, params, tokens, layers))
    nats = cross_entropy(network.logits(params, final), labels)
    kinds = [present[:, 1:] & kind for kind in (~answers[:, 1:], answers[:, 1:])]
    hits = []
    for x in early:
        logits = network.logits(params, x)
        rank = jnp.sum(logits > jnp.take_along_axis(logits, labels[None], axis=0), axis=0)
        hits.append(jnp.stack([jnp.sum((rank < kappa) & kinds[1]) for kappa in KAPPAS]))
    return (
        jnp.stack([jnp.sum(jnp.where(kind, nats, 0.0)) for kind in kinds]),
        jnp.stack([jnp.sum(kind) for kind in kinds]),
        jnp.stack(hits),
    )
