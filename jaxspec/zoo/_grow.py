"""Grown models: large models that compute a small one's function, to time systems at scale with a real acceptance rate.

Width and depth are added so that the output does not change: new features of the residual stream stay zero; new heads
and hidden units are random, but their output projection is zero; new layers add zero to the residual stream. New layers
are spread evenly between the old ones, so an exit at a fraction of the depth sees what the small model's exit sees
there. A grown model costs what a model of its size costs. Its text is no better than the small one's; state this
wherever its figures are shown.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxspec import models
from jaxspec.drafts.streams import init_streams, limited, num_streams, streaming_network
from jaxspec.models.base import Array, Model, Params
from jaxspec.models.config import DecoderConfig, Ends


def grow(model: Model, width: int = 1, depth: int = 1, seed: int = 0) -> Model:
    """Return a model of the same function, ``width`` times as wide and ``depth`` times as deep.

    Args:
        model: floating point, Llama's blocks, a tied head, optionally lookahead streams. The dtype is kept.
        width: factor of features D, heads H and G, and hidden units F; the size of a head is kept.
        depth: factor of the number of layers N; layer i·N′/N of the grown model is layer i.
        seed: of the random weights that do not change the output.

    Raises:
        ValueError: a factor is below 1, or the model has another architecture.
    """
    config = model.network.config
    if width < 1 or depth < 1:
        raise ValueError(f"expected width and depth >= 1, got {width} and {depth}")
    if width == depth == 1:
        return model
    block, attention = config.block, config.attention
    others = config.experts, attention.norm_heads == "together", attention.scores.sinks
    if block.layer_norm or block.parallel or block.norms != "before" or config.ends != Ends() or any(others):
        raise ValueError("expected a model with Llama's blocks and a tied head to grow, got another architecture")
    if num_streams(model.network):
        return _grown_streams(model, width, depth, seed)
    if config.tracks is not None:
        raise ValueError(f"expected a model without tracks to grow (new heads would mix them), got {config.tracks}")
    large, small, shrink = grown_config(config, width, depth), model.params, width**-0.5
    kept = {number * depth - 1: number - 1 for number in range(1, config.num_layers + 1)}
    one, keys = replace(large, num_layers=1), jax.random.split(jax.random.key(seed), large.num_layers)
    table, scale = small["embedding"], small["final_norm"]["scale"]
    params = {
        "embedding": _embed(jnp.zeros((large.vocab_size, large.width), table.dtype), table),
        "final_norm": {"scale": _embed(jnp.ones(large.width, scale.dtype), scale * shrink)},
        "layers": [
            _layer(one, index in kept, small["layers"][kept.get(index, 0)], shrink, key)
            for index, key in enumerate(keys)
        ],
    }
    return Model(models.network(large), params, model.text)


def _grown_streams(model: Model, width: int, depth: int, seed: int) -> Model:
    """Grow a draft with streams; they start at the same fraction of the depth."""
    streams: Any = model.network
    plain = grow(limited(model, 0), width, depth, seed)
    rank = model.params["streams"]["reduce"].shape[1]
    blank = init_streams(plain.network.config, streams.count, rank, jax.random.key(seed))
    own = jax.tree.map(lambda new, old: _embed(jnp.zeros_like(new), old), blank, model.params["streams"])
    network = streaming_network(plain.network, streams.count, streams.start * depth)
    return Model(network, {"draft": plain.params, "streams": own}, model.text)


def grown_config(config: DecoderConfig, width: int, depth: int) -> DecoderConfig:
    """Return the grown configuration; ε and embedding scale compensate for the width of the residual stream."""
    scale = config.width**0.5 if config.ends.embedding_scale is None else config.ends.embedding_scale
    return replace(
        config,
        width=config.width * width,
        num_layers=config.num_layers * depth,
        num_heads=config.num_heads * width,
        num_kv_heads=config.num_kv_heads * width,
        hidden=config.hidden * width,
        block=replace(config.block, epsilon=config.block.epsilon / width),
        ends=replace(config.ends, embedding_scale=scale),
    )


@partial(jax.jit, static_argnames=("config", "kept"))
def _layer(config: DecoderConfig, kept: bool, small: Params, shrink: float, key: Array) -> Params:
    """Make a random layer that adds zero to the residual stream, or what the small layer adds if ``kept``.

    Compiled as one program, so that no intermediate copies of a large layer are made.
    """
    zeroed = {("attention", "out"), ("mlp", "down")}
    norms = ("attention_norm", "mlp_norm")
    grown: dict[str, Any] = {}
    for part, leaves in models.init_params(config, key)["layers"][0].items():
        grown[part] = {}
        for name, leaf in leaves.items():
            old = small[part][name]
            base = (jnp.zeros_like(leaf) if (part, name) in zeroed else leaf).astype(old.dtype)
            grown[part][name] = _embed(base, old * (shrink if part in norms else 1.0)) if kept else base
    return grown


def _embed(large: Array, small: Array) -> Array:
    """Write the small array at the start of the large one in every dimension."""
    return large.at[tuple(slice(size) for size in small.shape)].set(small)
