"""What is trained of a draft, and its loss: shared by ``fit_draft`` and the federated recipe."""

from collections.abc import Callable
from typing import NamedTuple

from jaxspec.drafts.base import Draft
from jaxspec.drafts.eagle import Eagle
from jaxspec.drafts.eagle3 import Eagle3
from jaxspec.drafts.hydra import Hydra
from jaxspec.drafts.medusa import Medusa
from jaxspec.models.base import Model, Params
from jaxspec.models.vocabulary import check_trainable
from jaxspec.training._trained import network_of, trained_part
from jaxspec.training.eagle3 import Recipe, eagle3_loss
from jaxspec.training.heads import eagle_loss, hydra_loss, medusa_loss
from jaxspec.training.losses import LossFn
from jaxspec.training.plain import SHARED, plain_loss

#: The loss of each kind of network.
LOSSES: dict[type, Callable[[Draft, Model], LossFn]] = {Eagle: eagle_loss, Medusa: medusa_loss, Hydra: hydra_loss}


class DraftTask(NamedTuple):
    """What is trained of a draft on a target's text.

    Attributes:
        own: parameters that are trained.
        rest: the others, by name; {**own, **rest} are all.
        loss: of ``own``. A batch has ``tokens`` [B, T], −1 behind the end of a text, and optionally ``mask`` [B, T],
            tokens behind the prompts, and ``hidden`` [S, B, T, D], the target's streams.
    """

    own: Params
    rest: Params
    loss: LossFn


def draft_task(draft: Model | Draft, target: Model, recipe: Recipe = Recipe()) -> DraftTask:  # noqa: B008  a frozen default
    """Return what ``fit_draft`` trains of a draft, and by which loss.

    Args:
        draft: a language model over the target's vocabulary, EAGLE, EAGLE-3, Medusa or Hydra.
        target: is not trained.
        recipe: of EAGLE-3.

    Raises:
        ValueError: a draft of another kind, or one made for another target.
    """
    if isinstance(draft, Model):
        check_trainable(target, draft)
        shared = () if draft.network.config.ends.tied else SHARED
        rest = {name: draft.params[name] for name in shared if name in draft.params}
        own = {name: value for name, value in draft.params.items() if name not in rest}
        return DraftTask(own, rest, plain_loss(draft, target, rest))
    network = network_of(draft, target)
    if isinstance(network, Eagle3):
        return DraftTask(*trained_part(draft, recipe.frozen), eagle3_loss(draft, target, recipe))
    return DraftTask(*trained_part(draft), LOSSES[type(network)](draft, target))
