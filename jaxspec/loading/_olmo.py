"""Olmo 2 and 3."""

from dataclasses import replace

from jaxspec.loading._llama import (
    LAYER,
    LLAMA_WEIGHTS,
    activation_of,
    read_sizes,
    windowed_layers,
    write_layer_types,
    write_sizes,
)
from jaxspec.loading._rope import Config, rope_json, rotary_by_layer, rotary_of
from jaxspec.loading._unsupported import FULL, SLIDING, check_layer_types
from jaxspec.loading.rules import same
from jaxspec.models.config import Attention, Block, DecoderConfig

OLMO_WEIGHTS = LLAMA_WEIGHTS | {
    "attention_post_norm.scale": same(LAYER + "post_attention_layernorm.weight"),
    "mlp_post_norm.scale": same(LAYER + "post_feedforward_layernorm.weight"),
}
#: ε and θ of files that name none.
EPSILON, OLMO3_THETA = 1e-5, 5e5


def read_olmo2(config: Config) -> DecoderConfig:
    """Return Olmo 2's configuration: norms of what blocks add, and of all query heads, and all key heads, together."""
    c, biased = {"rms_norm_eps": EPSILON} | config, bool(config.get("attention_bias", False))
    check_layer_types(c, window=None)
    attention = Attention(rotary_of(c), qkv_bias=biased, out_bias=biased, norm_heads="together")
    return read_sizes(c, attention, Block(norms="output", activation=activation_of(c)))


def write_olmo2(config: DecoderConfig) -> Config:
    """Return Olmo 2's ``config.json``."""
    return write_sizes(config) | {"attention_bias": config.attention.qkv_bias}


def read_olmo3(config: Config) -> DecoderConfig:
    """Return Olmo 3's configuration: Olmo 2 with windows, whose layers have rotary positions without scaling."""
    c = {"sliding_window": 4096} | config
    plain = read_olmo2({**c, "layer_types": None, "rope_parameters": None, "rope_scaling": None})
    check_layer_types(c, c["sliding_window"])
    rotary = rotary_by_layer(c, FULL, float(c.get("rope_theta") or OLMO3_THETA))
    local = rotary_by_layer(c, SLIDING, OLMO3_THETA)
    windowed = windowed_layers(c, lambda layer: bool((layer + 1) % 4)) if c["sliding_window"] else ()
    attention = replace(
        plain.attention, rotary=rotary, local_rotary=local, window=c["sliding_window"], windowed=windowed
    )
    return replace(plain, attention=attention)


def write_olmo3(config: DecoderConfig) -> Config:
    """Return Olmo 3's ``config.json``."""
    a = config.attention
    rotaries = {FULL: a.rotary, SLIDING: a.local_rotary}
    by_layer = {kind: rope_json(rotary) for kind, rotary in rotaries.items() if rotary}
    return write_olmo2(config) | write_layer_types(config) | {"rope_parameters": by_layer, "rope_theta": None}
