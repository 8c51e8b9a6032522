"""Families with mixtures of experts: Mixtral, and those of Qwen 2 and Qwen 3."""

from dataclasses import replace
from typing import Any

from jaxspec.loading._llama import (
    LAYER,
    LLAMA_WEIGHTS,
    activation_of,
    read_qwen,
    read_sizes,
    write_qwen,
    write_sizes,
)
from jaxspec.loading._rope import Config, rotary_of
from jaxspec.loading._unsupported import FULL, SLIDING, check_layer_types
from jaxspec.loading.rules import of_experts, same, stacked
from jaxspec.models.config import Attention, Block, DecoderConfig, Experts

MIXED, MLP = LAYER + "block_sparse_moe.", LAYER + "mlp."
MIXTRAL_WEIGHTS = LLAMA_WEIGHTS | {
    "mlp.router": same(MIXED + "gate.weight"),
    "mlp.expert_gate_up": of_experts(stacked(MIXED + "experts.{}.w1.weight", MIXED + "experts.{}.w3.weight")),
    "mlp.expert_down": of_experts(same(MIXED + "experts.{}.w2.weight")),
}
QWEN_MOE_WEIGHTS = LLAMA_WEIGHTS | {
    "mlp.router": same(MLP + "gate.weight"),
    "mlp.expert_gate_up": of_experts(stacked(MLP + "experts.{}.gate_proj.weight", MLP + "experts.{}.up_proj.weight")),
    "mlp.expert_down": of_experts(same(MLP + "experts.{}.down_proj.weight")),
    "mlp.shared.gate_up": stacked(MLP + "shared_expert.gate_proj.weight", MLP + "shared_expert.up_proj.weight"),
    "mlp.shared.down": same(MLP + "shared_expert.down_proj.weight"),
    "mlp.shared_gate": same(MLP + "shared_expert_gate.weight"),
}
#: Values of keys that files may omit.
MIXTRAL: Config = {"rms_norm_eps": 1e-5, "rope_theta": 1e6, "num_local_experts": 8, "num_experts_per_tok": 2}
QWEN2: Config = {"num_experts_per_tok": 4, "moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632}
QWEN3: Config = {"num_experts_per_tok": 8, "moe_intermediate_size": 768}


def read_mixtral(config: Config) -> DecoderConfig:
    """Return Mixtral's configuration: Mistral with experts in every layer."""
    c = MIXTRAL | config
    window = c.get("sliding_window")
    check_layer_types(c, window, kinds=(SLIDING if window else FULL,))
    plain = read_sizes(c, Attention(rotary_of(c), window=window), Block(activation=activation_of(c)))
    return replace(plain, experts=Experts(c["num_local_experts"], c["num_experts_per_tok"], c["intermediate_size"]))


def write_mixtral(config: DecoderConfig) -> Config:
    """Return Mixtral's ``config.json``."""
    experts = _experts(config)
    sizes = {"num_local_experts": experts.count, "num_experts_per_tok": experts.top_k}
    return write_sizes(config) | {"sliding_window": config.attention.window} | sizes


def read_qwen2_moe(config: Config) -> DecoderConfig:
    """Return the configuration of Qwen 2's mixtures: an expert of all tokens, with a gate of its own."""
    c = QWEN2 | config
    types = c.get("layer_types") or [
        SLIDING if c.get("use_sliding_window") and layer % 2 == 0 and layer < c.get("max_window_layers", 28) else FULL
        for layer in range(c["num_hidden_layers"])
    ]
    plain = read_qwen(c | {"layer_types": types}, qkv_bias=bool(c.get("qkv_bias", True)))
    return replace(plain, experts=_read_experts(c, shared_hidden=c["shared_expert_intermediate_size"]))


def write_qwen2_moe(config: DecoderConfig) -> Config:
    """Return ``config.json`` of Qwen 2's mixtures."""
    shared = {"shared_expert_intermediate_size": _experts(config).shared_hidden}
    return write_qwen(config) | _write_experts(config) | shared | {"qkv_bias": config.attention.qkv_bias}


def read_qwen3_moe(config: Config) -> DecoderConfig:
    """Return the configuration of Qwen 3's mixtures: with ``use_sliding_window`` all layers have the window."""
    c, biased = QWEN3 | config, bool(config.get("attention_bias", False))
    window = c.get("sliding_window", 4096) if c.get("use_sliding_window") else None
    check_layer_types(c, window, kinds=(SLIDING if window else FULL,))
    attention = Attention(rotary_of(c), window=window, qkv_bias=biased, out_bias=biased, norm_heads=True)
    return replace(read_sizes(c, attention, Block(activation=activation_of(c))), experts=_read_experts(c))


def write_qwen3_moe(config: DecoderConfig) -> Config:
    """Return ``config.json`` of Qwen 3's mixtures."""
    a = config.attention
    window = {"use_sliding_window": a.window is not None, "sliding_window": a.window}
    return write_sizes(config) | _write_experts(config) | window | {"attention_bias": a.qkv_bias}


def _read_experts(config: Config, **special: Any) -> Experts | None:
    """Return Qwen's experts; None if every layer has an ordinary feed-forward block."""
    c = config
    count = c["num_experts"] if "num_experts" in c else c["num_local_experts"]
    every, without = c.get("decoder_sparse_step", 1), c.get("mlp_only_layers") or ()
    dense = tuple(layer in without or (layer + 1) % every > 0 for layer in range(c["num_hidden_layers"]))
    if count == 0 or all(dense):
        return None
    return Experts(
        count,
        c["num_experts_per_tok"],
        c["moe_intermediate_size"],
        renormalised=bool(c.get("norm_topk_prob", False)),
        dense=dense if any(dense) else (),
        **special,
    )


def _write_experts(config: DecoderConfig) -> Config:
    experts = _experts(config)
    return {
        "num_experts": experts.count,
        "num_experts_per_tok": experts.top_k,
        "moe_intermediate_size": experts.hidden,
        "norm_topk_prob": experts.renormalised,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [layer for layer, dense in enumerate(experts.dense) if dense],
    }


def _experts(config: DecoderConfig) -> Experts:
    if config.experts is None:
        raise ValueError("expected a mixture of experts, got a configuration without experts")
    return config.experts
