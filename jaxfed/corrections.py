"""Terms added to a client's gradient, and the client state behind them: one pure function each."""

from jaxfed import tree
from jaxfed.types import Params


def prox(params: Params, anchor: Params, prox_weight: float) -> Params | None:
    """w·(x − x⁰): the pull of the proximal term w/2·‖x − x⁰‖² to where the round began; left out at w = 0."""
    if prox_weight == 0.0:
        return None
    return tree.scale(prox_weight, tree.difference(params, anchor))


def prox_at_origin(anchor: Params, prox_weight: float) -> Params | None:
    """−w·x⁰: the part of the proximal pull that is constant within a round; left out at w = 0."""
    return None if prox_weight == 0.0 else tree.scale(-prox_weight, anchor)


def shrinkage(params: Params, weight: float) -> Params | None:
    """ω·x: weight decay (in the reference form also the other half of the proximal pull); left out at ω = 0."""
    return None if weight == 0.0 else tree.scale(weight, params)


def dual(dual_variable: Params, prox_weight: float) -> Params:
    """w·hᵢ: the prox-correction, constant within a round (−ĝᵢ of the paper with h = −λ·ĝ, w = 1/λ)."""
    return tree.scale(prox_weight, dual_variable)


def updated_dual(dual_variable: Params, delta: Params) -> Params:
    """hᵢ ← hᵢ + U with U = x_K − x⁰ (ĝᵢ ← ĝᵢ − (x_K − xᵗ)/λ of the paper)."""
    return tree.total(dual_variable, delta)


def relaxed_start(params: Params, last_params: Params, relaxation: float) -> Params:
    """x⁰ = xᵗ + β·(xᵗ − wᵢ): relaxed initialisation, away from the client's last result wᵢ."""
    return tree.total(params, tree.scale(relaxation, tree.difference(params, last_params)))
