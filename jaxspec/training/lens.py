"""An exit head for a target that was trained without one: an affine lens, distilled from the target's last layer."""

from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.models.base import Array, Model, Params
from jaxspec.text.prompts import prompt_prefix
from jaxspec.training._fit import Schedule, fit
from jaxspec.training.losses import LossFn, hidden_states, masked_mean
from jaxspec.verify.exits import AffineLens, init_affine_lens


def lens_loss(target: Model, exit_layer: int) -> LossFn:
    """Build the cross-entropy of an exit head against the target: L = −Σ_v p^N(v)·log p^E(v), nats per token.

    Parameters are those of the exit head, as from ``exits.init_affine_lens``; the target is not trained.
    """
    network, frozen = target.network, target.params

    def loss_fn(lens: Params, batch: Mapping[str, Array], key: Array) -> tuple[Array, dict[str, Array]]:
        early, final = hidden_states(network, frozen, batch["tokens"], (exit_layer,))
        probabilities = jax.nn.softmax(network.logits(frozen, final), axis=0)
        log_exit = jax.nn.log_softmax(lens(network, frozen, early), axis=0)
        return masked_mean(-jnp.sum(probabilities * log_exit, axis=0), batch), {}

    return loss_fn


def fit_lens(
    target: Model,
    exit_layer: int,
    corpus: np.ndarray,
    *,
    rank: int = 32,
    schedule: Schedule = Schedule(steps=200, learning_rate=5e-3),  # noqa: B008  a frozen default
    seed: int = 0,
    directory: str | Path | None = None,
    progress: bool = True,
) -> AffineLens:
    """Fit an affine lens to one layer of a target (``lens_loss``).

    Args:
        target: is not changed.
        exit_layer: ℓₑ.
        corpus: flat array of tokens, longer than one window of the schedule. Every window begins with the tokens that
            the target's tokenizer puts before a prompt.
        rank: of the lens.
        schedule: optimiser steps; the default takes a minute or two for the embedded target on two cores.
        seed: of the lens and the batches.
        directory: where to save, and to resume from.
        progress: show a bar.

    Raises:
        ValueError: an exit layer out of range, a rank below 1, a corpus shorter than a window.
    """
    config = target.network.config
    if not 1 <= exit_layer <= config.num_layers or rank < 1:
        raise ValueError(f"expected 1 <= exit_layer <= {config.num_layers} and rank >= 1, got {exit_layer} and {rank}")
    if len(corpus) <= schedule.sequence_length + 1:
        raise ValueError(f"expected more than {schedule.sequence_length + 1} tokens to fit a lens, got {len(corpus)}")
    first = prompt_prefix(target.text)
    return fit(
        lens_loss(target, exit_layer),
        init_affine_lens(config.width, rank, jax.random.key(seed)),
        lambda step: schedule.batch(corpus, seed, step, first),
        schedule,
        directory=directory,
        seed=seed,
        label="lens",
        progress=progress,
    )
