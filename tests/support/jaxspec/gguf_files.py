"""GGUF files from folders of published checkpoints, as llama.cpp's converter makes them: for tests of the reader."""

import json

import gguf
import numpy as np
from safetensors.numpy import load_file

#: Of our names: those of files that have another one.
NAMES = {"mixtral": "llama"}
PAIRS, ONE_MORE = ("llama", "smollm3", "granite"), ("gemma", "gemma2", "gemma3")


def write(path, folder, architecture, kind="F32", **more):
    """Writes the model of a folder; ``kind`` is how matrices are kept, ``more`` replaces or adds metadata."""
    config, arrays = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    architecture = NAMES.get(architecture, architecture)
    writer = gguf.GGUFWriter(path, architecture)
    for name, value in (sizes(config) | {"tokenizer.ggml.model": "none"} | more).items():
        put(
            writer,
            name if "." in name[:10] and name.startswith(("tokenizer", "split")) else f"{architecture}.{name}",
            value,
        )
    numbers = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    table = gguf.get_tensor_name_map(numbers[architecture], config.get("num_hidden_layers", config.get("n_layer")))
    for name, array in stacked(arrays).items():
        if name == "lm_head.weight" and config["tie_word_embeddings"]:
            continue
        stem, _, last = name.rpartition(".")
        add(writer, f"{table.get_name(stem)}.{last}", converted(name, array, config, architecture), kind)
    return finish(writer)


def stacked(arrays):
    """Those of all experts in one array."""
    joined = {}
    for name, array in arrays.items():
        before, experts, after = name.partition(".experts.")
        if experts:
            number, _, last = after.partition(".")
            joined.setdefault(f"{before}.experts.{last}", {})[int(number)] = array
        else:
            joined[name] = array
    return {
        name: np.stack([array[i] for i in sorted(array)]) if isinstance(array, dict) else array
        for name, array in joined.items()
    }


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add(writer, name, array, kind="F32"):
    quantised = gguf.GGMLQuantizationType[kind if array.ndim > 1 else "F32"]
    data = gguf.quantize(np.ascontiguousarray(array, np.float32), quantised)
    writer.add_tensor(name, data, raw_dtype=None if quantised.name == "F32" else quantised)


def put(writer, name, value):
    """Adds a value as the kind that llama.cpp would."""
    if value is None:
        return
    if isinstance(value, list):
        writer.add_array(name, value)
    elif isinstance(value, bool):
        writer.add_bool(name, value)
    elif isinstance(value, int):
        writer.add_uint32(name, value)
    elif isinstance(value, float):
        writer.add_float32(name, value)
    else:
        writer.add_string(name, value)


def sizes(config):
    """Metadata of a ``config.json``."""
    if config["model_type"] == "gpt2":
        return {
            "block_count": config["n_layer"],
            "context_length": config["n_positions"],
            "embedding_length": config["n_embd"],
            "feed_forward_length": config["n_inner"],
            "attention.head_count": config["n_head"],
            "attention.layer_norm_epsilon": config["layer_norm_epsilon"],
        }
    rope = config.get("rope_parameters") or {}
    full = rope.get("full_attention", rope)
    scaled = (
        {"rope.scaling.type": "linear", "rope.scaling.factor": full["factor"]}
        if full.get("rope_type") == "linear"
        else {}
    )
    return scaled | {
        "expert_count": config.get("num_experts", config.get("num_local_experts")),
        "expert_used_count": config.get("num_experts_per_tok"),
        "expert_feed_forward_length": config.get("moe_intermediate_size"),
        "expert_shared_feed_forward_length": config.get("shared_expert_intermediate_size"),
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.key_length": config["head_dim"],
        "attention.value_length": config["head_dim"],
        "attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "attention.sliding_window": config.get("sliding_window"),
        "attn_logit_softcapping": config.get("attn_logit_softcapping"),
        "final_logit_softcapping": config.get("final_logit_softcapping"),
        "rope.dimension_count": int(config["head_dim"] * rope.get("partial_rotary_factor", 1)),
        "attention.scale": config.get("attention_multiplier"),
        "embedding_scale": config.get("embedding_multiplier"),
        "residual_scale": config.get("residual_multiplier"),
        "logit_scale": config.get("logits_scaling"),
        "rope.freq_base": float(full["rope_theta"]),
    }


def converted(name, array, config, architecture):
    """An array as llama.cpp keeps it."""
    letter = name.split(".")[-2]
    if letter.startswith("c_") or letter == "shared_expert_gate":
        return array.T if array.ndim > 1 and len(array) > 1 else array.reshape(-1)
    heads = {"q_proj": config.get("num_attention_heads"), "k_proj": config.get("num_key_value_heads")}
    if architecture in PAIRS and letter in heads:
        return array.reshape(heads[letter], 2, -1, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)
    return array + 1 if architecture in ONE_MORE and letter.endswith("norm") else array
