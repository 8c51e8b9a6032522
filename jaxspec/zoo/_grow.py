"""Grown models: larger ones that compute a small one's function, to measure systems at scale with a real acceptance.

Width and depth are added so that nothing changes: new features of the residual stream stay zero, new heads and hidden
units are random but are projected to nothing, new layers likewise. New layers lie evenly between the old ones, so that
an exit knows at each fraction of the depth what the small model's exit knows there. A grown model costs what its size
says; that it is no better than the small one must be said wherever it is used.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxspec.drafts.streams import init_streams, limited, num_streams, streaming_network
from jaxspec.models import _decoder as decoder
from jaxspec.models.base import Array, Model, Params
from jaxspec.models.config import Block, DecoderConfig, Ends


def grow(model: Model, width: int = 1, depth: int = 1, seed: int = 0) -> Model:
    """The same function, ``width`` times as wide (features, heads, hidden units) and ``depth`` times as deep.

    Args:
        model: Llama's blocks with a tied head, in floating point, which stays what it is; a draft may have lookahead
            streams.
        width: factor of D, H, G and F; the size of a head stays.
        depth: factor of N; layer i·N′/N of the grown model is layer i.
        seed: of the weights that make no difference.

    Raises:
        ValueError: a factor below 1, or a model of another kind.
    """
    config = model.network.config
    if width < 1 or depth < 1:
        raise ValueError(f"expected width and depth >= 1, got {width} and {depth}")
    if width == depth == 1:
        return model
    if config.block.layer_norm or config.block.norms != "before" or config.ends != Ends():
        raise ValueError("expected a model with Llama's blocks and a tied head to grow, got another kind")
    if num_streams(model.network):
        return _grown_streams(model, width, depth, seed)
    if config.tracks is not None:
        raise ValueError(f"expected a model without tracks to grow (new heads would mix them), got {config.tracks}")
    large, small, shrink = grown_config(config, width, depth), model.params, width**-0.5
    kept = {number * depth - 1: number - 1 for number in range(1, config.num_layers + 1)}
    one, keys = replace(large, num_layers=1), jax.random.split(jax.random.key(seed), large.num_layers)
    table, scale = small["embedding"], small["final_norm"]["scale"]
    params = {
        "embedding": _within(jnp.zeros((large.vocab_size, large.width), table.dtype), table),
        "final_norm": {"scale": _within(jnp.ones(large.width, scale.dtype), scale * shrink)},
        "layers": [
            _layer(one, index in kept, small["layers"][kept.get(index, 0)], shrink, key)
            for index, key in enumerate(keys)
        ],
    }
    return Model(decoder.network(large), params, model.text)


def _grown_streams(model: Model, width: int, depth: int, seed: int) -> Model:
    """Streams of a grown draft: they start where they did, at its fraction of the depth."""
    streams: Any = model.network
    plain = grow(limited(model, 0), width, depth, seed)
    rank = model.params["streams"]["reduce"].shape[1]
    blank = init_streams(plain.network.config, streams.count, rank, jax.random.key(seed))
    own = jax.tree.map(lambda new, old: _within(jnp.zeros_like(new), old), blank, model.params["streams"])
    made = streaming_network(plain.network, streams.count, streams.start * depth)
    return Model(made, {"draft": plain.params, "streams": own}, model.text)


def grown_config(config: DecoderConfig, width: int, depth: int) -> DecoderConfig:
    """Sizes of the grown model; what depends on the width of the residual stream is made up for."""
    block: Block = replace(config.block, epsilon=config.block.epsilon / width)
    scale = config.width**0.5 if config.ends.embedding_scale is None else config.ends.embedding_scale
    return replace(
        config,
        width=config.width * width,
        num_layers=config.num_layers * depth,
        num_heads=config.num_heads * width,
        num_kv_heads=config.num_kv_heads * width,
        hidden=config.hidden * width,
        block=block,
        ends=replace(config.ends, embedding_scale=scale),
    )


@partial(jax.jit, static_argnames=("config", "kept"))
def _layer(config: DecoderConfig, kept: bool, small: Params, shrink: float, key: Array) -> Params:
    """A random layer that adds nothing to the residual stream, or no more than the small one does.

    One program, so that of a large layer no more is ever made than what is returned.
    """
    nothing = {("attention", "out"), ("mlp", "down")}
    norms = ("attention_norm", "mlp_norm")
    found: dict[str, Any] = {}
    for part, leaves in decoder.init_params(config, key)["layers"][0].items():
        found[part] = {}
        for name, leaf in leaves.items():
            old = small[part][name]
            base = (jnp.zeros_like(leaf) if (part, name) in nothing else leaf).astype(old.dtype)
            found[part][name] = _within(base, old * (shrink if part in norms else 1.0)) if kept else base
    return found


def _within(large: Array, small: Array) -> Array:
    """The small array in the first corner of the large one."""
    return large.at[tuple(slice(size) for size in small.shape)].set(small)
