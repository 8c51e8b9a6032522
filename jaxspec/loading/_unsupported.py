"""Settings of published checkpoints that are not implemented here: rejected by name, before weights are read."""

from pathlib import Path
from typing import Any

from jaxspec.core.files import read_json
from jaxspec.loading._rope import Config

#: Keys of ``config.json`` that describe quantised weights.
QUANTIZED_KEYS = ("quantization_config", "compression_config", "quantization")
#: Files next to it that describe them.
QUANTIZED_FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json", "quanto_qmap.json")
#: File of an adapter, whose weights would have to be added.
ADAPTER = "adapter_config.json"
OFF: tuple[Any, ...] = (None, False, "", [], {})
ONE: tuple[Any, ...] = (None, 1)
#: Keys of ``config.json`` that change results but no array of weights, and their values that change nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "alibi": OFF,
    "attention_chunk_size": OFF,
    "attention_multiplier": ONE,
    "attn_logit_softcapping": OFF,
    "attn_temperature_tuning": OFF,
    "clip_qkv": OFF,
    "embedding_multiplier": ONE,
    "final_logit_softcapping": OFF,
    "is_causal": (None, True),
    "logit_scale": ONE,
    "logits_scaling": ONE,
    "no_rope_layers": OFF,
    "per_layer_config": OFF,
    "query_pre_attn_scalar": OFF,
    "residual_multiplier": ONE,
    "scale_depth": OFF,
    "scale_emb": ONE,
    "use_bidirectional_attention": OFF,
    "use_mrope": OFF,
    "use_parallel_residual": OFF,
    "use_qk_norm": OFF,
}
#: How to get a checkpoint that is not quantised.
DEQUANTIZE = (
    "use the bfloat16 checkpoint that it was made from, or write one with transformers: "
    "from_pretrained(...).dequantize().save_pretrained(...)"
)
SLIDING, FULL = "sliding_attention", "full_attention"


def check_plain(folder: Path, config: Config) -> None:
    """Reject quantised weights, except those of gpt-oss, and adapters: ignoring either gives other logits.

    Raises:
        ValueError: ``config.json`` or a file next to it names one.
    """
    if (folder / ADAPTER).is_file():
        raise ValueError(
            f"{folder}: expected weights without an adapter, got {ADAPTER}; merge it with peft: "
            "merge_and_unload().save_pretrained(...)"
        )
    schemes = {key: config[key] for key in QUANTIZED_KEYS if config.get(key) and not is_mxfp4(config)}
    schemes |= {name: read_json(folder / name) for name in QUANTIZED_FILES if (folder / name).is_file()}
    for where, scheme in schemes.items():
        raise ValueError(
            f"{folder}: expected weights that are not quantised, got {_scheme(scheme)} ({where}); {DEQUANTIZE}. "
            "For eight bits pass int8=True"
        )


def is_mxfp4(config: Config) -> bool:
    """Return whether the experts are those of gpt-oss in MXFP4, which are dequantised while they are read."""
    scheme = config.get("quantization_config")
    named = isinstance(scheme, dict) and scheme.get("quant_method") == "mxfp4"
    return named and config.get("model_type") == "gpt_oss"


def _scheme(value: Any) -> str:
    """Return the name of a quantisation scheme and its bits."""
    if not isinstance(value, dict):
        return f"{value!r:.80}"
    inner = value.get("quantization")
    about = inner if isinstance(inner, dict) else value
    names = "quant_method", "quant_algo", "quant_type", "format", "fmt"
    bits = "bits", "w_bit", "load_in_4bit", "load_in_8bit"
    named = [str(about[name]) for name in names if about.get(name)]
    sizes = [f"{name} {about[name]}" for name in bits if about.get(name)]
    return ", ".join([*named, *sizes]) or "a scheme without a name"


def check_unread(config: Config, reads: frozenset[str]) -> None:
    """Reject a setting that changes results and that the family does not read.

    Args:
        config: ``config.json``.
        reads: keys of ``NEUTRAL``, and perhaps ``sliding_window``, that the family reads.

    Raises:
        ValueError: such a key, with a value that changes results.
    """
    active = {key: config.get(key) for key, neutral in NEUTRAL.items() if config.get(key) not in neutral}
    if _slides(config):
        active["sliding_window"] = config["sliding_window"]
    for key in sorted(set(active) - reads):
        raise ValueError(
            f"expected no {key} of {config.get('model_type')}, a family without it, got {active[key]!r:.80}; "
            "check that architectures and model_type name the model's own family"
        )


def _slides(config: Config) -> bool:
    """Return whether a sliding window shorter than the longest sequence is used."""
    window, most = config.get("sliding_window"), config.get("max_position_embeddings")
    return bool(window and config.get("use_sliding_window", True) and not (most and window >= most))


def check_layer_types(config: Config, window: Any, kinds: tuple[str, ...] = (FULL, SLIDING)) -> None:
    """Reject types of attention that a family does not have, and sliding layers without a window.

    Raises:
        ValueError: ``layer_types`` names another kind, or a sliding layer where ``window`` is None.
    """
    types = config.get("layer_types") or ()
    if other := sorted({str(kind) for kind in types} - set(kinds)):
        raise ValueError(f"expected layer_types of {', '.join(kinds)}, got {', '.join(other)}")
    if window is None and SLIDING in types:
        raise ValueError(
            f"expected sliding_window (and use_sliding_window, where there is one) for layer_types of {SLIDING}, "
            "got none; write full_attention or set the window"
        )


def unknown_architecture(config: Config, known: str) -> ValueError:
    """Return the error for an architecture that is not supported."""
    named = config.get("architectures") or ()
    got = ", ".join(map(str, named)) if isinstance(named, list | tuple) and named else str(config.get("model_type"))
    message = f"expected one of the supported architectures ({known}), got {got}"
    if any(map(_is_linear, (config, config.get("text_config") or {}))):
        return ValueError(
            f"{message}, whose layers of linear attention keep a recurrent state instead of a row of keys and values "
            "for every token; such a state cannot go back to before a rejected window, so they are not supported"
        )
    if isinstance(config.get("text_config"), dict) or "vision_config" in config or "audio_config" in config:
        return ValueError(f"{message}, which reads more than text; text-only models are supported")
    return ValueError(message)


def _is_linear(config: Any) -> bool:
    """Return whether some layers have linear attention, as those of Qwen3-Next and Qwen3.5."""
    if not isinstance(config, dict):
        return False
    types = config.get("layer_types")
    named = isinstance(types, list) and "linear_attention" in types
    return named or "linear_conv_kernel_dim" in config
