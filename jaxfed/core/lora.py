"""LoRA: low-rank updates of the weight matrices of any parameters; the matrices themselves stay frozen.

Only the factors are sent, stored and have duals:

    adapted = jaxfed.lora.adapted(loss_fn, params, jaxfed.lora.LoRA(rank=8), key)
    algorithm = jaxfed.fedspeed(adapted.loss_fn)
    server = algorithm.init(adapted.params, num_clients, adapted.frozen)
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from jaxfed.core import keys, trainable
from jaxfed.core.checks import check_range
from jaxfed.core.stateful import Stateful
from jaxfed.core.types import Batch, Key, LossFn, Params, Scalar


@dataclass(frozen=True)
class LoRA:
    """Sizes of low-rank updates.

    Attributes:
        rank: r, at least 1.
        alpha: α; updates are scaled by α/r.

    Raises:
        ValueError: a rank below 1, or α that is not above 0 and finite.
    """

    rank: int = 8
    alpha: float = 16.0

    def __post_init__(self) -> None:
        check_range("rank", self.rank, least=1, whole=True)
        check_range("alpha", self.alpha, above=0)


class Factors(NamedTuple):
    """Factors of the update of one matrix W [m, n].

    Attributes:
        a: A [r, n], random.
        b: B [m, r], zeros at first, so that training starts from W.
    """

    a: Array
    b: Array


def init_factors(
    params: Params, lora: LoRA, key: Key, chosen: Callable[[str], bool] = lambda path: True
) -> PyTree[Factors | None]:
    """Return the factors of every weight matrix: A ~ N(0, 1/n), B = 0.

    An array [..., n] of two axes or more is a matrix [m, n] with m the product of the other axes. Biases, norms and
    integers have no factors.

    Args:
        params: the frozen parameters.
        lora: r.
        key: of A; each matrix has a key of its own.
        chosen: `chosen(path) -> bool` of a matrix's path, such as "layers/0/kernel"; default: all.

    Returns:
        A tree like `params` with `Factors` in the types of the matrices, None for other leaves.

    Raises:
        ValueError: no matrix is chosen.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    factors = []
    for at, (path, leaf) in enumerate(leaves):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        wanted = leaf.ndim >= 2 and jnp.issubdtype(leaf.dtype, jnp.floating) and chosen(name)
        factors.append(_factors(leaf, lora.rank, keys.numbered_key(key, at)) if wanted else None)
    if not any(factors):
        raise ValueError(f"expected at least one weight matrix among {len(leaves)} arrays, got none; train them whole")
    return jax.tree.unflatten(structure, factors)


def _factors(weight: Array, rank: int, key: Key) -> Factors:
    rows, columns = _sizes(weight)
    a = jax.random.normal(key, (rank, columns)) / columns**0.5
    return Factors(a.astype(weight.dtype), jnp.zeros((rows, rank), weight.dtype))


def _sizes(weight: Array) -> tuple[int, int]:
    return int(np.prod(weight.shape[:-1])), weight.shape[-1]


def merged(params: Params, factors: PyTree[Factors | None], lora: LoRA) -> Params:
    """Return W + (α/r)·B·A for every matrix with factors, in the matrix's type, and other leaves as they are.

    Source: Hu et al., LoRA (arXiv 2106.09685), §4.1.
    """

    def add(own: Factors | None, weight: Any) -> Any:
        if own is None:
            return weight
        update = jnp.matmul(own.b, own.a, preferred_element_type=jnp.promote_types(weight.dtype, jnp.float32))
        return weight + (lora.alpha / lora.rank * update).astype(weight.dtype).reshape(weight.shape)

    return jax.tree.map(add, factors, params, is_leaf=lambda leaf: leaf is None or isinstance(leaf, Factors))


class Adapted(NamedTuple):
    """A federation of factors alone.

    Attributes:
        params: what is trained and sent, {"lora": factors}.
        frozen: what every client has, as the model state: the weights.
        loss_fn: of both.
        merge: params → the weights with their updates.
    """

    params: Params
    frozen: Params
    loss_fn: Stateful
    merge: Callable[[Params], Params]


def adapted(
    loss_fn: LossFn, params: Params, lora: LoRA, key: Key, chosen: Callable[[str], bool] = lambda path: True
) -> Adapted:
    """Return factors for a loss function's parameters, and the loss function of them.

    Args:
        loss_fn: of `params`.
        params: the weights, which stay as they are.
        lora: r and α.
        key: as of `init_factors`.
        chosen: as of `init_factors`.

    Raises:
        ValueError: as of `init_factors`.
    """
    factors = init_factors(params, lora, key, chosen)
    part, frozen = trainable.split({"lora": factors, "weights": params}, {"lora": True, "weights": False})
    made = trainable.only(of_factors(loss_fn, lora))
    return Adapted(part, frozen, made, lambda trained: merged(params, trained["lora"], lora))


def of_factors(loss_fn: LossFn, lora: LoRA) -> LossFn:
    """Return the loss of {"lora": factors, "weights": parameters} from one of the parameters: F(W + (α/r)·B·A; ξ)."""

    def merged_loss(parts: Mapping[str, Any], batch: Batch, key: Key) -> tuple[Scalar, Any]:
        return loss_fn(merged(parts["weights"], parts["lora"], lora), batch, key)

    return merged_loss
