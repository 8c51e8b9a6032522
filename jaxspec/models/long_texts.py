"""Texts beyond the length up to which a model has one set of rotary frequencies."""

from dataclasses import replace

from jaxspec.models.base import Model
from jaxspec.models.rotary import LongRopeScaling


def for_long_texts(model: Model) -> Model:
    """Return a model with LongRoPE's factors for texts beyond its original length, which then hold for all texts.

    Such a model says other things of short texts than the one it is made from, as in vLLM, where the longest text that
    is served chooses the factors. ``transformers`` changes factors when a text passes the original length, and keeps
    the keys that were rotated before.

    Args:
        model: with ``LongRopeScaling``; parameters and text stay the same.

    Raises:
        ValueError: a model without such factors.

    Source: Ding et al., LongRoPE (arXiv 2402.13753), §3.3.
    """
    attention = model.network.config.attention
    scaling = attention.rotary.scaling if attention.rotary else None
    if not isinstance(scaling, LongRopeScaling) or attention.rotary is None:
        raise ValueError(f"expected a model with LongRoPE, got rotary positions {attention.rotary}; it has one length")
    rotary = replace(attention.rotary, scaling=scaling.for_long_texts())
    config = replace(model.network.config, attention=replace(attention, rotary=rotary))
    assert model.network.with_config is not None
    return model._replace(network=model.network.with_config(config))
