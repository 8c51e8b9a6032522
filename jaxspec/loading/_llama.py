"""Llama and the families with its names: Mistral, Qwen 2 and Qwen 3."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from jaxspec.loading._rope import Config, rope_json, rotary_of
from jaxspec.loading._unsupported import FULL, SLIDING, check_layer_types
from jaxspec.loading.rules import heads, same, stacked
from jaxspec.models.config import Attention, Block, DecoderConfig, Ends, Rotary

LAYER = "model.layers.{}."
LLAMA_WEIGHTS = {
    "embedding": same("model.embed_tokens.weight"),
    "final_norm.scale": same("model.norm.weight"),
    "head": same("lm_head.weight"),
    "attention_norm.scale": same(LAYER + "input_layernorm.weight"),
    "mlp_norm.scale": same(LAYER + "post_attention_layernorm.weight"),
    "attention.qkv": heads(LAYER + "self_attn.{}_proj.weight"),
    "attention.qkv_bias": heads(LAYER + "self_attn.{}_proj.bias"),
    "attention.query_norm.scale": same(LAYER + "self_attn.q_norm.weight"),
    "attention.key_norm.scale": same(LAYER + "self_attn.k_norm.weight"),
    "attention.out": same(LAYER + "self_attn.o_proj.weight"),
    "attention.out_bias": same(LAYER + "self_attn.o_proj.bias"),
    "mlp.gate_up": stacked(LAYER + "mlp.gate_proj.weight", LAYER + "mlp.up_proj.weight"),
    "mlp.gate_up_bias": stacked(LAYER + "mlp.gate_proj.bias", LAYER + "mlp.up_proj.bias"),
    "mlp.down": same(LAYER + "mlp.down_proj.weight"),
    "mlp.down_bias": same(LAYER + "mlp.down_proj.bias"),
}
LLAMA_ENDS = Ends(tied=False, embedding_scale=1.0)


def read_sizes(config: Config, attention: Attention, block: Block, ends: Ends = LLAMA_ENDS) -> DecoderConfig:
    """Return a configuration from Llama's names of sizes, the norms' ε and tying, and the remaining parts."""
    c, count = config, config["num_attention_heads"]
    return DecoderConfig(
        vocab_size=c["vocab_size"],
        width=c["hidden_size"],
        num_layers=c["num_hidden_layers"],
        num_heads=count,
        num_kv_heads=c.get("num_key_value_heads") or count,
        head_size=c.get("head_dim") or c["hidden_size"] // count,
        hidden=c["intermediate_size"],
        attention=attention,
        block=replace(block, epsilon=c.get("rms_norm_eps", 1e-6)),
        ends=replace(ends, tied=bool(c.get("tie_word_embeddings", ends.tied))),
    )


def write_sizes(config: DecoderConfig) -> Config:
    """Return Llama's names of sizes, ε, activation and rotary positions."""
    c = config
    return {
        "hidden_size": c.width,
        "num_hidden_layers": c.num_layers,
        "num_attention_heads": c.num_heads,
        "num_key_value_heads": c.num_kv_heads,
        "head_dim": c.head_size,
        "intermediate_size": c.hidden,
        "rms_norm_eps": c.block.epsilon,
        "hidden_act": c.block.activation,
        "rope_theta": c.attention.rotary.theta if c.attention.rotary else None,
        "rope_parameters": rope_json(c.attention.rotary or Rotary()),
    }


def activation_of(config: Config) -> str:
    """Return the name of the activation."""
    return config.get("hidden_activation") or config.get("hidden_act") or "silu"


def windowed_layers(config: Config, default: Callable[[int], bool]) -> tuple[bool, ...]:
    """Return which layers have a sliding window: by ``layer_types``, or else by the family's pattern (layer → flag)."""
    types = config.get("layer_types")
    if types:
        return tuple(kind == SLIDING for kind in types)
    return tuple(default(index) for index in range(config["num_hidden_layers"]))


def write_layer_types(config: DecoderConfig) -> Config:
    """Return ``layer_types`` and ``sliding_window``."""
    attention = config.attention
    types = [SLIDING if attention.is_windowed(layer) else FULL for layer in range(config.num_layers)]
    return {"layer_types": types, "sliding_window": attention.window}


def read_llama(config: Config) -> DecoderConfig:
    """Return Llama's configuration."""
    check_layer_types(config, window=None)
    biased = bool(config.get("attention_bias", False))
    attention = Attention(rotary_of(config), qkv_bias=biased, out_bias=biased)
    return read_sizes(config, attention, Block(activation=activation_of(config), bias=bool(config.get("mlp_bias"))))


def write_llama(config: DecoderConfig) -> Config:
    """Return Llama's ``config.json``."""
    return write_sizes(config) | {"attention_bias": config.attention.qkv_bias, "mlp_bias": config.block.bias}


def read_mistral(config: Config) -> DecoderConfig:
    """Return Mistral's configuration: all layers have the window."""
    window = config.get("sliding_window", 4096)
    check_layer_types(config, window, kinds=(SLIDING if window else FULL,))
    return read_sizes(config, Attention(rotary_of(config), window=window), Block(activation=activation_of(config)))


def write_mistral(config: DecoderConfig) -> Config:
    """Return Mistral's ``config.json``."""
    return write_sizes(config) | {"sliding_window": config.attention.window}


def read_qwen2(config: Config) -> DecoderConfig:
    """Return Qwen 2's configuration: biases of queries, keys and values."""
    return read_qwen(config, qkv_bias=True)


def read_qwen3(config: Config) -> DecoderConfig:
    """Return Qwen 3's configuration: norms of query and key heads."""
    biased = bool(config.get("attention_bias", False))
    return read_qwen(config, norm_heads=True, qkv_bias=biased, out_bias=biased)


def read_qwen(config: Config, **special: Any) -> DecoderConfig:
    """Return the configuration of Qwen 2 or 3, with further settings of its attention."""
    window = config.get("sliding_window", 4096) if config.get("use_sliding_window") else None
    check_layer_types(config, window)
    first = config.get("max_window_layers", 28)
    windowed = windowed_layers(config, lambda layer: layer >= first) if window else ()
    attention = Attention(rotary_of(config), window=window, windowed=windowed, **special)
    return read_sizes(config, attention, Block(activation=activation_of(config)))


def write_qwen(config: DecoderConfig) -> Config:
    """Return ``config.json`` of Qwen 2 and Qwen 3."""
    window = {"use_sliding_window": config.attention.window is not None, "max_window_layers": 0}
    biased = config.attention.qkv_bias and config.attention.norm_heads
    return write_sizes(config) | window | write_layer_types(config) | {"attention_bias": biased}
