"""Models with non-trainable state, such as batch statistics: form of the loss function, and who keeps the state."""

import dataclasses
from typing import Any, Literal, Protocol, TypeAlias, get_args

from jaxtyping import PyTree

from jaxfed.core.checks import check_choice
from jaxfed.core.losses import FORM, STATEFUL, check_arguments, check_loss, unpack_pair
from jaxfed.core.types import Batch, Key, LossFn, Params, Scalar

Policy = Literal["average", "local", "frozen"]
POLICIES: tuple[Policy, ...] = get_args(Policy)


class StatefulLossFn(Protocol):
    """The loss of a model with state: batch normalisation's running statistics, for instance."""

    def __call__(
        self, params: Params, model_state: PyTree, batch: Batch, key: Key, /
    ) -> tuple[Scalar, tuple[PyTree, Any]]:
        """Return the loss and (the state after this batch, aux)."""
        ...


@dataclasses.dataclass(frozen=True)
class Stateful:
    """A loss function whose model has non-trainable state; every factory accepts it instead of a plain `LossFn`.

    The state is carried from local step to local step, with its value after the gradient at x.

    Attributes:
        loss_fn: see `StatefulLossFn`.
        policy: "average": clients begin with the server's state, and the server takes the cohort's mean. "local": every
            client keeps its own between rounds (FedBN); the server's never changes. "frozen": all use the server's, as
            is.

    `algorithm.init(params, num_clients, model_state)` and `algorithm.init_client(params, model_state)` take the first
    state.

    Raises:
        ValueError: an unknown policy.
    """

    loss_fn: StatefulLossFn
    policy: Policy = "average"

    def __post_init__(self) -> None:
        check_choice("policy", self.policy, POLICIES)


AnyLossFn: TypeAlias = LossFn | Stateful
"""A plain loss function, or one with model state."""


def evaluate(
    loss_fn: AnyLossFn, params: Params, model_state: PyTree, batch: Batch, key: Key
) -> tuple[Scalar, tuple[PyTree, Any]]:
    """Return loss and (model state after the batch, aux), of either kind of loss function.

    Raises TypeError if the loss function returns another form.
    """
    if not isinstance(loss_fn, Stateful):
        loss, aux = unpack_pair(loss_fn(params, batch, key), FORM, "return loss, {}")
        check_loss(loss, aux)
        return loss, (model_state, aux)
    remedy = "return loss, (model_state, {})"
    loss, rest = unpack_pair(loss_fn.loss_fn(params, model_state, batch, key), STATEFUL, remedy)
    after, aux = unpack_pair(rest, STATEFUL, remedy)
    check_loss(loss, aux)
    return loss, (model_state if loss_fn.policy == "frozen" else after, aux)


def check_form(loss_fn: AnyLossFn) -> None:
    """Raise TypeError for a loss function with other arguments than `FORM` or `STATEFUL`."""
    check_arguments(loss_fn.loss_fn if isinstance(loss_fn, Stateful) else loss_fn, isinstance(loss_fn, Stateful))


def policy_of(loss_fn: AnyLossFn) -> Policy | None:
    """Return the policy of a loss function with model state; None for a plain one."""
    return loss_fn.policy if isinstance(loss_fn, Stateful) else None
