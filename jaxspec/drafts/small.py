"""Small language models made of a target, to be trained as its drafts: its embedding, its head, few layers."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from jaxspec.models import init_params, network
from jaxspec.models.base import Array, Model, Params
from jaxspec.models.config import DecoderConfig
from jaxspec.models.heads import head_over, token_index

#: Largest share of the target's weights that a pass of the draft reads, where the number of layers is not given.
SHARE = 0.1


def small_draft(
    target: Model,
    *,
    num_layers: int | None = None,
    from_layers: Sequence[int] | None = None,
    vocabulary: Sequence[int] | np.ndarray | None = None,
    key: Array | None = None,
) -> Model:
    """Return a language model of few layers with the target's embedding, final norm, head and sizes of a layer.

    With few tokens in flight a pass takes as long as reading its weights. A step of γ drafted tokens that are accepted
    with probability α each gives Σ_{i≤γ} αⁱ tokens for 1 + γ·x passes of the target, where x is the draft's share of
    the target's weights; with x of a tenth and the γ of 3 to 4 that is best then, two accepted tokens a step pay.

    Args:
        target: is not changed; its embedding is the draft's own array.
        num_layers: layers with fresh parameters; default: as many as keep x at most ``SHARE``, at least one.
        from_layers: start from these layers of the target instead.
        vocabulary: ids of the tokens that the head scores (``frequent_tokens``); default: all, with the target's head.
        key: of the random parameters; default: of seed 0.

    Raises:
        ValueError: layers that the target lacks, none, both arguments that choose layers, or ids that are not different
            tokens of the target.
    """
    config, ids = target.network.config, _checked_ids(target.network.config, vocabulary)
    layers = None if from_layers is None else _checked_layers(config, num_layers, from_layers)
    ends = config.ends if ids is None else replace(config.ends, tied=False, head_tokens=len(ids))
    one = replace(_layers_of(config, layers and layers[:1], 1), ends=ends)
    count = len(layers) if layers else num_layers or _fitting(target, one)
    own = replace(_layers_of(config, layers, count), ends=ends)
    params: Params = init_params(own, jax.random.key(0) if key is None else key)
    dtype = target.params["embedding"].dtype
    params = {**params, "layers": jax.tree.map(lambda leaf: leaf.astype(dtype), params["layers"])}
    if layers:
        params["layers"] = [target.params["layers"][index] for index in layers]
    shared = {name: value for name, value in target.params.items() if name != "layers"}
    return Model(network(own), {**params, **shared, **_head(target, ids)}, target.text)


def _head(target: Model, ids: np.ndarray | None) -> dict[str, Any]:
    if ids is None:
        return {}
    return {"head": head_over(target, ids), "index": token_index(ids, target.network.config.vocab_size)}


def _fitting(target: Model, one: DecoderConfig) -> int:
    """Return the number of layers by ``SHARE``."""
    shapes = jax.eval_shape(lambda: init_params(one, jax.random.key(0)))
    sizes = {name: sum(leaf.size for leaf in jax.tree.leaves(part)) for name, part in shapes.items()}
    unread = ("embedding",) if "head" in sizes else ()
    whole = sum(leaf.size for leaf in jax.tree.leaves(target.params))
    rest = sum(size for name, size in sizes.items() if name not in ("layers", "index", *unread))
    return max(1, int((SHARE * whole - rest) // sizes["layers"]))


def _layers_of(config: DecoderConfig, layers: Sequence[int] | None, count: int) -> DecoderConfig:
    """Return the settings of chosen layers; fresh ones attend everywhere, with positions, and have no experts."""
    attention, experts = config.attention, config.experts
    if layers is None:
        scores = replace(attention.scores, sinks=False)
        fresh = replace(attention, scores=scores, window=None, windowed=(), local_rotary=None, unrotated=())
        return replace(config, num_layers=count, attention=fresh, experts=None)
    flags: dict[str, Any] = {
        name: tuple(getattr(attention, name)[index] for index in layers)
        for name in ("windowed", "unrotated")
        if getattr(attention, name)
    }
    if experts is not None and experts.dense:
        experts = replace(experts, dense=tuple(experts.dense[index] for index in layers))
    return replace(config, num_layers=count, attention=replace(attention, **flags), experts=experts)


def _checked_ids(config: DecoderConfig, vocabulary: Sequence[int] | np.ndarray | None) -> np.ndarray | None:
    if vocabulary is None:
        return None
    ids, size = np.asarray(vocabulary), config.vocab_size
    if (
        ids.ndim != 1
        or not 0 < len(ids) < size
        or len(set(ids.tolist())) < len(ids)
        or ids.min() < 0
        or ids.max() >= size
    ):
        raise ValueError(f"expected fewer than {size} different tokens from 0 to {size - 1}, got {vocabulary!r:.80}")
    return ids.astype(np.int32)


def _checked_layers(config: DecoderConfig, num_layers: int | None, layers: Sequence[int]) -> tuple[int, ...]:
    if num_layers is not None:
        raise ValueError("expected num_layers or from_layers, got both; leave one out")
    if not layers or list(layers) != sorted(set(layers)) or not 0 <= layers[0] <= layers[-1] < config.num_layers:
        raise ValueError(f"expected ascending layers from 0 to {config.num_layers - 1}, got {tuple(layers)}")
    return tuple(layers)
