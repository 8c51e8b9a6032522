"""OPT."""

from jaxspec.loading._rope import Config
from jaxspec.loading.rules import heads, same, stacked, table_from_two
from jaxspec.models.config import Attention, Block, DecoderConfig, Ends

ROOT, LAYER = "model.decoder.", "model.decoder.layers.{}."
OPT_WEIGHTS = {
    "embedding": same(ROOT + "embed_tokens.weight"),
    "positions": table_from_two(ROOT + "embed_positions.weight"),
    "final_norm.scale": same(ROOT + "final_layer_norm.weight"),
    "final_norm.bias": same(ROOT + "final_layer_norm.bias"),
    "project_in": same(ROOT + "project_in.weight"),
    "project_out": same(ROOT + "project_out.weight"),
    "head": same("lm_head.weight"),
    "attention_norm.scale": same(LAYER + "self_attn_layer_norm.weight"),
    "attention_norm.bias": same(LAYER + "self_attn_layer_norm.bias"),
    "mlp_norm.scale": same(LAYER + "final_layer_norm.weight"),
    "mlp_norm.bias": same(LAYER + "final_layer_norm.bias"),
    "attention.qkv": heads(LAYER + "self_attn.{}_proj.weight"),
    "attention.qkv_bias": heads(LAYER + "self_attn.{}_proj.bias"),
    "attention.out": same(LAYER + "self_attn.out_proj.weight"),
    "attention.out_bias": same(LAYER + "self_attn.out_proj.bias"),
    "mlp.gate_up": stacked(LAYER + "fc1.weight"),
    "mlp.gate_up_bias": stacked(LAYER + "fc1.bias"),
    "mlp.down": same(LAYER + "fc2.weight"),
    "mlp.down_bias": same(LAYER + "fc2.bias"),
}


def read_opt(config: Config) -> DecoderConfig:
    """Return OPT's configuration: learned positions, layer norms, and no gate.

    Raises:
        ValueError: norms without scales, or GPT-2's activation.
    """
    c = config
    if not c.get("layer_norm_elementwise_affine", True):
        raise ValueError("expected OPT with layer_norm_elementwise_affine, got false")
    if c.get("activation_function") == "gelu_new":
        raise ValueError("expected an activation of OPT, such as relu or gelu, got gelu_new, which is GPT-2's")
    biased, before = bool(c.get("enable_bias", True)), bool(c.get("do_layer_norm_before", True))
    size = c.get("word_embed_proj_dim") or c["hidden_size"]
    return DecoderConfig(
        c["vocab_size"],
        c["hidden_size"],
        c["num_hidden_layers"],
        c["num_attention_heads"],
        c["num_attention_heads"],
        c["hidden_size"] // c["num_attention_heads"],
        c["ffn_dim"],
        attention=Attention(rotary=None, qkv_bias=biased, out_bias=biased),
        block=Block(
            layer_norm=True,
            norms="before" if before else "after",
            activation=c.get("activation_function", "relu"),
            gated=False,
            bias=biased,
        ),
        ends=Ends(
            tied=bool(c.get("tie_word_embeddings", True)),
            embedding_scale=1.0,
            embedding_size=None if size == c["hidden_size"] else size,
            positions=c["max_position_embeddings"],
            final_norm=before and not c.get("_remove_final_layer_norm", False),
        ),
    )


def write_opt(config: DecoderConfig) -> Config:
    """Return OPT's ``config.json``."""
    before = config.block.norms == "before"
    return {
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "ffn_dim": config.hidden,
        "max_position_embeddings": config.ends.positions,
        "word_embed_proj_dim": config.ends.embedding_size or config.width,
        "do_layer_norm_before": before,
        "_remove_final_layer_norm": before and not config.ends.final_norm,
        "activation_function": config.block.activation,
        "enable_bias": config.block.bias,
    }
