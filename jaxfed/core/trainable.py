"""Training of a part of a model (LoRA, heads): only masked leaves are sent, stored and have duals."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import numpy as np
from jaxtyping import PyTree

from jaxfed.core.stateful import AnyLossFn, Stateful, evaluate, policy_of
from jaxfed.core.types import Batch, Key, Params, Scalar

Mask: TypeAlias = Callable[[str], bool] | PyTree[bool]
"""`mask(path) -> bool` of a leaf's path, such as "layers/0/kernel", or a pytree of bools that may end above leaves."""


def split(params: Params, mask: Mask) -> tuple[Params, Params]:
    """Split parameters into (trainable, frozen): each like `params`, with None, no leaf at all, for the other's leaves.

    Pass the trainable part to an algorithm as parameters and the frozen part as model state. Then the frozen part is
    kept once, in the server and its checkpoints, and in no row and no message:

        trainable, frozen = jaxfed.trainable.split(params, lambda path: "lora" in path)
        algorithm = jaxfed.fedspeed(jaxfed.trainable.only(loss_fn))
        server = algorithm.init(trainable, num_clients, frozen)
        ...
        params = jaxfed.trainable.join(server.params, server.model_state)

    Args:
        params: all parameters of the model.
        mask: True where a leaf is trained, see `Mask`.

    Raises:
        ValueError: a mask of another structure; a mask that trains nothing, or everything.
        TypeError: a mask that holds, or returns, other values than bools.
    """
    leaves, treedef = jax.tree.flatten(params)
    marks = _marks(params, mask)
    if all(marks) or not any(marks):
        what = "everything; give parameters and loss function to the algorithm as they are"
        what = what if any(marks) else f"nothing; mark some of {', '.join(_paths(params)[:8])}"
        raise ValueError(f"expected a mask that trains a part of the {len(leaves)} leaves, got one that trains {what}")
    trainable = [leaf if mark else None for leaf, mark in zip(leaves, marks, strict=True)]
    frozen = [None if mark else leaf for leaf, mark in zip(leaves, marks, strict=True)]
    return jax.tree.unflatten(treedef, trainable), jax.tree.unflatten(treedef, frozen)


def join(trainable: Params, frozen: Params) -> Params:
    """Join the two parts that `split` made; they may have been trained, cast or loaded since."""
    return jax.tree.map(
        lambda ours, theirs: theirs if ours is None else ours, trainable, frozen, is_leaf=lambda leaf: leaf is None
    )


def only(loss_fn: AnyLossFn) -> Stateful:
    """Return the loss of the trainable part, F(join(x, frozen); ξ), with the frozen part as model state.

    Args:
        loss_fn: loss of the whole parameters; if it has its own model state, that must be frozen, and then
            `algorithm.init(trainable, num_clients, (frozen, model_state))` takes both.

    Raises:
        ValueError: a loss function whose own model state is averaged or kept by the clients.
    """
    policy = policy_of(loss_fn)
    if policy not in (None, "frozen"):
        raise ValueError(f'beside frozen parameters model state must be "frozen" as well, got the policy {policy!r}')

    def part_loss(trainable: Params, state: PyTree, batch: Batch, key: Key) -> tuple[Scalar, tuple[PyTree, Any]]:
        frozen, model_state = (state, ()) if policy is None else state
        loss, (_, aux) = evaluate(loss_fn, join(trainable, frozen), model_state, batch, key)
        return loss, (state, aux)

    return Stateful(part_loss, "frozen")


def holding(loss_fn: AnyLossFn, held: Params) -> AnyLossFn:
    """Return the loss of one part of the parameters, F(join(x, held); ξ); model state is that of the loss function."""
    if not isinstance(loss_fn, Stateful):
        return lambda params, batch, key: loss_fn(join(params, held), batch, key)
    inner = loss_fn.loss_fn
    return Stateful(
        lambda params, state, batch, key: inner(join(params, held), state, batch, key), policy=loss_fn.policy
    )


def _paths(params: Params) -> list[str]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]


def _marks(params: Params, mask: Mask) -> list[bool]:
    """Return one bool per leaf of the parameters."""
    try:
        marks = [mask(path) for path in _paths(params)] if callable(mask) else jax.tree.leaves(_broadcast(mask, params))
    except ValueError as error:
        expected, got = jax.tree.structure(params), jax.tree.structure(mask)
        raise ValueError(
            f"expected a mask like the parameters {expected}, or one that ends above their leaves, got {got}"
        ) from error
    if wrong := [mark for mark in marks if not isinstance(mark, bool | np.bool_)]:
        raise TypeError(f"expected a mask of True or False for every leaf, got {wrong[0]!r}")
    return [bool(mark) for mark in marks]


def _broadcast(mask: PyTree, params: Params) -> PyTree:
    return jax.tree.map(lambda mark, part: jax.tree.map(lambda leaf: mark, part), mask, params)
