"""Checks of optax optimisers on clients and server, and random keys in their state."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from jaxfed.core import keys
from jaxfed.core.types import Key, Params

PROBED = 4
"""Steps of a probe, because a warm-up, look-ahead or gradient accumulation may not descend in the first ones."""


def check_optimiser(name: str, optimiser: Any) -> None:
    """Raise TypeError unless `optimiser` has optax's `init` and `update`, or is None."""
    if optimiser is not None and not all(callable(getattr(optimiser, each, None)) for each in ("init", "update")):
        raise TypeError(f"{name}: expected an optax optimiser such as optax.adam(1e-3), got {optimiser!r}")


def check_descends(name: str, optimiser: optax.GradientTransformation, params: Params) -> None:
    """Raise ValueError if updates of `optimiser`, which optax adds to the parameters, would raise the loss.

    Updates for the gradients +1 and −1 are compared on parameters of ones with as many axes as `params` and at most two
    entries along each: terms that both share, such as weight decay or noise, cancel.
    """
    with jax.ensure_compile_time_eval(), jax.numpy_dtype_promotion("standard"):
        ones = jax.tree.map(lambda leaf: jnp.ones([min(size, 2) for size in leaf.shape], leaf.dtype), params)
        try:
            up, down = (_moved(optimiser, ones, sign) for sign in (1.0, -1.0))
        except TypeError as error:
            raise TypeError(
                f"{name}: expected an optimiser whose update takes (gradient, state, params), got one that fails on "
                f"parameters of ones: {error}; optimisers with a line search need the loss and are not supported"
            ) from error
        slopes = jax.tree.map(lambda a, b: float(jnp.sum(a.astype(float) - b.astype(float))), up, down)
    if any(slope > 0.0 for slope in jax.tree.leaves(slopes)):
        raise ValueError(
            f"{name}: expected a whole optimiser, whose updates descend, such as optax.adam(1e-3), got one whose "
            "updates ascend, as those of a bare optax.scale_by_adam(), optax.trace(0.9) or optax.identity() do; take "
            "optax.adam(...), optax.sgd(...), or end yours with optax.scale_by_learning_rate: "
            "optax.chain(..., optax.scale_by_learning_rate(0.1))"
        )


def _moved(optimiser: optax.GradientTransformation, params: Params, sign: float) -> Params:
    """Return how far `PROBED` steps along one gradient of ±1 move the parameters."""
    moved, state = params, optimiser.init(params)
    gradient = jax.tree.map(lambda leaf: jnp.full_like(leaf, sign), params)
    for _ in range(PROBED):
        updates, state = optimiser.update(gradient, state, moved)
        moved = optax.apply_updates(moved, updates)
    return optax.tree.sub(moved, params)


def reseeded(state: optax.OptState, key: Key) -> optax.OptState:
    """Fold a client's key into every random key of an optimiser's initial state, such as that of `optax.add_noise`.

    Otherwise the optimiser would draw the same numbers for every client and in every round. Keys are typed, or
    uint32 arrays of the shape of a key's data, which no other optimiser's state has.
    """
    words = keys.optimiser_words(key)

    def renew(leaf: Array) -> Array:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.vmap(keys.fold_words, in_axes=(0, None))(leaf.reshape(-1), words).reshape(leaf.shape)
        if leaf.dtype == np.uint32 and leaf.ndim and leaf.shape[-1] == _key_size():
            return jax.random.key_data(renew(jax.random.wrap_key_data(leaf)))
        return leaf

    return jax.tree.map(renew, jax.tree.map(_as_array, state))


def _as_array(leaf: Any) -> Array:
    return leaf if isinstance(leaf, jax.Array) else jnp.asarray(leaf)


def _key_size() -> int:
    shape: tuple[int, ...] = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0))).shape
    return shape[-1]
