"""Gradient estimators: plain, perturbed (sharpness-aware) and merged. One function each, all of one signature."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import optax

from jaxfed.core import tree
from jaxfed.core.checks import check_range, equals
from jaxfed.core.types import Objective, Params, Scalar


class Estimate(NamedTuple):
    """Result of an estimator for one mini-batch.

    Attributes:
        gradient: descent direction of the step, like the parameters.
        memory: the estimator's own memory after this step (empty for all but FedSMOO).
        loss: loss at `params`, [].
        aux: the loss function's aux.
    """

    gradient: Params
    memory: Any
    loss: Scalar
    aux: Any


class Estimator(Protocol):
    """`estimate(objective, params, memory) -> Estimate`: a client's gradient on one mini-batch."""

    def __call__(self, objective: Objective, params: Params, memory: Any, /) -> Estimate:
        """Estimate the gradient at `params`; both gradients of a perturbed one see the same batch and key."""
        ...


Perturbation = Callable[[Params, float], Params]
"""`perturbation(gradient, ascent_radius) -> e`: the ascent step, like the parameters."""


def raw(gradient: Params, ascent_radius: float) -> Params:
    """Return e = ρ·g₁ (FedSpeed, Algorithm 1), whose length grows with the gradient."""
    return tree.scale(ascent_radius, gradient)


def normalised(gradient: Params, ascent_radius: float) -> Params:
    """Return e = ρ·g₁/(‖g₁‖₂ + 1e-7) (SAM and the FedSpeed authors' code): of length ρ, one norm over all leaves."""
    return tree.scale(ascent_radius / (tree.norm(gradient) + 1e-7), gradient)


def plain(objective: Objective, params: Params, memory: Any) -> Estimate:
    """Return g₁ = ∇Fᵢ(x; ξ)."""
    (loss, aux), gradient = jax.value_and_grad(objective, has_aux=True)(params)
    return Estimate(gradient, memory, loss, aux)


def perturbed(ascent_radius: float, perturbation: Perturbation = normalised) -> Estimator:
    """g₂ = ∇Fᵢ(x + e; ξ) with e = `perturbation`(g₁, ρ): one extra ascent step on the same mini-batch."""
    return merged(ascent_radius, 1.0, perturbation)


def merged(ascent_radius: float, merge_weight: float, perturbation: Perturbation = normalised) -> Estimator:
    """g̃ = (1−α)·g₁ + α·g₂, the merged quasi-gradient (FedSpeed, Algorithm 1).

    Args:
        ascent_radius: ρ.
        merge_weight: α in [0, 1]; at 0 the ascent step is left out altogether, at 1 the plain gradient g₁ is dropped.
        perturbation: how the ascent step e follows from g₁ and ρ: `raw` or `normalised`.
    """
    check_range("ascent_radius", ascent_radius, least=0.0)
    check_range("merge_weight", merge_weight, least=0.0, most=1.0)
    if equals(merge_weight, 0.0):
        return plain

    def estimate(objective: Objective, params: Params, memory: Any) -> Estimate:
        first = plain(objective, params, memory)
        second = _at(objective, params, perturbation(first.gradient, ascent_radius))
        if not equals(merge_weight, 1.0):
            second = optax.tree.add(tree.scale(1.0 - merge_weight, first.gradient), tree.scale(merge_weight, second))
        return first._replace(gradient=second)

    return estimate


def scaled(estimate: Estimator, weight: float) -> Estimator:
    """Scale another estimator's g to s·g: the weight of the fresh gradient under client momentum."""

    def scaled_estimate(objective: Objective, params: Params, memory: Any) -> Estimate:
        result = estimate(objective, params, memory)
        return result._replace(gradient=tree.scale(weight, result.gradient))

    return scaled_estimate


def shifted(objective: Objective, params: Params, memory: Params) -> Estimate:
    """Return ∇Fᵢ(x + e; ξ) where the memory is e, the same in every step of a round; the loss is that at x + e."""
    return plain(objective, optax.tree.add(params, memory), ())._replace(memory=memory)


class Ascent(NamedTuple):
    """Memory of `aligned`: μᵢ, the client's own dual of the ascent step, and s, which all clients share in a round."""

    own: Params
    shared: Params


def aligned(ascent_radius: float) -> Estimator:
    """∇Fᵢ(x + e; ξ) with e = ρ·g/(‖g‖₂ + 1e-7), g = g₁ − μᵢ − s, and μᵢ ← μᵢ + e − s every step (FedSMOO).

    The duals μᵢ pull the clients' ascent steps towards one direction s. The memory is an `Ascent`.
    """
    check_range("ascent_radius", ascent_radius, least=0.0)

    def estimate(objective: Objective, params: Params, memory: Ascent) -> Estimate:
        first = plain(objective, params, ())
        towards = optax.tree.sub(optax.tree.sub(first.gradient, memory.own), memory.shared)
        ascent = normalised(towards, ascent_radius)
        own = optax.tree.sub(optax.tree.add(memory.own, ascent), memory.shared)
        return first._replace(gradient=_at(objective, params, ascent), memory=memory._replace(own=own))

    return estimate


def _at(objective: Objective, params: Params, ascent: Params) -> Params:
    gradient, _ = jax.grad(objective, has_aux=True)(optax.tree.add(params, ascent))
    return gradient
