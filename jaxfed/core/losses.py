"""Checks of parameters and of the form of a loss function, by shapes and dtypes only."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

FORM = "loss_fn(params, batch, key) -> (loss, aux)"
STATEFUL = "loss_fn(params, model_state, batch, key) -> (loss, (model_state, aux))"


def check_params(params: PyTree) -> None:
    """Raise TypeError, with the leaf's path, unless all leaves are real floating-point arrays."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if not leaves:
        raise TypeError("expected parameters with at least one floating-point array, got none")
    for path, leaf in leaves:
        if jnp.issubdtype(dtype := _dtype(leaf), jnp.floating):
            continue
        where = jax.tree_util.keystr(path, simple=True, separator="/") or "(root)"
        if jnp.issubdtype(dtype, jnp.complexfloating):
            remedy = "make the real and the imaginary part two leaves, and jax.lax.complex of them in the loss function"
        else:
            remedy = (
                "train the other leaves alone: trainable, frozen = jaxfed.trainable.split(params, lambda path: ...) "
                "and jaxfed.trainable.only(loss_fn)"
            )
        raise TypeError(f"expected parameters of floating-point numbers, got {dtype} at {where!r}; {remedy}")


def check_arguments(loss_fn: Callable[..., Any], stateful: bool) -> None:
    """Raise TypeError unless `loss_fn` can be called with three arguments, or four with model state."""
    form = STATEFUL if stateful else FORM
    if not callable(loss_fn):
        raise TypeError(f"expected {form}, got {loss_fn!r}")
    try:
        signature = inspect.signature(loss_fn)
    except (TypeError, ValueError):  # a builtin without a signature
        return
    try:
        signature.bind(*[None] * (4 if stateful else 3))
    except TypeError as error:
        name = getattr(loss_fn, "__name__", "loss_fn")
        remedy = "wrap it in jaxfed.Stateful" if not stateful and _takes_four(signature) else "take all of them"
        raise TypeError(f"expected {form}, got {name}{signature}; {remedy}, also those not used") from error


def _takes_four(signature: inspect.Signature) -> bool:
    try:
        signature.bind(*[None] * 4)
    except TypeError:
        return False
    return True


def unpack_pair(returned: Any, form: str, remedy: str) -> tuple[Any, Any]:
    """Return the two parts of a loss function's result; raise TypeError if it is no pair."""
    if isinstance(returned, tuple | list) and len(returned) == 2:
        return returned[0], returned[1]
    raise TypeError(f"expected {form}, got {_named(returned)}; {remedy}")


def check_loss(loss: Any, aux: Any) -> None:
    """Raise TypeError unless the loss is one real floating-point number and `aux` a pytree of numbers."""
    if not _is_array(loss) or jnp.shape(loss) or not jnp.issubdtype(_dtype(loss), jnp.floating):
        raise TypeError(
            f"expected a loss that is one floating-point number, got {_named(loss)}; return the mean over the samples "
            'present, jaxfed.masked_mean(losses, batch["mask"])'
        )
    for path, leaf in jax.tree_util.tree_leaves_with_path(aux):
        if not _is_array(leaf) or not (jnp.issubdtype(_dtype(leaf), jnp.number) or _dtype(leaf) == np.bool_):
            where = jax.tree_util.keystr(path, simple=True, separator="/") or "(root)"
            raise TypeError(
                "expected aux to be a pytree of numbers, which are averaged over steps and clients, got "
                f"{_named(leaf)} at {where!r}; leave it out"
            )


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | np.generic | bool | int | float | complex)


def _dtype(leaf: Any) -> Any:
    return leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)


def _named(value: Any) -> str:
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, tuple | list):
        return f"{type(value).__name__} of {len(value)}"
    return type(value).__name__ if value is not None else "None"
