"""Gradient estimators: plain, perturbed (sharpness-aware) and merged. One function each, all of one signature."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax

from jaxfed import tree
from jaxfed.types import Batch, Key, LossFn, Params, Scalar


class Estimate(NamedTuple):
    """An estimator's answer for one mini-batch.

    Attributes:
      gradient: what the step descends along, like the parameters.
      memory: the estimator's own memory after this step (empty for all but FedSMOO).
      loss: loss at the parameters given, [].
      aux: the loss function's aux.
    """

    gradient: Params
    memory: Any
    loss: Scalar
    aux: Any


class Estimator(Protocol):
    """`estimate(params, batch, key, memory) -> Estimate`: a client's gradient on one mini-batch."""

    def __call__(self, params: Params, batch: Batch, key: Key, memory: Any, /) -> Estimate:
        """Estimate the gradient at `params`; both gradients of a perturbed one see the same batch and key."""
        ...


Perturbation = Callable[[Params, float], Params]
"""`perturbation(gradient, ascent_radius) -> e`: the ascent step, like the parameters."""


def raw(gradient: Params, ascent_radius: float) -> Params:
    """e = ρ·g₁ (FedSpeed, Algorithm 1): long where the loss is steep."""
    return tree.scale(ascent_radius, gradient)


def normalised(gradient: Params, ascent_radius: float) -> Params:
    """e = ρ·g₁/(‖g₁‖₂ + 1e-7) (SAM and the FedSpeed authors' code): of length ρ, one norm over all leaves."""
    return tree.scale(ascent_radius / (tree.norm(gradient) + 1e-7), gradient)


def plain(loss_fn: LossFn) -> Estimator:
    """g₁ = ∇Fᵢ(x; ξ)."""

    def estimate(params: Params, batch: Batch, key: Key, memory: Any) -> Estimate:
        (loss, aux), gradient = jax.value_and_grad(loss_fn, has_aux=True)(params, batch, key)
        return Estimate(gradient, memory, loss, aux)

    return estimate


def perturbed(loss_fn: LossFn, ascent_radius: float, perturbation: Perturbation = normalised) -> Estimator:
    """g₂ = ∇Fᵢ(x + e; ξ) with e = `perturbation`(g₁, ρ): one extra ascent step on the same mini-batch."""
    return merged(loss_fn, ascent_radius, 1.0, perturbation)


def merged(
    loss_fn: LossFn, ascent_radius: float, merge_weight: float, perturbation: Perturbation = normalised
) -> Estimator:
    """g̃ = (1−α)·g₁ + α·g₂, the merged quasi-gradient (FedSpeed, Algorithm 1).

    Args:
      loss_fn: the client's loss F.
      ascent_radius: ρ.
      merge_weight: α in [0, 1]; at 0 the ascent step is left out altogether, at 1 the plain gradient g₁ is dropped.
      perturbation: how the ascent step e follows from g₁ and ρ: `raw` or `normalised`.
    """
    ascent = plain(loss_fn)
    if merge_weight == 0.0:
        return ascent

    def estimate(params: Params, batch: Batch, key: Key, memory: Any) -> Estimate:
        first = ascent(params, batch, key, memory)
        ahead = tree.total(params, perturbation(first.gradient, ascent_radius))
        second, _ = jax.grad(loss_fn, has_aux=True)(ahead, batch, key)
        return first._replace(gradient=_blend(first.gradient, second, merge_weight))

    return estimate


def _blend(first: Params, second: Params, weight: float) -> Params:
    return second if weight == 1.0 else tree.total(tree.scale(1.0 - weight, first), tree.scale(weight, second))
