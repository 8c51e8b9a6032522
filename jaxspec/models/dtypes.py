"""Checks of the type in which a network computes."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxspec.models.base import Model

#: Types in which a network can compute.
FLOATS = ("float32", "bfloat16", "float16", "float64")


def hidden_like(model: Model) -> Any:
    """Return the shape and dtype of the hidden state of one token."""
    return jax.eval_shape(model.network.embed, model.params, jax.ShapeDtypeStruct((1, 1), jnp.int32))


def check_dtype(model: Model, name: str) -> None:
    """Check that a model computes in one of ``FLOATS``.

    Raises:
        ValueError: its hidden states have another type.
    """
    dtype = hidden_like(model).dtype
    if dtype.name not in FLOATS:
        raise ValueError(f"expected a {name} that computes in one of {', '.join(FLOATS)}, got {dtype}; cast its params")
