"""Losses of drafts that read hidden states: EAGLE, Medusa and Hydra.

Each is a ``LossFn`` of the trained part of a draft's parameters (``trained_part``); the target is not trained. A batch
has ``tokens`` [B, T] int32, −1 behind the end of a text, and optionally ``mask`` [B, T], which of them the draft is to
learn, and ``hidden``, the target's streams (``_unroll.lesson``). Row t of a draft predicts the token at t + 2, and i
tokens later the one at t + 2 + i.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxspec.drafts.base import Draft
from jaxspec.drafts.eagle import Eagle
from jaxspec.drafts.hydra import Hydra
from jaxspec.drafts.medusa import Medusa
from jaxspec.models.base import Array, Model, Params
from jaxspec.training._trained import in_vocabulary, loss_of, network_of, teacher_logits
from jaxspec.training._unroll import Lesson, fused, shifted, unroll
from jaxspec.training.divergences import SOFT, weighted
from jaxspec.training.losses import LossFn, cross_entropy

#: Added to the number of rows that count, in losses of programs that add it.
LITTLE = 1e-5


def eagle_loss(draft: Draft, target: Model, *, classification: float = 0.1, noise: float = 0.0) -> LossFn:
    """Build EAGLE's loss: SmoothL1(f̂_{t+1}, f_{t+1}) + w·CE(P_{t+1}, Q_{t+1}).

    The first is the mean over features; both are means over the rows t whose token counts and that have a next one.

    Args:
        draft: EAGLE.
        target: what P is of.
        classification: w.
        noise: a; a·512 / T times a number drawn evenly from (−1, 1) is added to every feature that is read.

    Raises:
        ValueError: another kind of draft, or one made for another target.

    Source: Li et al., EAGLE (arXiv 2401.15077), §3.2.
    """
    network = network_of(draft, target, Eagle)

    def step(params: Params, taught: Lesson, key: Array) -> tuple[Array, dict[str, Array]]:
        features = fused(network, params, taught)
        reach = noise * 512 / features.shape[2]
        drawn = jax.random.uniform(key, features.shape, features.dtype, -reach, reach)
        (guess,) = unroll(network, params, features + drawn if noise else features, taught, 1)
        counted = taught.counted & shifted(taught.present, 1)
        rows = number(counted) + LITTLE
        regression = total(jnp.mean(smooth_l1(guess - shifted(features, 1)), axis=0), counted) / rows
        teacher = shifted(teacher_logits(params, target, taught.last), 1)
        entropy = total(weighted(SOFT, network.own_logits(params, guess, 0), teacher), counted) / rows
        return regression + classification * entropy, {"regression": regression, "classification": entropy}

    return loss_of(draft, target, step)


def medusa_loss(draft: Draft, target: Model, *, decay: float = 0.8) -> LossFn:
    """Build Medusa's loss: Σ_i λ_i·CE(Q_i at t, x_{t+2+i}) with λ_i = decay^(i+1), over the tokens x that count.

    Raises:
        ValueError: another kind of draft, or one made for another target.

    Source: Cai et al., Medusa (arXiv 2401.10774), §2.2.1; the program of the authors has decay 1.
    """
    network = network_of(draft, target, Medusa)

    def step(params: Params, taught: Lesson, key: Array) -> tuple[Array, dict[str, Array]]:
        inputs, losses = fused(network, params, taught), []
        labels, known = in_vocabulary(params, taught.tokens)
        for depth, x in enumerate(unroll(network, params, inputs, taught, network.depth)):
            values = cross_entropy(network.own_logits(params, x, depth), shifted(labels, depth + 2))
            losses.append(mean_over(values, shifted(taught.counted & known, depth + 2)))
        parts = [decay ** (depth + 1) * each for depth, each in enumerate(losses)]
        return sum(parts[1:], parts[0]), by_depth(losses)

    return loss_of(draft, target, step)


def hydra_loss(
    draft: Draft, target: Model, *, teacher: float = 1.0, labels: float = 0.0, reconstruction: float = 0.0
) -> LossFn:
    """Build Hydra's loss: over heads i the sum of up to three, each over the tokens that count.

    ``teacher``·CE(P_{t+1+i}, Q_i at t) + ``labels``·CE(Q_i at t, x_{t+2+i}) + ``reconstruction``·SmoothL1(h_i at t,
    f_{t+1+i}), with h_i what the output head of i reads.

    Raises:
        ValueError: another kind of draft, or one made for another target.

    Source: Ankner et al., Hydra (arXiv 2402.05109), §4; Hydra++ is trained on the teacher alone.
    """
    network = network_of(draft, target, Hydra)

    def step(params: Params, taught: Lesson, key: Array) -> tuple[Array, dict[str, Array]]:
        features, losses = fused(network, params, taught), []
        target_logits, (own, known) = (
            teacher_logits(params, target, taught.last),
            in_vocabulary(params, taught.tokens),
        )
        for depth, x in enumerate(unroll(network, params, features, taught, network.depth)):
            logits = network.own_logits(params, x, depth)
            counted = shifted(taught.counted, depth + 2)
            loss = teacher * mean_over(weighted(SOFT, logits, shifted(target_logits, depth + 1)), counted)
            if labels:
                right = cross_entropy(logits, shifted(own, depth + 2))
                loss += labels * mean_over(right, counted & shifted(known, depth + 2))
            if reconstruction:
                error = smooth_l1(network.hidden(params, x, depth) - shifted(features, depth + 1))
                loss += reconstruction * mean_over(jnp.mean(error, axis=0), shifted(taught.counted, depth + 1))
            losses.append(loss)
        return sum(losses[1:], losses[0]), by_depth(losses)

    return loss_of(draft, target, step)


def smooth_l1(error: Array) -> Array:
    """Return ½e² where |e| < 1, |e| − ½ elsewhere."""
    size = jnp.abs(error)
    return jnp.where(size < 1, 0.5 * error * error, size - 0.5)


def total(values: Array, counted: Array) -> Array:
    """Return the sum of values [B, T] over the rows that count."""
    return jnp.sum(jnp.where(counted, values, 0.0))


def number(counted: Array) -> Array:
    """Return how many rows count."""
    return jnp.sum(counted, dtype=jnp.float32)


def mean_over(values: Array, counted: Array) -> Array:
    """Return the mean of values [B, T] over the rows that count; 0 if none does."""
    return total(values, counted) / jnp.maximum(number(counted), 1.0)


def by_depth(losses: Sequence[Array]) -> dict[str, Array]:
    """Name losses by depth, 1 for the token behind the root."""
    return {f"depth {depth + 1}": each for depth, each in enumerate(losses)}
