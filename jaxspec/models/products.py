"""The product of a matrix and few columns, which is all that decoding computes."""

import os
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxspec.models.base import Array

#: Environment variable: 0 multiplies a single column as it is on TPUs too.
SWITCH = "JAXSPEC_TWO_COLUMNS"


def product(equation: str, matrix: Array, x: Array, **options: Any) -> Array:
    """Return ``jnp.einsum(equation, matrix, x)`` for x [..., B, T], whose last two axes the result keeps.

    Of one column (B = T = 1) a TPU's compiler makes a sum over products on the vector unit, by its own estimate four
    times as long as the matrix unit takes for two columns; in a program for a TPU the column is therefore doubled.
    """
    once = partial(jnp.einsum, equation, **options)
    if x.shape[-2:] != (1, 1) or os.environ.get(SWITCH) == "0":
        return once(matrix, x)

    def twice(matrix: Array, x: Array) -> Array:
        return once(matrix, jnp.concatenate([x, x], axis=-1))[..., :1]

    return jax.lax.platform_dependent(matrix, x, tpu=twice, default=once)
