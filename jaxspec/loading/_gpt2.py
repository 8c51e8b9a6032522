"""GPT-2."""

from jaxspec.loading._rope import Config
from jaxspec.loading.rules import fused, heads, same, stacked, transposed
from jaxspec.models.config import Attention, Block, DecoderConfig, Ends

ROOT, LAYER = "transformer.", "transformer.h.{}."
GPT2_WEIGHTS = {
    "embedding": same(ROOT + "wte.weight"),
    "positions": same(ROOT + "wpe.weight"),
    "final_norm.scale": same(ROOT + "ln_f.weight"),
    "final_norm.bias": same(ROOT + "ln_f.bias"),
    "head": same("lm_head.weight"),
    "attention_norm.scale": same(LAYER + "ln_1.weight"),
    "attention_norm.bias": same(LAYER + "ln_1.bias"),
    "mlp_norm.scale": same(LAYER + "ln_2.weight"),
    "mlp_norm.bias": same(LAYER + "ln_2.bias"),
    "attention.qkv": transposed(fused(LAYER + "attn.c_attn.weight", heads(LAYER + "{}"))),
    "attention.qkv_bias": fused(LAYER + "attn.c_attn.bias", heads(LAYER + "{}")),
    "attention.out": transposed(same(LAYER + "attn.c_proj.weight")),
    "attention.out_bias": same(LAYER + "attn.c_proj.bias"),
    "mlp.gate_up": transposed(stacked(LAYER + "mlp.c_fc.weight")),
    "mlp.gate_up_bias": stacked(LAYER + "mlp.c_fc.bias"),
    "mlp.down": transposed(same(LAYER + "mlp.c_proj.weight")),
    "mlp.down_bias": same(LAYER + "mlp.c_proj.bias"),
}


def read_gpt2(config: Config) -> DecoderConfig:
    """Return GPT-2's configuration: learned positions, layer norms, biases, no gate.

    Raises:
        ValueError: attention scaled in another way.
    """
    c = config
    if not c.get("scale_attn_weights", True) or c.get("scale_attn_by_inverse_layer_idx", False):
        raise ValueError("expected attention scaled by 1/√head_size, got another scale (scale_attn_weights, ...)")
    return DecoderConfig(
        c["vocab_size"],
        c["n_embd"],
        c["n_layer"],
        c["n_head"],
        c["n_head"],
        c["n_embd"] // c["n_head"],
        c.get("n_inner") or 4 * c["n_embd"],
        attention=Attention(rotary=None, qkv_bias=True, out_bias=True),
        block=Block(
            layer_norm=True,
            epsilon=c.get("layer_norm_epsilon", 1e-5),
            activation=c.get("activation_function", "gelu_new"),
            gated=False,
            bias=True,
        ),
        ends=Ends(tied=bool(c.get("tie_word_embeddings", True)), embedding_scale=1.0, positions=c["n_positions"]),
    )


def write_gpt2(config: DecoderConfig) -> Config:
    """Return GPT-2's ``config.json``."""
    return {
        "n_embd": config.width,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_inner": config.hidden,
        "n_positions": config.ends.positions,
        "layer_norm_epsilon": config.block.epsilon,
        "activation_function": config.block.activation,
    }
