"""Affine maps from the hidden state at an exit to those above it that a draft reads, by least squares."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.drafts.base import Draft
from jaxspec.drafts.feature_drafter import FeatureDrafter
from jaxspec.drafts.imputed import MAPS, Imputed
from jaxspec.models.base import Array, Model, Network, Params
from jaxspec.training._trained import network_of
from jaxspec.training.losses import hidden_states


def fit_imputation(
    draft: Draft, target: Model, exit_layer: int, tokens: np.ndarray, *, ridge: float = 1e-4, batch_size: int = 8
) -> Draft:
    """Return a draft that gets guesses at hidden states above the exit with the exit's message.

    A, b = argmin Σ ‖r_i − A·r_e − b‖² + ridge·n·mean(r_e²)·‖A‖² over the n tokens of the texts.

    Args:
        draft: reads hidden states, some above the exit; is not changed.
        target: whose they are.
        exit_layer: ℓₑ of the Mirror-SD that it is for.
        tokens: texts, best the target's own, several times as many tokens as it has features: [n, T], −1 behind an end.
        ridge: relative weight of the size of A.
        batch_size: texts at a time.

    Raises:
        ValueError: another kind of draft, one that reads nothing above the exit, an exit outside the target.
    """
    network, count = network_of(draft, target), target.network.config.num_layers
    if not 1 <= exit_layer < count or not (network.reads.final or max(network.reads.taps, default=0) > exit_layer):
        raise ValueError(
            f"expected a draft that reads above exit_layer, of 1 to {count - 1}, got taps {network.reads.taps} and "
            f"exit_layer {exit_layer}; a draft with all taps up to the exit needs no guesses"
        )
    late = tuple(tap for tap in network.reads.taps if tap > exit_layer)
    products = partial(_products, target.network, (exit_layer, *late), network.reads.final, target.params)
    parts = [products(tokens[at : at + batch_size]) for at in range(0, len(tokens), batch_size)]
    inner, cross = jax.tree.map(lambda *sums: np.sum(np.asarray(sums, np.float64), axis=0), *parts)
    weight = np.eye(len(inner)) * ridge * np.trace(inner[:-1, :-1]) / (len(inner) - 1)
    weight[-1, -1] = 0.0
    maps = [np.linalg.solve(inner + weight, each).T.astype(np.float32) for each in cross]
    params = {**draft.params, MAPS: [(jnp.asarray(each[:, :-1]), jnp.asarray(each[:, -1])) for each in maps]}
    return draft._replace(drafter=FeatureDrafter(Imputed(network, exit_layer)), params=params)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _products(network: Network, taps: tuple[int, ...], final: bool, params: Params, tokens: Array) -> tuple[Array, Any]:
    """Return Σ x·xᵀ and Σ x·rᵀ for every later hidden state r, with x = [r_e; 1], over the tokens of a text."""
    present = (tokens >= 0).astype(jnp.float32)[None]
    source, *late = hidden_states(network, params, jnp.maximum(tokens, 0), taps)
    late, last = late[:-1], late[-1]
    if final:
        assert network.final is not None  # checked by network_of
        late = [*late, network.final(params, last)]
    x = jnp.concatenate([source.astype(jnp.float32), jnp.ones_like(source[:1], jnp.float32)]) * present
    product = partial(jnp.einsum, "dbt,ebt->de", precision="highest")
    return product(x, x), [product(x, each.astype(jnp.float32) * present) for each in late]
