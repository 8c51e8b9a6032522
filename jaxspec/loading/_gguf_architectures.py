"""The architectures of GGUF files that are read, a row each: what the converter changes, and settings of their own."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from jaxspec.loading._gguf_file import GgufFile
from jaxspec.loading._rope import Config


@dataclass(frozen=True)
class Architecture:
    """How one architecture is converted.

    Attributes:
        published: class name in ``config.json``.
        special: further keys of ``config.json``.
        pairs: whether rows of queries and keys are in pairs instead of halves.
        one_more: whether 1 was added to the scales of norms.
        transposed: whether matrices were transposed.
        experts: class name of models with experts, if the architecture has these too.
    """

    published: str
    special: Callable[[GgufFile, Config], Config] = field(default=lambda file, config: {})
    pairs: bool = False
    one_more: bool = False
    transposed: bool = False
    experts: str | None = None


def _window(file: GgufFile, config: Config) -> Config:
    return {"sliding_window": window} if (window := file.get("attention.sliding_window")) else {}


def _qwen(file: GgufFile, config: Config) -> Config:
    return {"use_sliding_window": False}


def _qwen2_moe(file: GgufFile, config: Config) -> Config:
    sizes = {"shared_expert_intermediate_size": file.get("expert_shared_feed_forward_length")}
    return _qwen(file, config) | _experts(file) | sizes | {"norm_topk_prob": False}


def _qwen3_moe(file: GgufFile, config: Config) -> Config:
    return _qwen(file, config) | _experts(file) | {"norm_topk_prob": True}


def _llama(file: GgufFile, config: Config) -> Config:
    """Return Mixtral's keys for a Llama with experts."""
    count = file.get("expert_count", 0)
    return {"num_local_experts": count, "num_experts_per_tok": file.get("expert_used_count")} if count else {}


def _experts(file: GgufFile) -> Config:
    return {
        "num_experts": file.get("expert_count"),
        "num_experts_per_tok": file.get("expert_used_count"),
        "moe_intermediate_size": file.get("expert_feed_forward_length"),
    }


def _gpt2(file: GgufFile, config: Config) -> Config:
    return {
        "n_embd": config["hidden_size"],
        "n_layer": config["num_hidden_layers"],
        "n_head": config["num_attention_heads"],
        "n_inner": config["intermediate_size"],
        "n_positions": config["max_position_embeddings"],
        "layer_norm_epsilon": decimal(file.get("attention.layer_norm_epsilon", 1e-5)),
        "activation_function": "gelu_new",
    }


def _smollm3(file: GgufFile, config: Config) -> Config:
    return {"no_rope_layer_interval": 4, "use_sliding_window": False}


def _granite(file: GgufFile, config: Config) -> Config:
    names = {"attention_multiplier": "attention.scale", "embedding_multiplier": "embedding_scale"}
    names |= {"residual_multiplier": "residual_scale", "logits_scaling": "logit_scale"}
    return {published: decimal(file.get(name, 1.0)) for published, name in names.items()}


def _gemma1(file: GgufFile, config: Config) -> Config:
    return {"hidden_activation": "gelu_pytorch_tanh"}


def _gemma(deepest: int) -> Callable[[GgufFile, Config], Config]:
    """Return Gemma's keys; queries of its largest model, with so many layers, are scaled by width over heads."""

    def special(file: GgufFile, config: Config) -> Config:
        largest = config["num_hidden_layers"] == deepest
        by_width = config["hidden_size"] // config["num_attention_heads"]
        caps = {
            "attn_logit_softcapping": "attn_logit_softcapping",
            "final_logit_softcapping": "final_logit_softcapping",
        }
        return {
            "query_pre_attn_scalar": by_width if largest else config["head_dim"],
            "hidden_activation": "gelu_pytorch_tanh",
            **{name: file.get(key) for name, key in caps.items()},
            **_window(file, config),
        }

    return special


def _gemma3(file: GgufFile, config: Config) -> Config:
    scaling = config.pop("rope_scaling", None) or {"rope_type": "default"}
    local = float(file.get("rope.freq_base_swa", 10_000.0))
    return _gemma(62)(file, config) | {
        "rope_parameters": {
            "full_attention": {"rope_theta": float(file.get("rope.freq_base", 1e6)), **scaling},
            "sliding_attention": {"rope_theta": local, "rope_type": "default"},
        },
        "sliding_window_pattern": 6,
    }


ARCHITECTURES = {
    "llama": Architecture("LlamaForCausalLM", _llama, pairs=True, experts="MixtralForCausalLM"),
    "qwen2": Architecture("Qwen2ForCausalLM", _qwen),
    "qwen3": Architecture("Qwen3ForCausalLM", _qwen),
    "qwen2moe": Architecture("Qwen2MoeForCausalLM", _qwen2_moe, experts="Qwen2MoeForCausalLM"),
    "qwen3moe": Architecture("Qwen3MoeForCausalLM", _qwen3_moe, experts="Qwen3MoeForCausalLM"),
    "gpt2": Architecture("GPT2LMHeadModel", _gpt2, transposed=True),
    "phi3": Architecture("Phi3ForCausalLM", _window),
    "smollm3": Architecture("SmolLM3ForCausalLM", _smollm3, pairs=True),
    "granite": Architecture("GraniteForCausalLM", _granite, pairs=True),
    "gemma": Architecture("GemmaForCausalLM", _gemma1, one_more=True),
    "gemma2": Architecture("Gemma2ForCausalLM", _gemma(46), one_more=True),
    "gemma3": Architecture("Gemma3ForCausalLM", _gemma3, one_more=True),
}


def architecture_of(file: GgufFile) -> Architecture:
    """Return the row of a file.

    Raises:
        ValueError: an architecture without one, or a mixture of experts of an architecture that is read without.
    """
    name = file.architecture
    if name not in ARCHITECTURES:
        raise ValueError(f"{file.path}: expected one of the architectures {', '.join(ARCHITECTURES)}, got {name}")
    row, experts = ARCHITECTURES[name], file.get("expert_count", 0)
    if experts and row.experts is None:
        raise ValueError(f"{file.path}: expected a dense model, got one of {experts} experts")
    return replace(row, published=row.experts) if experts and row.experts else row


def decimal(value: float) -> float:
    """Return the shortest decimal of a number that the file keeps as float32."""
    return float(str(np.float32(value)))
