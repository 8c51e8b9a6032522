"""Server updates: what the server does with the cohort's mean message. One pair (init, apply) each."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxfed import tree
from jaxfed.algorithm import ServerUpdate
from jaxfed.types import Params, Scalar


def mean(learning_rate: float = 1.0) -> ServerUpdate:
    """xᵗ⁺¹ = xᵗ + η_g·Ū; the message is what Ū is the mean of, like the parameters; nothing is kept."""

    def apply(params: Params, extra: tuple[()], message: Params, participation: Scalar) -> tuple[Params, tuple[()]]:
        del participation
        step = message if learning_rate == 1.0 else tree.scale(learning_rate, message)
        return tree.total(params, step), extra

    return ServerUpdate(lambda params: (), apply)


def optimiser(transformation: optax.GradientTransformation) -> ServerUpdate:
    """Any optax optimiser on the pseudo-gradient −Ū; keeps the optimiser's state (FedOpt, Reddi et al. 2021)."""

    def apply(
        params: Params, extra: optax.OptState, message: Params, participation: Scalar
    ) -> tuple[Params, optax.OptState]:
        del participation
        pseudo_gradient = jax.tree.map(jnp.negative, message)
        with jax.numpy_dtype_promotion("standard"):
            updates, extra = transformation.update(pseudo_gradient, extra, params)
        return optax.apply_updates(params, updates), extra

    return ServerUpdate(transformation.init, apply)


class DualMessage(NamedTuple):
    """What a client sends to `population_dual_mean`: `delta` = x_K − xᵗ and `dual_change` = hᵢ' − hᵢ."""

    delta: Params
    dual_change: Params


def population_dual_mean() -> ServerUpdate:
    """xᵗ⁺¹ = mean over Sₜ of x_K + mean over all N clients of h (FedDyn's rule; absent clients keep their h).

    The mean of all duals is kept as a running mean, h̄ ← h̄ + |Sₜ|/N · mean over Sₜ of (hᵢ' − hᵢ), so that the rows of
    the population are never read.
    """

    def apply(params: Params, dual_mean: Params, message: DualMessage, participation: Scalar) -> tuple[Params, Params]:
        dual_mean = tree.total(dual_mean, tree.scale(participation, message.dual_change))
        return tree.total(params, message.delta, dual_mean), dual_mean

    return ServerUpdate(optax.tree.zeros_like, apply)
