"""Families that differ from Llama in a detail: Phi 3 and 4, Granite, SmolLM3."""

from dataclasses import replace

from jaxspec.loading._llama import (
    LAYER,
    LLAMA_WEIGHTS,
    activation_of,
    read_llama,
    read_sizes,
    windowed_layers,
    write_layer_types,
    write_llama,
    write_sizes,
)
from jaxspec.loading._rope import Config, rotary_of
from jaxspec.loading._unsupported import check_layer_types
from jaxspec.loading.rules import fused, fused_gate_up, heads
from jaxspec.models.config import Attention, Block, DecoderConfig, Scores

PHI_WEIGHTS = LLAMA_WEIGHTS | {
    "attention.qkv": fused(LAYER + "self_attn.qkv_proj.weight", heads(LAYER + "self_attn.{}_proj.weight")),
    "mlp.gate_up": fused_gate_up(LAYER + "mlp.gate_up_proj.weight"),
}


def read_phi3(config: Config) -> DecoderConfig:
    """Return the configuration of Phi 3 and Phi 4: one array of queries, keys and values, one of gate and up."""
    window = config.get("sliding_window")
    check_layer_types(config, window)
    attention = Attention(rotary_of(config, shared=True), window=window)
    return read_sizes(config, attention, Block(activation=activation_of(config)))


def write_phi3(config: DecoderConfig) -> Config:
    """Return ``config.json`` of Phi 3 and Phi 4."""
    return write_sizes(config) | {"sliding_window": config.attention.window}


def read_granite(config: Config) -> DecoderConfig:
    """Return Granite's configuration: factors of the embedding, attention, what blocks add, and the logits."""
    c, plain = config, read_llama(config)
    scores = Scores(float(c["attention_multiplier"])) if c.get("attention_multiplier") is not None else Scores(1.0)
    scale, divided = c.get("residual_multiplier") or 1.0, c.get("logits_scaling") or 1.0
    return replace(
        plain,
        attention=replace(plain.attention, scores=scores),
        block=replace(plain.block, residual_scale=None if scale == 1 else float(scale)),
        ends=replace(
            plain.ends,
            embedding_scale=float(c.get("embedding_multiplier") or 1.0),
            logit_scale=None if divided == 1 else 1 / float(divided),
        ),
    )


def write_granite(config: DecoderConfig) -> Config:
    """Return Granite's ``config.json``."""
    scale = config.ends.logit_scale
    return write_llama(config) | {
        "attention_multiplier": config.attention.scores.scale,
        "embedding_multiplier": config.ends.embedding_scale,
        "residual_multiplier": config.block.residual_scale or 1.0,
        "logits_scaling": 1.0 if scale is None else round(1 / scale, 6),
    }


def read_smollm3(config: Config) -> DecoderConfig:
    """Return SmolLM3's configuration: Llama, some layers without rotary positions."""
    plain, count = read_llama({**config, "layer_types": None}), config["num_hidden_layers"]
    every = config.get("no_rope_layer_interval") or 4
    rotated = config.get("no_rope_layers") or [(layer + 1) % every for layer in range(count)]
    window = config.get("sliding_window") if config.get("use_sliding_window") else None
    check_layer_types(config, window)
    windowed = windowed_layers(config, lambda layer: not rotated[layer]) if window else ()
    unrotated = tuple(not each for each in rotated)
    attention = replace(
        plain.attention, window=window, windowed=windowed, unrotated=unrotated if any(unrotated) else ()
    )
    return replace(plain, attention=attention)


def write_smollm3(config: DecoderConfig) -> Config:
    """Return SmolLM3's ``config.json``."""
    a = config.attention
    rotated = [int(not flag) for flag in a.unrotated] or [1] * config.num_layers
    window = {"no_rope_layers": rotated, "use_sliding_window": a.window is not None}
    return write_llama(config) | write_layer_types(config) | window
