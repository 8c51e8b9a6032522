"""FedSpeed: a merged quasi-gradient, a proximal term, and a dual per client that corrects its bias."""

from typing import Literal, Unpack

import optax

from jaxfed.algorithms._fedavg import averaging, averaging_server
from jaxfed.algorithms._feddyn import DUAL_MEANS, dual_averaging
from jaxfed.algorithms.parts import LocalOptions, LocalRule, Solver, algorithm_factory, gradients
from jaxfed.core import AnyLossFn, FederatedAlgorithm, check_choice
from jaxfed.core.checks import equals

PERTURBATIONS = {"raw": gradients.raw, "normalised": gradients.normalised}


@algorithm_factory(since_0_1=("server_learning_rate",))
def fedspeed(
    loss_fn: AnyLossFn,
    *,
    client_learning_rate: float | optax.Schedule = 0.1,
    prox_weight: float = 0.1,
    ascent_radius: float = 0.1,
    merge_weight: float = 1.0,
    dual_mean: Literal["cohort", "population"] | None = "population",
    perturbation: Literal["raw", "normalised"] = "normalised",
    server_learning_rate: float = 1.0,
    server_optimiser: optax.GradientTransformation | None = None,
    **options: Unpack[LocalOptions],
) -> FederatedAlgorithm:
    """Build FedSpeed.

    Every client of the cohort Sₜ, from x⁰ = xᵗ, does K local steps, carrying h = −λ·ĝ and w = 1/λ:

        g₁   = ∇Fᵢ(xₖ; ξ)                       g₂ = ∇Fᵢ(xₖ + e; ξ)
        g̃    = (1−α)·g₁ + α·g₂
        xₖ₊₁ = xₖ − ηₜ·(g̃ + w·(xₖ − xᵗ + hᵢ))
        hᵢ'  = hᵢ + (x_K − xᵗ)                  after the K steps
        xᵗ⁺¹ = mean over Sₜ of x_K + mean of h'

    Args:
        loss_fn: F, `loss_fn(params, batch, key) -> (loss, aux)`.
        client_learning_rate: η₀ (ηₗ in the paper), or an optax schedule over rounds.
        prox_weight: w = 1/λ; must be > 0 with a dual.
        ascent_radius: ρ.
        merge_weight: α in [0, 1]. The default drops g₁, as the authors' experiments do; at 0 this is FedDyn.
        dual_mean: over whom the server averages the duals. "cohort" is Algorithm 1 of the paper. "population", the
            default, is what its experiments ran: with few clients per round the cohort's mean needs a decaying learning
            rate or a strong prox term, or training breaks down (50 clients, 10 % per round, w = 0.1, 600 rounds: train
            loss 0.20 → 0.17 with the population's mean, 0.21 → 0.67 and growing with the cohort's). None leaves the
            dual out of step, update and message: FedProx with the merged gradient, and FedAvg with it if w = 0.
        perturbation: "raw", e = ρ·g₁ as in Algorithm 1, or "normalised", e = ρ·g₁/(‖g₁‖₂ + 1e-7): the default, because
            the published radius 0.1 is that of the normalised step.
        server_learning_rate: η_g of xᵗ⁺¹ = xᵗ + η_g·(y − xᵗ), y the result above; the paper has 1.
        server_optimiser: a whole optax optimiser of the pseudo-gradient xᵗ − y instead of η_g, such as
            `optax.sgd(1.0, momentum=0.9)`.
        **options: see `jaxfed.algorithms.parts.LocalRule`; `variant="reference"` clips and splits the proximal
            term as the authors' code does (theirs: clip_norm 10, weight_decay 1e-3, learning_rate_decay 0.998, and the
            defaults here).

    Raises:
        ValueError: a hyperparameter out of range; prox_weight 0 with a dual; a reference variant with another dual
            mean, perturbation or merge weight than the authors' code has.

    Source: Sun et al., FedSpeed, ICLR 2023 (arXiv 2302.10429), Algorithm 1.
    """
    check_choice("dual_mean", dual_mean, [*DUAL_MEANS, None])
    check_choice("perturbation", perturbation, PERTURBATIONS)
    rule = LocalRule(client_learning_rate=client_learning_rate, prox_weight=prox_weight, **options)
    authors = (dual_mean, perturbation) == ("population", "normalised") and equals(merge_weight, 1.0)
    if rule.variant == "reference" and not authors:
        raise ValueError(
            'variant="reference" has dual_mean="population", perturbation="normalised" and merge_weight=1.0, '
            f"got {dual_mean!r}, {perturbation!r} and {merge_weight!r}; leave these three at their defaults"
        )
    estimate = gradients.merged(ascent_radius, merge_weight, PERTURBATIONS[perturbation])
    solver = Solver(loss_fn, estimate, rule)
    if dual_mean is None:
        return averaging(solver, averaging_server(server_learning_rate, server_optimiser))
    return dual_averaging(solver, DUAL_MEANS[dual_mean], server_learning_rate, server_optimiser)
