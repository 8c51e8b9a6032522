"""The loss of a small language model that is distilled from its target, over the tokens that its head scores."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from jaxspec.models.base import Array, Model, Params
from jaxspec.training._trained import teacher_logits
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
    index = {name: draft.params[name] for name in ("index",) if network.config.ends.head_tokens}
    own_logits = (network.own_logits if index else None) or network.logits

    def loss_fn(own: Params, batch: Mapping[str, Any], key: Array) -> tuple[Array, dict[str, Array]]:
        tokens = jnp.maximum(batch["tokens"], 0)
        if "hidden" in batch:
            last = jnp.moveaxis(jnp.asarray(batch["hidden"][-1]), -1, 0)
        else:
            last = hidden_states(target.network, target.params, tokens)[-1]
        expected, params = teacher_logits(index, target, last), {**own, **rest}
        logits = own_logits(params, hidden_states(network, params, tokens)[-1])
        counted = {"labels": batch["tokens"]}
        agreement = (jnp.argmax(logits, axis=0) == jnp.argmax(expected, axis=0)).astype(jnp.float32)
        return masked_mean(weighted(SOFT, logits, expected), counted), {"agreement": masked_mean(agreement, counted)}

    return loss_fn
