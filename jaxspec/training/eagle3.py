"""The loss of EAGLE-3: training-time test, the draft run several times on its own output, against the target."""

from dataclasses import dataclass

import jax.numpy as jnp

from jaxspec.drafts.base import Draft
from jaxspec.drafts.eagle3 import Eagle3
from jaxspec.models.base import Array, Model, Params
from jaxspec.training._trained import loss_of, network_of
from jaxspec.training._unroll import Lesson, fused, shifted, unroll
from jaxspec.training.divergences import SOFT, check_divergence, weighted
from jaxspec.training.heads import LITTLE, by_depth, number, total
from jaxspec.training.losses import LossFn


@dataclass(frozen=True)
class Recipe:
    """How EAGLE-3 is trained; static. The defaults are those of the authors' program.

    Attributes:
        steps: S, times that every row is run.
        decay: weight of a step after the one before.
        divergence: of the draft's distribution from the target's, names in ``DIVERGENCES`` and weights.
        ahead: row t of step s counts if the token at t + ``ahead`` + s does: that of the hidden state (0), or the one
            that is paired with it (1).
        known_only: whether a row counts only if the target's most likely token is in the draft's vocabulary.
        over_all: whether a step's loss is the mean over all rows, or over those that count.
        frozen: parameters that are not trained; default: those of the target (``trained_part``).
    """

    steps: int = 7
    decay: float = 0.8
    divergence: tuple[tuple[str, float], ...] = SOFT
    ahead: int = 0
    known_only: bool = True
    over_all: bool = True
    frozen: tuple[str, ...] | None = None


SPECULATORS = Recipe(3, 1.0, (("kl_div", 1.0),), 1, False, False, ("embedding", "index", "head"))
"""How vllm-project/speculators 0.9 trains."""


def eagle3_loss(draft: Draft, target: Model, recipe: Recipe = Recipe()) -> LossFn:  # noqa: B008  a frozen default
    """Build EAGLE-3's loss: Σ_s decay^s · mean of m·D(P_{t+1+s}, Q_s at t), P and Q over the draft's vocabulary.

    m says which rows count. No gradient is stopped between the steps.

    Args:
        draft: EAGLE-3.
        target: what P is of.
        recipe: steps, decay, D, m, and the mean.

    Raises:
        ValueError: another kind of draft, or one made for another target; an unknown divergence, no step, a name in
            ``frozen`` that the draft has no parameters of.

    Source: Li et al., EAGLE-3 (arXiv 2503.01840), §3; vllm-project/speculators 0.9.
    """
    check_divergence(recipe.divergence)
    if recipe.steps < 1:
        raise ValueError(f"expected steps >= 1, got {recipe.steps}")
    network = network_of(draft, target, Eagle3)

    def step(params: Params, taught: Lesson, key: Array) -> tuple[Array, dict[str, Array]]:
        teacher, known = _teacher(params, network.config.vocab_size, target.network.logits(target.params, taught.last))
        features, losses = fused(network, params, taught), []
        for depth, x in enumerate(unroll(network, params, features, taught, recipe.steps)):
            counted = shifted(taught.counted, depth + recipe.ahead) & shifted(taught.present, depth + 1)
            counted &= shifted(known, depth + 1) | (not recipe.known_only)
            values = weighted(recipe.divergence, network.own_logits(params, x, depth), shifted(teacher, depth + 1))
            rows = counted.size if recipe.over_all else number(counted) + LITTLE
            losses.append(recipe.decay**depth * total(values, counted) / rows)
        return sum(losses[1:], losses[0]), by_depth(losses)

    return loss_of(draft, target, step, recipe.frozen)


def _teacher(params: Params, count: int, logits: Array) -> tuple[Array, Array]:
    """Restrict logits [V, B, T] to the draft's vocabulary of ``count``; also, whether it has the most likely token."""
    if "index" not in params:
        return logits, jnp.ones(logits.shape[1:], bool)
    index = params["index"]
    ids = jnp.zeros(count, jnp.int32).at[index].set(jnp.arange(len(index), dtype=jnp.int32), mode="drop")
    return logits[ids], index[jnp.argmax(logits, axis=0)] < count
