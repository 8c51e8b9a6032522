"""Mixed precision: a loss that computes in a narrow floating-point type over master weights in float32."""

from typing import Any, overload

import jax.numpy as jnp
import optax
from jaxtyping import DTypeLike, PyTree

from jaxfed.core import tree
from jaxfed.core.stateful import AnyLossFn, Stateful, evaluate, policy_of
from jaxfed.core.types import Batch, Key, LossFn, Params, Scalar


@overload
def mixed_precision(loss_fn: Stateful, compute_dtype: DTypeLike = ...) -> Stateful: ...
@overload
def mixed_precision(loss_fn: LossFn, compute_dtype: DTypeLike = ...) -> LossFn: ...
def mixed_precision(loss_fn: AnyLossFn, compute_dtype: DTypeLike = jnp.bfloat16) -> AnyLossFn:
    """Compute F(narrow(x); narrow(ξ)): parameters and floating-point batch arrays are narrow, the loss float32.

    Server, duals and messages keep the dtype of the parameters passed to `algorithm.init`, and so do gradients: the
    derivative of the cast widens them, before clip, correction and step. Take the softmax of wide logits,
    `logits.astype(jnp.float32)`, so that the loss itself is exact.

    Args:
        loss_fn: F, plain or `Stateful`; frozen model state is narrowed like parameters, other state is not (a
            running mean would lose its small steps), and its dtype is kept.
        compute_dtype: the narrow type. float16 has 5 bits of exponent: scale a loss whose gradients are below 6e-8.

    Returns:
        A loss function of the same kind.

    Raises:
        ValueError: `compute_dtype` is not a floating-point type.

    Source: Micikevicius et al., Mixed Precision Training, ICLR 2018.
    """
    if not jnp.issubdtype(compute_dtype, jnp.floating):
        raise ValueError(f"compute_dtype must be a floating-point type such as jnp.bfloat16, got {compute_dtype!r}")
    policy = policy_of(loss_fn)

    def narrow(values: PyTree) -> PyTree:
        return tree.cast(values, compute_dtype)

    def stateful_loss(params: Params, state: PyTree, batch: Batch, key: Key) -> tuple[Scalar, tuple[PyTree, Any]]:
        inputs = narrow(state) if policy == "frozen" else state
        loss, (after, aux) = evaluate(loss_fn, narrow(params), inputs, narrow(batch), key)
        return loss.astype(jnp.float32), (optax.tree.cast_like(after, state), tree.cast(aux, jnp.float32))

    def plain_loss(params: Params, batch: Batch, key: Key) -> tuple[Scalar, Any]:
        loss, (_, aux) = stateful_loss(params, (), batch, key)
        return loss, aux

    return plain_loss if policy is None else Stateful(stateful_loss, policy)
