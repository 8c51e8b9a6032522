"""What clients send of a draft: all that is trained, its output head, or low-rank updates."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, get_args

import jax

from jaxfed.core import lora, trainable
from jaxfed.core.stateful import AnyLossFn
from jaxspec.models.base import Params
from jaxspec.training import LossFn

Send = Literal["all", "head", "lora"]
"""What clients send of a draft: all that is trained, its output head, or low-rank updates."""

#: Names of what scores tokens in the parameters of a draft.
HEAD = ("head", "heads", "head_biases")


class SentPart(NamedTuple):
    """What of the trained parameters is sent.

    Attributes:
        params: what clients train and send, and the server averages.
        state: the frozen part, as jaxfed's model state; () if there is none.
        loss: of ``params``, with the state if there is one.
        whole: from ``params`` to the trained parameters, with low-rank updates merged.
    """

    params: Params
    state: Params
    loss: AnyLossFn
    whole: Callable[[Params], Params]


def sent_part(send: Send, own: Params, loss: LossFn, updates: lora.LoRA, seed: int = 0) -> SentPart:
    """Return what is sent of trained parameters.

    Args:
        send: "all"; "head", the output head alone; "lora", the factors of low-rank updates of all weight matrices.
        own: the trained parameters of a draft.
        loss: of these.
        updates: rank and scale of "lora".
        seed: of its random factors, which all clients share.

    Raises:
        ValueError: another word, or a draft without an output head that is trained.
    """
    if send not in get_args(Send):
        raise ValueError(f"expected send to be one of {', '.join(get_args(Send))}, got {send!r}")
    if send == "all":
        return SentPart(own, (), loss, lambda params: params)
    if send == "head":
        part, frozen = trainable.split(own, _head(own))
        return SentPart(part, frozen, trainable.only(loss), lambda params: trainable.join(params, frozen))
    return SentPart(*lora.adapted(loss, own, updates, jax.random.key(seed)))


def _head(own: Params) -> dict[str, Any]:
    """Return which parts of the trained parameters are the output head."""
    names = own.keys() if isinstance(own, Mapping) else ()
    if not set(HEAD) & set(names):
        raise ValueError(
            f'expected a draft with an output head that is trained for send="head", got one that trains '
            f'{", ".join(names) or "arrays without names"}; pass send="lora" or send="all"'
        )
    return {name: name in HEAD for name in names}
