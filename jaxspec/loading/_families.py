"""Published model families, one row each: how their configuration reads and what their weights are called.

A row says how ``config.json`` becomes a ``DecoderConfig`` and back, and which published weights make each of our
leaves. Leaves are named by their place in the parameters (``attention.qkv``), those of layer i as ``layers.i.…``.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from jaxspec.loading._rope import DEFAULT_THETA, Config, rope_json, rotary_by_layer, rotary_of
from jaxspec.loading._rules import Rule, heads, one_more, same, stacked, table_from_two
from jaxspec.loading._unsupported import FULL, SLIDING, check_layer_types, check_unread, unknown_architecture
from jaxspec.models.config import Attention, Block, DecoderConfig, Ends, Rotary, Scores


@dataclass(frozen=True)
class Family:
    """One published family.

    Attributes:
        model_type, architecture: its names in ``config.json``.
        read: ``config.json`` → our configuration.
        write: our configuration → what ``config.json`` has beyond names and sizes.
        weights: our leaves (those of a layer without ``layers.i.``) → rules.
        reads: settings that only some families have (``unsupported.NEUTRAL``, ``sliding_window``) and this one does.
    """

    model_type: str
    architecture: str
    read: Callable[[Config], DecoderConfig]
    write: Callable[[DecoderConfig], Config]
    weights: dict[str, Rule]
    reads: frozenset[str] = frozenset()

    def config_of(self, config: Config) -> DecoderConfig:
        """What ``config.json`` says, all of it that changes results.

        Raises:
            ValueError: a setting that the family does not have, or does not know.
        """
        check_unread(config, self.reads)
        return self.read(config)

    def config_json(self, config: DecoderConfig) -> Config:
        """Everything that ``config.json`` must say."""
        names = {"model_type": self.model_type, "architectures": [self.architecture]}
        return names | {"vocab_size": config.vocab_size, "tie_word_embeddings": config.ends.tied} | self.write(config)

    def carries(self, config: DecoderConfig) -> bool:
        """Whether the family's own configuration says all that ours does."""
        try:
            return self.read(self.config_json(config)) == config
        except (ValueError, KeyError, TypeError):
            return False


def _read(config: Config, attention: Attention, block: Block, ends: Ends) -> DecoderConfig:
    """Sizes that the families after Llama call the same, around given parts."""
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


def _activation(config: Config) -> str:
    return config.get("hidden_activation") or config.get("hidden_act") or "silu"


def _write(config: DecoderConfig) -> Config:
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


def _windowed(config: Config, otherwise: Callable[[int], bool]) -> tuple[bool, ...]:
    """Which layers slide: as ``layer_types`` says, else by the family's own pattern."""
    kinds = config.get("layer_types")
    if kinds:
        return tuple(kind == SLIDING for kind in kinds)
    return tuple(otherwise(index) for index in range(config["num_hidden_layers"]))


def _layer_types(config: DecoderConfig) -> Config:
    a = config.attention
    kinds = [SLIDING if a.is_windowed(i) else FULL for i in range(config.num_layers)]
    return {"layer_types": kinds, "sliding_window": a.window}


ROOT = {
    "embedding": same("model.embed_tokens.weight"),
    "final_norm.scale": same("model.norm.weight"),
    "head": same("lm_head.weight"),
}
_LAYER = "model.layers.{}."
LLAMA_WEIGHTS = ROOT | {
    "attention_norm.scale": same(_LAYER + "input_layernorm.weight"),
    "mlp_norm.scale": same(_LAYER + "post_attention_layernorm.weight"),
    "attention.qkv": heads(_LAYER + "self_attn.{}_proj.weight"),
    "attention.qkv_bias": heads(_LAYER + "self_attn.{}_proj.bias"),
    "attention.query_norm.scale": same(_LAYER + "self_attn.q_norm.weight"),
    "attention.key_norm.scale": same(_LAYER + "self_attn.k_norm.weight"),
    "attention.out": same(_LAYER + "self_attn.o_proj.weight"),
    "attention.out_bias": same(_LAYER + "self_attn.o_proj.bias"),
    "mlp.gate_up": stacked(_LAYER + "mlp.gate_proj.weight", _LAYER + "mlp.up_proj.weight"),
    "mlp.gate_up_bias": stacked(_LAYER + "mlp.gate_proj.bias", _LAYER + "mlp.up_proj.bias"),
    "mlp.down": same(_LAYER + "mlp.down_proj.weight"),
    "mlp.down_bias": same(_LAYER + "mlp.down_proj.bias"),
}
PLAIN_ENDS = Ends(tied=False, embedding_scale=1.0)


def _read_llama(config: Config) -> DecoderConfig:
    check_layer_types(config, window=None)
    biased = bool(config.get("attention_bias", False))
    attention = Attention(rotary_of(config), qkv_bias=biased, out_bias=biased)
    block = Block(activation=_activation(config), bias=bool(config.get("mlp_bias", False)))
    return _read(config, attention, block, PLAIN_ENDS)


def _write_llama(config: DecoderConfig) -> Config:
    return _write(config) | {"attention_bias": config.attention.qkv_bias, "mlp_bias": config.block.bias}


def _read_mistral(config: Config) -> DecoderConfig:
    window = config.get("sliding_window", 4096)
    check_layer_types(config, window, kinds=(SLIDING if window else FULL,))
    attention = Attention(rotary_of(config), window=window)
    return _read(config, attention, Block(activation=_activation(config)), PLAIN_ENDS)


def _write_mistral(config: DecoderConfig) -> Config:
    return _write(config) | {"sliding_window": config.attention.window}


def _read_qwen(config: Config, **special: Any) -> DecoderConfig:
    window = config.get("sliding_window", 4096) if config.get("use_sliding_window") else None
    check_layer_types(config, window)
    windowed = _windowed(config, lambda index: index >= config.get("max_window_layers", 28)) if window else ()
    attention = Attention(rotary_of(config), window=window, windowed=windowed, **special)
    return _read(config, attention, Block(activation=_activation(config)), PLAIN_ENDS)


def _read_qwen3(config: Config) -> DecoderConfig:
    biased = bool(config.get("attention_bias", False))
    return _read_qwen(config, norm_heads=True, qkv_bias=biased, out_bias=biased)


def _write_qwen(config: DecoderConfig) -> Config:
    window = {"use_sliding_window": config.attention.window is not None, "max_window_layers": 0}
    biased = config.attention.qkv_bias and config.attention.norm_heads
    return _write(config) | window | _layer_types(config) | {"attention_bias": biased}


GEMMA_WEIGHTS = LLAMA_WEIGHTS | {
    "final_norm.scale": one_more("model.norm.weight"),
    "attention_norm.scale": one_more(_LAYER + "input_layernorm.weight"),
    "attention_post_norm.scale": one_more(_LAYER + "post_attention_layernorm.weight"),
    "mlp_norm.scale": one_more(_LAYER + "pre_feedforward_layernorm.weight"),
    "mlp_post_norm.scale": one_more(_LAYER + "post_feedforward_layernorm.weight"),
    "attention.query_norm.scale": one_more(_LAYER + "self_attn.q_norm.weight"),
    "attention.key_norm.scale": one_more(_LAYER + "self_attn.k_norm.weight"),
}
GEMMA_ENDS = Ends(tied=True)
#: What Gemma's files may leave out.
GEMMA_DEFAULTS: Config = {
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}
GEMMA2_CAPS = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}


def _read_gemma(config: Config, every: int, **special: Any) -> DecoderConfig:
    config = GEMMA_DEFAULTS | config
    check_layer_types(config, config["sliding_window"])
    windowed = _windowed(config, lambda index: bool((index + 1) % every))
    if config["sliding_window"] is None and any(windowed):
        raise ValueError("expected sliding_window for the layers that slide, got null; name it, or layer_types")
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
    activation = config["hidden_activation"] or GEMMA_DEFAULTS["hidden_activation"]
    block = Block(norms="around", activation=activation)
    return _read(config, attention, block, replace(GEMMA_ENDS, softcap=config.get("final_logit_softcapping")))


def _read_gemma3(config: Config) -> DecoderConfig:
    rotary = rotary_by_layer(config, FULL, float(config.get("rope_theta") or 1e6))
    local = rotary_by_layer(config, SLIDING, float(config.get("rope_local_base_freq") or DEFAULT_THETA))
    every = config.get("sliding_window_pattern") or config.get("_sliding_window_pattern") or 6
    return _read_gemma(config, every, rotary=rotary, local_rotary=local, norm_heads=True)


def _write_gemma(config: DecoderConfig) -> Config:
    a = config.attention
    scale = config.head_size**-0.5 if a.scores.scale is None else a.scores.scale
    scalar = round(scale**-2, 6)
    found = _write(config) | _layer_types(config)
    found |= {
        "hidden_activation": config.block.activation,
        "query_pre_attn_scalar": int(scalar) if scalar == int(scalar) else scalar,
        "attn_logit_softcapping": a.scores.softcap,
        "final_logit_softcapping": config.ends.softcap,
        "attention_bias": a.qkv_bias,
    }
    if a.local_rotary is not None:
        kinds = {FULL: a.rotary, SLIDING: a.local_rotary}
        found["rope_parameters"] = {kind: rope_json(rotary) for kind, rotary in kinds.items() if rotary}
    return found


_OPT, _OPT_LAYER = "model.decoder.", "model.decoder.layers.{}."
OPT_WEIGHTS = {
    "embedding": same(_OPT + "embed_tokens.weight"),
    "positions": table_from_two(_OPT + "embed_positions.weight"),
    "final_norm.scale": same(_OPT + "final_layer_norm.weight"),
    "final_norm.bias": same(_OPT + "final_layer_norm.bias"),
    "project_in": same(_OPT + "project_in.weight"),
    "project_out": same(_OPT + "project_out.weight"),
    "head": same("lm_head.weight"),
    "attention_norm.scale": same(_OPT_LAYER + "self_attn_layer_norm.weight"),
    "attention_norm.bias": same(_OPT_LAYER + "self_attn_layer_norm.bias"),
    "mlp_norm.scale": same(_OPT_LAYER + "final_layer_norm.weight"),
    "mlp_norm.bias": same(_OPT_LAYER + "final_layer_norm.bias"),
    "attention.qkv": heads(_OPT_LAYER + "self_attn.{}_proj.weight"),
    "attention.qkv_bias": heads(_OPT_LAYER + "self_attn.{}_proj.bias"),
    "attention.out": same(_OPT_LAYER + "self_attn.out_proj.weight"),
    "attention.out_bias": same(_OPT_LAYER + "self_attn.out_proj.bias"),
    "mlp.gate_up": stacked(_OPT_LAYER + "fc1.weight"),
    "mlp.gate_up_bias": stacked(_OPT_LAYER + "fc1.bias"),
    "mlp.down": same(_OPT_LAYER + "fc2.weight"),
    "mlp.down_bias": same(_OPT_LAYER + "fc2.bias"),
}


def _read_opt(config: Config) -> DecoderConfig:
    c = config
    if not c.get("layer_norm_elementwise_affine", True):
        raise ValueError("expected OPT with layer_norm_elementwise_affine, got false")
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


def _write_opt(config: DecoderConfig) -> Config:
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


#: Settings that only some families have.
WINDOW = frozenset({"sliding_window"})
CAPPED = WINDOW | {"attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar"}
FAMILIES = (
    Family("llama", "LlamaForCausalLM", _read_llama, _write_llama, LLAMA_WEIGHTS),
    Family("mistral", "MistralForCausalLM", _read_mistral, _write_mistral, LLAMA_WEIGHTS, WINDOW),
    Family("qwen2", "Qwen2ForCausalLM", lambda c: _read_qwen(c, qkv_bias=True), _write_qwen, LLAMA_WEIGHTS, WINDOW),
    Family("qwen3", "Qwen3ForCausalLM", _read_qwen3, _write_qwen, LLAMA_WEIGHTS, WINDOW),
    Family("opt", "OPTForCausalLM", _read_opt, _write_opt, OPT_WEIGHTS),
    Family(
        "gemma2", "Gemma2ForCausalLM", lambda c: _read_gemma(GEMMA2_CAPS | c, 2), _write_gemma, GEMMA_WEIGHTS, CAPPED
    ),
    Family("gemma3_text", "Gemma3ForCausalLM", _read_gemma3, _write_gemma, GEMMA_WEIGHTS, CAPPED),
)


def family_of(config: Config) -> Family:
    """The family that a ``config.json`` belongs to.

    Raises:
        ValueError: none of them (names those that are supported), or two at once.
    """
    named, kind = config.get("architectures") or (), config.get("model_type")
    for family in FAMILIES:
        if family.architecture in named or (not named and kind == family.model_type):
            if kind not in (None, family.model_type):
                raise ValueError(
                    f"expected model_type {family.model_type} for {family.architecture}, got {kind}; the two read "
                    "config.json differently: correct the one that is wrong"
                )
            return family
    raise unknown_architecture(config, ", ".join(family.architecture for family in FAMILIES))


def family_for(config: DecoderConfig) -> Family:
    """The first family whose own configuration can say ours.

    Raises:
        ValueError: none can.
    """
    for family in FAMILIES:
        if family.carries(config):
            return family
    raise ValueError(
        f"expected a configuration that one of {[family.model_type for family in FAMILIES]} can say, got {config}"
    )
