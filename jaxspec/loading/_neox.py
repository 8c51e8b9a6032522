"""GPT-NeoX, and Pythia with its names."""

from jaxspec.loading._rope import Config, rope_json, rotary_of
from jaxspec.loading.rules import interleaved_heads, same, stacked
from jaxspec.models.config import Attention, Block, DecoderConfig, Ends, Rotary

ROOT, LAYER = "gpt_neox.", "gpt_neox.layers.{}."
NEOX_WEIGHTS = {
    "embedding": same(ROOT + "embed_in.weight"),
    "final_norm.scale": same(ROOT + "final_layer_norm.weight"),
    "final_norm.bias": same(ROOT + "final_layer_norm.bias"),
    "head": same("embed_out.weight"),
    "attention_norm.scale": same(LAYER + "input_layernorm.weight"),
    "attention_norm.bias": same(LAYER + "input_layernorm.bias"),
    "mlp_norm.scale": same(LAYER + "post_attention_layernorm.weight"),
    "mlp_norm.bias": same(LAYER + "post_attention_layernorm.bias"),
    "attention.qkv": interleaved_heads(LAYER + "attention.query_key_value.weight"),
    "attention.qkv_bias": interleaved_heads(LAYER + "attention.query_key_value.bias"),
    "attention.out": same(LAYER + "attention.dense.weight"),
    "attention.out_bias": same(LAYER + "attention.dense.bias"),
    "mlp.gate_up": stacked(LAYER + "mlp.dense_h_to_4h.weight"),
    "mlp.gate_up_bias": stacked(LAYER + "mlp.dense_h_to_4h.bias"),
    "mlp.down": same(LAYER + "mlp.dense_4h_to_h.weight"),
    "mlp.down_bias": same(LAYER + "mlp.dense_4h_to_h.bias"),
}


def read_neox(config: Config) -> DecoderConfig:
    """Return GPT-NeoX's configuration: parallel blocks, layer norms, biases, rotary positions of a part of a head."""
    rope = {"rope_theta": config.get("rotary_emb_base"), "partial_rotary_factor": config.get("rotary_pct", 0.25)}
    c, count = rope | config, config["num_attention_heads"]
    biased = bool(c.get("attention_bias", True))
    return DecoderConfig(
        c["vocab_size"],
        c["hidden_size"],
        c["num_hidden_layers"],
        count,
        count,
        c["hidden_size"] // count,
        c["intermediate_size"],
        attention=Attention(rotary_of(c, shared=True), qkv_bias=biased, out_bias=biased),
        block=Block(
            layer_norm=True,
            epsilon=c.get("layer_norm_eps", 1e-5),
            activation=c.get("hidden_act", "gelu"),
            gated=False,
            bias=True,
            parallel=bool(c.get("use_parallel_residual", True)),
        ),
        ends=Ends(tied=bool(c.get("tie_word_embeddings", False)), embedding_scale=1.0),
    )


def write_neox(config: DecoderConfig) -> Config:
    """Return GPT-NeoX's ``config.json``."""
    rotary = config.attention.rotary or Rotary()
    return {
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.hidden,
        "layer_norm_eps": config.block.epsilon,
        "hidden_act": config.block.activation,
        "attention_bias": config.attention.qkv_bias,
        "use_parallel_residual": config.block.parallel,
        "rope_parameters": rope_json(rotary) | {"partial_rotary_factor": rotary.partial_factor},
    }
