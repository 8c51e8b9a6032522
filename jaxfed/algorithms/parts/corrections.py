"""Terms added to a client's gradient, and updates of the client state that they use: one pure function each."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from jaxfed.core import tree
from jaxfed.core.checks import equals
from jaxfed.core.types import Params, Scalar


def prox(params: Params, anchor: Params, prox_weight: float) -> Params | None:
    """Return w·(x − x⁰), the gradient of the proximal term w/2·‖x − x⁰‖²; left out at w = 0."""
    if equals(prox_weight, 0.0):
        return None
    return tree.scale(prox_weight, optax.tree.sub(params, anchor))


def prox_at_origin(anchor: Params, prox_weight: float) -> Params | None:
    """Return −w·x⁰, the part of the proximal pull that is constant within a round; left out at w = 0."""
    return None if equals(prox_weight, 0.0) else tree.scale(-prox_weight, anchor)


def shrinkage(params: Params, weight: float) -> Params | None:
    """Return ω·x, weight decay (in the reference form also the other half of the proximal pull); left out at ω = 0."""
    return None if equals(weight, 0.0) else tree.scale(weight, params)


def dual(dual_variable: Params, prox_weight: float) -> Params:
    """Return w·hᵢ, the prox-correction, constant within a round (−ĝᵢ of the paper with h = −λ·ĝ, w = 1/λ)."""
    return tree.scale(prox_weight, dual_variable)


def updated_dual(dual_variable: Params, delta: Params) -> Params:
    """Return hᵢ + U with U = x_K − x⁰ (ĝᵢ ← ĝᵢ − (x_K − xᵗ)/λ of the paper)."""
    return optax.tree.add(dual_variable, delta)


def control_variate(server_control: Params, client_control: Params) -> Params:
    """Return c − cᵢ, which replaces a client's drift in its gradient by the mean drift of all clients."""
    return optax.tree.sub(server_control, client_control)


def updated_control(client_control: Params, server_control: Params, mean_step: Params) -> Params:
    """Return cᵢ' = cᵢ − c + D with D = −U/(K·ηₜ), the client's mean direction of the round (SCAFFOLD, option II)."""
    return optax.tree.add(optax.tree.sub(client_control, server_control), mean_step)


def mean_direction(delta: Params, learning_rate: Scalar, num_steps: Scalar | float, otherwise: Params) -> Params:
    """Return −U/(K·ηₜ), the mean direction that the client descended along.

    A client without a step (K = 0), or of a round with a learning rate of 0, has no direction: then `otherwise`, and
    also where ηₜ is so small that 1/(K·ηₜ) has no finite value in the parameters' dtype.
    """
    factor = jnp.asarray(-1.0 / (learning_rate * num_steps))

    def scaled(leaf: Array, instead: Array) -> Array:
        own = factor.astype(leaf.dtype)
        return jnp.where(jnp.isfinite(own), own * leaf, instead)

    return jax.tree.map(scaled, delta, otherwise)


def momentum(direction: Params, fresh_weight: float) -> Params:
    """Return (1−α)·D, the weighted mean direction of the last round, added to every client's step."""
    return tree.scale(1.0 - fresh_weight, direction)


def relaxed_start(params: Params, last_params: Params, relaxation: float) -> Params:
    """Return x⁰ = xᵗ + β·(xᵗ − wᵢ): relaxed initialisation, away from the client's last result wᵢ."""
    return optax.tree.add(params, tree.scale(relaxation, optax.tree.sub(params, last_params)))
