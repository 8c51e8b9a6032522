"""Names for what flows through the package: parameters, batches, keys and the loss function."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias

from jaxtyping import Array, PyTree
from jaxtyping import Key as KeyOf

Scalar: TypeAlias = Array
"""An array of shape []."""

Params: TypeAlias = PyTree[Array]
"""A model's trainable parameters: any pytree of floating-point arrays."""

Batch: TypeAlias = Mapping[str, Array]
"""Named arrays [B, ...] of one mini-batch; "mask" [B] is True where a sample is present."""

Key: TypeAlias = KeyOf[Array, ""]
"""One typed random key (`jax.random.key`)."""


class LossFn(Protocol):
    """What a client minimises: the mean loss Fᵢ(x; ξ) of a mini-batch ξ, over the samples its mask marks as present."""

    def __call__(self, params: Params, batch: Batch, key: Key, /) -> tuple[Scalar, Any]:
        """Return the loss and `aux`: a pytree of numbers, averaged over steps and clients and reported in the info."""
        ...


Objective: TypeAlias = Callable[[Params], tuple[Scalar, Any]]
"""A client's loss on one mini-batch: `objective(params) -> (loss, aux)`, with batch, key and model state bound."""
