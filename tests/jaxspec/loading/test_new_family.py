"""A new family is one row of ``families.FAMILIES``: here Llama with queries, keys and values in one published array."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxspec import autoregressive, decoder, generate
from jaxspec.loading import families, load_huggingface, save_huggingface
from jaxspec.loading._llama import LAYER, LLAMA_WEIGHTS, read_llama, write_llama
from jaxspec.loading.families import Family
from jaxspec.loading.rules import fused, heads

SEPARATE, FUSED = heads(LAYER + "self_attn.{}_proj.weight"), LAYER + "self_attn.qkv_proj.weight"
SIZES = {
    "vocab_size": 11,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
}


WEIGHTS = LLAMA_WEIGHTS | {"attention.qkv": fused(FUSED, SEPARATE)}
ROW = Family("fused", "FusedForCausalLM", read_llama, write_llama, WEIGHTS)


@pytest.fixture
def model():
    return decoder(read_llama(SIZES), jax.random.key(0))


@pytest.fixture
def published(model, tmp_path):
    """The files of such a model, made from Llama's by hand."""
    save_huggingface(model, tmp_path)
    arrays, file = load_file(tmp_path / "model.safetensors"), tmp_path / "config.json"
    for layer in range(SIZES["num_hidden_layers"]):
        parts = [arrays.pop(name.format(layer)) for name in SEPARATE.names]
        arrays[FUSED.format(layer)] = np.concatenate(parts)
    save_file(arrays, tmp_path / "model.safetensors")
    names = {"model_type": "fused", "architectures": ["FusedForCausalLM"]}
    file.write_text(json.dumps(json.loads(file.read_text()) | names))
    return tmp_path


def test_without_the_row_the_family_is_rejected_by_name(published):
    with pytest.raises(ValueError, match="expected one of the supported architectures .*got FusedForCausalLM"):
        load_huggingface(published)


def test_one_row_reads_decodes_and_writes_a_new_family(model, published, tmp_path, monkeypatch):
    monkeypatch.setattr(families, "FAMILIES", (ROW, *families.FAMILIES))
    loaded = load_huggingface(published)
    assert loaded.network is model.network
    jax.tree.map(np.testing.assert_array_equal, loaded.params, model.params)
    texts = [generate(autoregressive(each), [[1, 2, 3]], 5).tokens for each in (model, loaded)]
    assert texts[0] == texts[1]
    save_huggingface(loaded, tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["model_type"] == "fused"
    first, again = (load_file(folder / "model.safetensors") for folder in (published, tmp_path / "again"))
    jax.tree.map(np.testing.assert_array_equal, first, again)
