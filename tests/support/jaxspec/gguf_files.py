"""GGUF files from folders of published checkpoints, as llama.cpp's converter makes them: for tests of the reader."""

import json

import gguf
import numpy as np
from safetensors.numpy import load_file

PAIRS, ONE_MORE = ("llama", "smollm3", "granite"), ("gemma", "gemma2", "gemma3")


def write(path, folder, architecture, kind="F32", **more):
    """Writes the model of a folder; ``kind`` is how matrices are kept, ``more`` replaces or adds metadata."""
    config, arrays = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    writer = gguf.GGUFWriter(path, architecture)
    for name, value in (sizes(config) | {"tokenizer.ggml.model": "none"} | more).items():
        put(
            writer,
            name if "." in name[:10] and name.startswith(("tokenizer", "split")) else f"{architecture}.{name}",
            value,
        )
    numbers = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    table = gguf.get_tensor_name_map(numbers[architecture], config["num_hidden_layers"])
    for name, array in arrays.items():
        if name == "lm_head.weight" and config["tie_word_embeddings"]:
            continue
        stem, _, last = name.rpartition(".")
        add(writer, f"{table.get_name(stem)}.{last}", converted(name, array, config, architecture), kind)
    return finish(writer)


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
    rope = config.get("rope_parameters") or {}
    full = rope.get("full_attention", rope)
    scaled = (
        {"rope.scaling.type": "linear", "rope.scaling.factor": full["factor"]}
        if full.get("rope_type") == "linear"
        else {}
    )
    return scaled | {
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
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    letter = name.split(".")[-2]
    if architecture in PAIRS and letter in heads:
        return array.reshape(heads[letter], 2, -1, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)
    return array + 1 if architecture in ONE_MORE and letter.endswith("norm") else array
