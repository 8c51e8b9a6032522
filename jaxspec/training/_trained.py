"""What of a draft that reads hidden states is trained, and losses of that part."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.drafts.base import Draft
from jaxspec.drafts.eagle import Eagle
from jaxspec.drafts.eagle3 import Eagle3
from jaxspec.drafts.hydra import Hydra
from jaxspec.drafts.medusa import Medusa
from jaxspec.models.base import Array, Model, Params
from jaxspec.models.heads import narrowed, tokens_of_head
from jaxspec.training._unroll import Lesson, lesson
from jaxspec.training.losses import LossFn
from jaxspec.verify.features import check_reads

#: Parameters that are not trained, by kind of network: the target's own, and what is no weight.
FROZEN: dict[type, tuple[str, ...]] = {
    Eagle: ("embedding", "head", "index"),
    Eagle3: ("embedding", "index"),
    Medusa: ("index",),
    Hydra: ("embedding", "index"),
}

Step = Callable[[Params, Lesson, Array], tuple[Array, dict[str, Array]]]
"""From all parameters of a draft, a lesson and a key to a loss."""


def network_of(draft: Draft, target: Model, *kinds: type) -> Any:
    """Return the network of a draft of one of some kinds, by default any that reads hidden states.

    Raises:
        ValueError: another kind of draft, or one made for another target.
    """
    network, kinds = getattr(draft.drafter, "network", None), kinds or tuple(FROZEN)
    if not isinstance(network, kinds):
        names = ", ".join(kind.__name__ for kind in kinds)
        raise ValueError(f"expected a draft of kind {names}, got {network or draft.drafter}; make one with init_draft")
    draft.drafter.for_target(target.network)
    check_reads(target.network, draft.drafter.reads)
    return network


def trained_part(draft: Draft, frozen: Sequence[str] | None = None) -> tuple[Params, Params]:
    """Divide a draft's parameters, by name: those that are trained, and those that are not.

    Args:
        draft: EAGLE, EAGLE-3, Medusa or Hydra.
        frozen: names of the second part; default: the embedding and whatever else is the target's.

    Raises:
        ValueError: a name that the draft has no parameters of, or nothing left to train.
    """
    names = _frozen(draft) if frozen is None else tuple(frozen)
    own = {name: value for name, value in draft.params.items() if name not in names}
    rest = {name: draft.params[name] for name in names if name in draft.params}
    if not own or not set(names) <= {*draft.params, "index"}:  # without an index it drafts the whole vocabulary
        raise ValueError(f"expected to freeze some of {', '.join(draft.params)}, got {', '.join(names)}")
    return own, rest


def _frozen(draft: Draft) -> tuple[str, ...]:
    network = draft.drafter.network  # type: ignore[attr-defined]
    if isinstance(network, Medusa) and network.shared_head:
        return ("heads", "index")
    if isinstance(network, Eagle3) and network.config.width != network.target_width:
        return ("index",)  # its embedding is its own
    return FROZEN[type(network)]


def teacher_logits(params: Params, target: Model, last: Array) -> Array:
    """Return the target's logits over a draft's vocabulary, [V_d, B, T], of its stream ``last`` [D, B, T]."""
    if "index" not in params:
        return target.network.logits(target.params, last)
    index = np.asarray(params["index"])
    restricted = narrowed(target, tokens_of_head(index))
    return restricted.network.logits(restricted.params, last)


def in_vocabulary(params: Params, tokens: Array) -> tuple[Array, Array]:
    """Return the rows of tokens [B, T] in a draft's vocabulary, and which of them are in it."""
    if "index" not in params:
        return tokens, jnp.ones(tokens.shape, bool)
    rows = params["index"][tokens]
    return rows, rows < jnp.max(params["index"])


def as_float32(tree: Params) -> Params:
    """Cast the floating-point numbers of a tree to float32."""
    return jax.tree.map(
        lambda leaf: leaf.astype(jnp.float32) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, tree
    )


def loss_of(draft: Draft, target: Model, step: Step, frozen: Sequence[str] | None = None) -> LossFn:
    """Make a loss of the trained part of a draft's parameters from one of all of them.

    The draft computes in float32, also behind a target that does not.
    """
    rest, reads = trained_part(draft, frozen)[1], draft.drafter.reads

    def loss_fn(own: Params, batch: Mapping[str, Any], key: Array) -> tuple[Array, dict[str, Array]]:
        if both := set(own) & set(rest):
            raise ValueError(
                f"expected the trained part of the parameters, got {', '.join(both)} too; see trained_part"
            )
        taught = lesson(target, reads, batch)
        taught = taught._replace(features=as_float32(taught.features))
        return step(as_float32({**own, **rest}), taught, key)

    return loss_fn
