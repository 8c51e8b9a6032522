"""gpt-oss."""

from dataclasses import replace

import numpy as np

from jaxspec.loading._llama import LAYER, LLAMA_WEIGHTS, read_sizes, windowed_layers, write_layer_types, write_sizes
from jaxspec.loading._rope import Config, rotary_of
from jaxspec.loading._unsupported import check_layer_types
from jaxspec.loading.rules import Rule, same
from jaxspec.models.config import Attention, Block, ClampedGate, DecoderConfig, Experts, Scores

MLP = LAYER + "mlp."


def _alternating(name: str) -> Rule:
    """Part rows of gate and up, which alternate: [E, D, 2F] or [E, 2F] → [E, 2, F, D] or [E, 2, F]."""

    def split(leaf: np.ndarray) -> np.ndarray:
        rows = np.moveaxis(leaf, 1, 2)
        return np.swapaxes(rows.reshape(len(rows), -1, *rows.shape[3:]), 1, -1)

    def join(array: np.ndarray) -> np.ndarray:
        rows = np.swapaxes(array, 1, -1)
        return np.moveaxis(rows.reshape(len(rows), -1, 2, *rows.shape[2:]), 2, 1)

    return Rule((name,), lambda parts, _: join(parts[0]), lambda leaf, _: [split(leaf)])


def _turned(name: str) -> Rule:
    """Transpose the matrix of every expert."""
    turn = lambda array: np.swapaxes(array, 1, 2)  # noqa: E731
    return Rule((name,), lambda parts, _: turn(parts[0]), lambda leaf, _: [turn(leaf)])


def _by_group(name: str) -> Rule:
    """Group one number of every query head by key-value head: [G, Q]."""
    return Rule(
        (name,),
        lambda parts, config: parts[0].reshape(config.num_kv_heads, -1),
        lambda leaf, _: [leaf.reshape(-1)],
    )


GPT_OSS_WEIGHTS = LLAMA_WEIGHTS | {
    "attention.sinks": _by_group(LAYER + "self_attn.sinks"),
    "mlp.router": same(MLP + "router.weight"),
    "mlp.router_bias": same(MLP + "router.bias"),
    "mlp.expert_gate_up": _alternating(MLP + "experts.gate_up_proj"),
    "mlp.expert_gate_up_bias": _alternating(MLP + "experts.gate_up_proj_bias"),
    "mlp.expert_down": _turned(MLP + "experts.down_proj"),
    "mlp.expert_down_bias": same(MLP + "experts.down_proj_bias"),
}
YARN: Config = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}
#: Values of keys that files may omit.
DEFAULTS: Config = {
    "rms_norm_eps": 1e-5,
    "rope_theta": 150_000.0,
    "sliding_window": 128,
    "swiglu_alpha": 1.702,
    "swiglu_limit": 7.0,
}


def read_gpt_oss(config: Config) -> DecoderConfig:
    """Return the configuration of gpt-oss: experts with clamped gates, attention with sinks, windows in turn."""
    c = DEFAULTS | config
    c = c if c.get("rope_parameters") or c.get("rope_scaling") else c | {"rope_scaling": YARN}
    check_layer_types(c, c["sliding_window"])
    windowed = windowed_layers(c, lambda layer: layer % 2 == 0)
    if c["sliding_window"] is None and any(windowed):
        raise ValueError("expected sliding_window for the layers that slide, got null; set it, or layer_types")
    biased, clamped = bool(c.get("attention_bias", True)), ClampedGate(c["swiglu_alpha"], c["swiglu_limit"])
    attention = Attention(
        rotary_of(c),
        scores=Scores(sinks=True),
        window=c["sliding_window"],
        windowed=windowed,
        qkv_bias=biased,
        out_bias=biased,
    )
    experts = Experts(c["num_local_experts"], c["num_experts_per_tok"], c["intermediate_size"], router_bias=True)
    return replace(read_sizes(c, attention, Block(bias=True, clamped=clamped)), experts=experts)


def write_gpt_oss(config: DecoderConfig) -> Config:
    """Return ``config.json`` of gpt-oss."""
    experts, clamped = config.experts, config.block.clamped
    if experts is None or clamped is None:
        raise ValueError("expected experts with clamped gates, got a configuration without")
    return (
        write_sizes(config)
        | write_layer_types(config)
        | {
            "attention_bias": config.attention.qkv_bias,
            "num_local_experts": experts.count,
            "num_experts_per_tok": experts.top_k,
            "swiglu_alpha": clamped.slope,
            "swiglu_limit": clamped.limit,
        }
    )
