"""Gemma 1, 2 and 3 (text)."""

from typing import Any

from jaxspec.loading._llama import LAYER, LLAMA_WEIGHTS, read_sizes, windowed_layers, write_layer_types, write_sizes
from jaxspec.loading._rope import DEFAULT_THETA, Config, rope_json, rotary_by_layer, rotary_of
from jaxspec.loading._unsupported import FULL, SLIDING, check_layer_types
from jaxspec.loading.rules import one_more
from jaxspec.models.config import Attention, Block, DecoderConfig, Ends, Scores

GEMMA_WEIGHTS = LLAMA_WEIGHTS | {
    "final_norm.scale": one_more("model.norm.weight"),
    "attention_norm.scale": one_more(LAYER + "input_layernorm.weight"),
    "attention_post_norm.scale": one_more(LAYER + "post_attention_layernorm.weight"),
    "mlp_norm.scale": one_more(LAYER + "pre_feedforward_layernorm.weight"),
    "mlp_post_norm.scale": one_more(LAYER + "post_feedforward_layernorm.weight"),
    "attention.query_norm.scale": one_more(LAYER + "self_attn.q_norm.weight"),
    "attention.key_norm.scale": one_more(LAYER + "self_attn.k_norm.weight"),
}
GEMMA1_WEIGHTS = LLAMA_WEIGHTS | {
    "final_norm.scale": one_more("model.norm.weight"),
    "attention_norm.scale": one_more(LAYER + "input_layernorm.weight"),
    "mlp_norm.scale": one_more(LAYER + "post_attention_layernorm.weight"),
}
#: Values of keys that Gemma's files may omit.
DEFAULTS: Config = {
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}
GEMMA2_DEFAULTS = DEFAULTS | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}


def read_gemma1(config: Config) -> DecoderConfig:
    """Return Gemma 1's configuration: Llama's blocks, a scaled embedding, norms of 1 + scale.

    Raises:
        ValueError: an activation other than a GELU.
    """
    c: Config = {"head_dim": 256} | config
    biased = bool(c.get("attention_bias", False))
    check_layer_types(c, window=None)
    activation = str(c.get("hidden_activation") or c.get("hidden_act") or DEFAULTS["hidden_activation"])
    if not activation.startswith("gelu"):
        raise ValueError(f"expected a GELU in Gemma, got {activation}")
    attention = Attention(rotary_of(c), qkv_bias=biased, out_bias=biased)
    return read_sizes(c, attention, Block(activation=activation), Ends(tied=True))


def write_gemma1(config: DecoderConfig) -> Config:
    """Return Gemma 1's ``config.json``."""
    own = {"hidden_activation": config.block.activation, "attention_bias": config.attention.qkv_bias}
    return write_sizes(config) | own


def read_gemma2(config: Config) -> DecoderConfig:
    """Return Gemma 2's configuration: every second layer has no window."""
    return _read_gemma(GEMMA2_DEFAULTS | config, 2)


def read_gemma3(config: Config) -> DecoderConfig:
    """Return Gemma 3's configuration: other rotary positions in layers with a window."""
    rotary = rotary_by_layer(config, FULL, float(config.get("rope_theta") or 1e6))
    local = rotary_by_layer(config, SLIDING, float(config.get("rope_local_base_freq") or DEFAULT_THETA))
    every = config.get("sliding_window_pattern") or config.get("_sliding_window_pattern") or 6
    return _read_gemma(DEFAULTS | config, every, rotary=rotary, local_rotary=local, norm_heads=True)


def _read_gemma(config: Config, every: int, **special: Any) -> DecoderConfig:
    check_layer_types(config, config["sliding_window"])
    windowed = windowed_layers(config, lambda layer: bool((layer + 1) % every))
    if config["sliding_window"] is None and any(windowed):
        raise ValueError("expected sliding_window for the layers that slide, got null; set it, or layer_types")
    biased = bool(config.get("attention_bias", False))
    attention = Attention(
        special.pop("rotary", None) or rotary_of(config),
        scores=Scores(float(config["query_pre_attn_scalar"]) ** -0.5, config.get("attn_logit_softcapping")),
        window=config["sliding_window"],
        windowed=windowed,
        qkv_bias=biased,
        out_bias=biased,
        **special,
    )
    block = Block(norms="around", activation=config["hidden_activation"] or DEFAULTS["hidden_activation"])
    return read_sizes(config, attention, block, Ends(tied=True, softcap=config.get("final_logit_softcapping")))


def write_gemma(config: DecoderConfig) -> Config:
    """Return ``config.json`` of Gemma 2 and Gemma 3."""
    a = config.attention
    scale = config.head_size**-0.5 if a.scores.scale is None else a.scores.scale
    scalar = round(scale**-2, 6)
    written = write_sizes(config) | write_layer_types(config)
    written |= {
        "hidden_activation": config.block.activation,
        "query_pre_attn_scalar": int(scalar) if scalar == int(scalar) else scalar,
        "attn_logit_softcapping": a.scores.softcap,
        "final_logit_softcapping": config.ends.softcap,
        "attention_bias": a.qkv_bias,
    }
    if a.local_rotary is not None:
        rotaries = {FULL: a.rotary, SLIDING: a.local_rotary}
        written["rope_parameters"] = {kind: rope_json(rotary) for kind, rotary in rotaries.items() if rotary}
    return written
