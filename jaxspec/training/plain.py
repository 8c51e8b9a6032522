"""The loss of a small language model that is distilled from its target, over the tokens that its head scores."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from jaxspec.models.base import Array, Model, Params
from jaxspec.models.heads import narrowed, tokens_of_head
from jaxspec.training.divergences import SOFT, weighted
from jaxspec.training.losses import LossFn, hidden_states, masked_mean

#: Parameters of a draft that stay the target's own.
SHARED = ("embedding", "index")


def plain_loss(draft: Model, target: Model, frozen: Params | None = None) -> LossFn:
    """Build the cross-entropy −Σ_v P(v)·log Q(v) over all tokens of a text, prompts included; nats per token.

    P and Q are over the tokens that the draft's head scores (``Ends.head_tokens``), P renormalised.

    Args:
        draft: a language model over the target's vocabulary; the loss is of its parameters without ``frozen``.
        target: what P is of; is not trained.
        frozen: parameters of the draft that are not trained.
    """
    network, rest = draft.network, frozen or {}
    index = draft.params.get("index") if network.own_logits and network.config.ends.head_tokens else None
    teacher = target if index is None else narrowed(target, tokens_of_head(index))
    own_logits = network.logits if index is None else network.own_logits
    assert own_logits is not None

    def loss_fn(own: Params, batch: Mapping[str, Any], key: Array) -> tuple[Array, dict[str, Array]]:
        tokens = jnp.maximum(batch["tokens"], 0)
        if "hidden" in batch:
            last = jnp.moveaxis(jnp.asarray(batch["hidden"][-1]), -1, 0)
        else:
            last = hidden_states(target.network, target.params, tokens)[-1]
        expected = teacher.network.logits(teacher.params, last)
        params = {**own, **rest}
        logits = own_logits(params, hidden_states(network, params, tokens)[-1])
        counted = {"labels": batch["tokens"]}
        agreement = (jnp.argmax(logits, axis=0) == jnp.argmax(expected, axis=0)).astype(jnp.float32)
        return masked_mean(weighted(SOFT, logits, expected), counted), {"agreement": masked_mean(agreement, counted)}

    return loss_fn
