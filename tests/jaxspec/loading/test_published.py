"""Published files with settings beyond a plain checkpoint: read as transformers reads them, or refused."""

import json
import warnings
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxspec
from jaxspec.loading import load_huggingface, save_huggingface
from jaxspec.loading.families import FAMILIES, family_of
from jaxspec.loading.store import convert, load_model, open_model, save_model
from jaxspec.training import hidden_states

TOKENS = np.random.default_rng(0).integers(0, 31, (2, 20))
SIZES = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 64,
}
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@cache
def tied():
    return jaxspec.decoder(FAMILIES[0].read(SIZES | {"tie_word_embeddings": True}), jax.random.key(0))


@pytest.fixture
def saved(tmp_path):
    """A folder with a small Llama whose head is its embedding."""
    save_huggingface(tied(), tmp_path)
    return tmp_path


def about(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def arrays(folder, change):
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def other_head(weights):
    return weights | {HEAD: np.random.default_rng(1).normal(size=(32, 16)).astype(np.float32)}


def copied_head(weights):
    return weights | {HEAD: weights[EMBEDDING].copy()}


def only_head(weights):
    return {HEAD if name == EMBEDDING else name: array for name, array in weights.items()}


HEADS = {"another": other_head, "a copy": copied_head, "alone": only_head}


@partial(jax.jit, static_argnums=0)
def _logits(net, params, tokens):
    return net.logits(params, hidden_states(net, params, tokens)[-1])


def logits(folder):
    model = load_huggingface(folder)
    return np.moveaxis(np.asarray(_logits(model.network, model.params, jnp.asarray(TOKENS, jnp.int32))), 0, -1)


def theirs(folder):
    """Logits [B, T, V] of the folder by transformers."""
    import torch
    import transformers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        return model(torch.from_numpy(TOKENS)).logits.numpy()


@pytest.mark.parametrize("name", HEADS)
def test_a_tied_head_is_the_one_in_the_file(saved, name):
    arrays(saved, HEADS[name])
    loaded, file = load_huggingface(saved), load_file(saved / "model.safetensors")
    assert loaded.network.config.ends.tied == (name != "another")
    np.testing.assert_array_equal(loaded.params.get("head", loaded.params["embedding"]), file[HEAD])
    np.testing.assert_array_equal(loaded.params["embedding"], tied().params["embedding"])


@pytest.mark.peers
@pytest.mark.parametrize("name", HEADS)
def test_a_tied_head_is_that_of_transformers(saved, name):
    arrays(saved, HEADS[name])
    expected = theirs(saved)
    assert np.ptp(expected) > 1
    np.testing.assert_allclose(logits(saved), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", [(31, 16), (32, 15)])
def test_a_tied_head_of_another_shape_is_refused(saved, shape):
    arrays(saved, lambda weights: weights | {HEAD: np.zeros(shape, np.float32)})
    with pytest.raises(ValueError, match=r"lm_head.weight: expected shape \(32, 16\), got"):
        load_huggingface(saved)


QUANTIZED = {
    "gptq": ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "gptq, bits 4"),
    "awq": ({"quant_method": "awq", "bits": 4, "version": "gemm"}, "awq, bits 4"),
    "bitsandbytes": ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes, load_in_4bit True"),
    "fp8": ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8"),
    "online": ({"quant_method": "torchao", "quant_type": "int4_weight_only"}, "torchao, int4_weight_only"),
    "compressed": ({"quant_method": "compressed-tensors", "format": "float-quantized"}, "compressed-tensors, float"),
    "unnamed": ({"group_size": 64}, "a scheme without a name"),
}


@pytest.mark.parametrize("key", ["quantization_config", "compression_config", "quantization"])
@pytest.mark.parametrize("name", QUANTIZED)
def test_a_quantization_scheme_is_refused_by_name(saved, name, key):
    scheme, message = QUANTIZED[name]
    about(saved, **{key: scheme})
    with pytest.raises(ValueError, match=rf"not quantised, got {message}.*{key}.*dequantize"):
        load_huggingface(saved)


@pytest.mark.parametrize(
    ("file", "scheme", "message"),
    [
        ("quantize_config.json", {"bits": 4}, "bits 4"),
        ("hf_quant_config.json", {"quantization": {"quant_algo": "NVFP4"}}, "NVFP4"),
        ("adapter_config.json", {"peft_type": "LORA"}, "without an adapter.*merge_and_unload"),
    ],
)
def test_a_scheme_in_a_file_beside_it_is_refused(saved, file, scheme, message):
    (saved / file).write_text(json.dumps(scheme))
    with pytest.raises(ValueError, match=message):
        load_huggingface(saved)


@pytest.mark.parametrize("none", [None, {}])
def test_no_scheme_is_none(saved, none):
    about(saved, quantization_config=none)
    assert load_huggingface(saved).network is tied().network


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "int8", "uint8"])
def test_arrays_of_eight_bits_are_named(saved, dtype):
    name = "model.layers.0.mlp.down_proj.weight"
    arrays(saved, lambda weights: weights | {name: weights[name].astype(dtype)})
    with pytest.raises(ValueError, match=rf"expected {name} of .*BF16.*, got (F8|I8|U8).*quantised weights"):
        load_huggingface(saved)


def test_an_array_in_two_files_is_refused(saved):
    weights = load_file(saved / "model.safetensors")
    (saved / "model.safetensors").unlink()
    save_file(weights, saved / "a.safetensors")
    save_file({EMBEDDING: weights[EMBEDDING] + 1}, saved / "b.safetensors")
    with pytest.raises(ValueError, match=r"expected every array once, got model.embed_tokens.weight here and in a\."):
        load_huggingface(saved)


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "float64", "int32", "bool", "float33", 7])
def test_only_dtypes_that_hold_weights_are_taken(saved, dtype, tmp_path):
    save_model(tied(), tmp_path / "ours")
    message = f"float32, bfloat16 or float16, got .*{dtype}"
    for act in (
        partial(load_huggingface, saved, dtype=dtype),
        partial(open_model, tmp_path / "ours", dtype=dtype),
        partial(save_huggingface, tied(), tmp_path / "again", dtype=dtype),
    ):
        with pytest.raises(ValueError, match=message):
            act()


def test_numbers_beyond_float16_are_named(saved):
    arrays(saved, lambda weights: weights | {EMBEDDING: weights[EMBEDDING] * 0 + 1e5})
    with pytest.raises(ValueError, match="embed_tokens.weight: expected numbers within float16.*bfloat16"):
        load_huggingface(saved, dtype="float16")
    assert float(load_huggingface(saved, dtype="bfloat16").params["embedding"][0, 0]) > 65_504


LINEAR = {"rope_type": "linear", "factor": 4.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
PLAIN = {"rope_type": "default", "rope_theta": 500.0}
LAYERS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 7}
BY_LAYER = {"full_attention": PLAIN, "sliding_attention": {"rope_type": "default"}}
#: Rotary positions under two keys of one ``config.json``.
ROPES = {
    "replaced": ("llama", {"rope_parameters": PLAIN, "rope_scaling": LINEAR | {"rope_theta": 500.0}}),
    "theta beside": ("llama", {"rope_parameters": PLAIN, "rope_scaling": LINEAR, "rope_theta": 500.0}),
    "older word": ("llama", {"rope_scaling": {"type": "linear", "factor": 4.0}, "rope_theta": 500.0}),
    "factors differ": ("llama", {"rope_parameters": LINEAR, "rope_scaling": LINEAR | {"factor": 2.0}}),
    "no original length": ("llama", {"rope_parameters": LLAMA3, "rope_theta": 500.0}),
    "by layer": ("gemma3_text", LAYERS | {"rope_parameters": BY_LAYER, "rope_scaling": LINEAR}),
    "local base": ("gemma3_text", LAYERS | {"rope_parameters": BY_LAYER, "rope_local_base_freq": 50.0}),
    "older by layer": ("gemma3_text", LAYERS | {"rope_scaling": LINEAR, "rope_theta": 500.0}),
}


@pytest.mark.peers
@pytest.mark.parametrize("name", ROPES)
def test_rotary_positions_under_two_keys_are_those_of_transformers(name):
    import transformers

    kind, rope = ROPES[name]
    family = next(row for row in FAMILIES if row.model_type == kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = transformers.AutoConfig.for_model(kind, **json.loads(json.dumps(SIZES | rope)))
    resaved = json.loads(expected.to_json_string())
    assert "rope_scaling" not in resaved
    assert family.config_of(SIZES | rope) == family.config_of(SIZES | resaved)


@pytest.mark.peers
def test_logits_under_two_ropes_are_those_of_transformers(saved):
    about(saved, **ROPES["factors differ"][1])
    expected, plain = theirs(saved), logits(saved)
    np.testing.assert_allclose(plain, expected, atol=1e-4, rtol=0)
    about(saved, rope_scaling=None)
    assert np.max(np.abs(theirs(saved) - expected)) > 0.01


REFUSED = {
    "a lost theta": ({"rope_parameters": PLAIN, "rope_scaling": LINEAR}, "one rope_theta, got 500.0 and"),
    "positions by layer": ({"rope_parameters": BY_LAYER}, "the same for all layers, got full_attention, sliding"),
    "rope": ({"rope_parameters": {"rope_type": "ntk", "factor": 2.0}}, "got 'ntk'"),
    "older rope": ({"rope_parameters": None, "rope_scaling": {"type": "ntk", "factor": 2.0}}, "got 'ntk'"),
    "part of a head": ({"rope_parameters": PLAIN | {"partial_rotary_factor": 0.5}}, "partial_rotary_factor 0.5"),
    "quick_gelu": ({"hidden_act": "quick_gelu"}, "quick_gelu"),
    "a window": ({"sliding_window": 8}, "no sliding_window of llama, a family without it, got 8"),
    "sliding layers": (LAYERS | {"sliding_window": None}, "expected sliding_window .*layer_types of sliding_attention"),
    "other layers": ({"layer_types": ["full_attention", "chunked_attention"]}, "layer_types .*got chunked_attention"),
    "capped logits": ({"final_logit_softcapping": 30.0}, "no final_logit_softcapping of llama"),
    "both directions": ({"is_causal": False}, "no is_causal of llama"),
    "a scaled residual": ({"residual_multiplier": 0.2}, "no residual_multiplier of llama.*got 0.2"),
    "two families": ({"model_type": "mistral"}, "expected model_type llama for LlamaForCausalLM, got mistral"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_changes_results_and_is_not_read_is_refused(saved, name):
    changes, message = REFUSED[name]
    about(saved, **changes)
    with pytest.raises(ValueError, match=message):
        load_huggingface(saved)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("mistral", {"sliding_window": 8, "layer_types": ["full_attention"] * 2}, "of sliding_attention, got full"),
        ("mistral", {"sliding_window": None, "layer_types": ["sliding_attention"] * 2}, "of full_attention, got slid"),
        ("qwen2", {"use_sliding_window": False, "layer_types": ["sliding_attention"] * 2}, "expected sliding_window"),
        ("gemma2", {"sliding_window": None}, "expected sliding_window for the layers that slide, got null"),
        ("gemma2", {"rope_parameters": BY_LAYER}, "the same for all layers"),
        ("gemma3_text", {"rope_parameters": PLAIN}, "by type of layer .*got rope_theta, rope_type"),
    ],
)
def test_layers_that_a_family_cannot_describe_are_refused(kind, changes, message):
    family = next(row for row in FAMILIES if row.model_type == kind)
    with pytest.raises(ValueError, match=message):
        family.config_of(SIZES | changes)


@pytest.mark.peers
@pytest.mark.parametrize("family", FAMILIES, ids=lambda row: row.model_type)
def test_what_transformers_writes_by_default_is_taken(family):
    import transformers

    for diff in (True, False):
        config = json.loads(transformers.AutoConfig.for_model(family.model_type).to_json_string(use_diff=diff))
        assert family_of(config) is family
        assert family.config_of(config | {"hidden_size": 2304} if family.model_type == "qwen3" else config)


#: Architectures that are not supported, by their ``model_type``.
OTHERS = {
    "qwen3_next": "Qwen3NextForCausalLM",
    "qwen3_5": "Qwen3_5ForConditionalGeneration",
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
    "llava": "LlavaForConditionalGeneration",
    "phi": "PhiForCausalLM",
    "gemma3n": "Gemma3nForConditionalGeneration",
    "gemma4": "Gemma4ForConditionalGeneration",
    "cohere": "CohereForCausalLM",
    "glm4": "Glm4ForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM",
    "ministral3": "Ministral3ForCausalLM",
    "gptj": "GPTJForCausalLM",
    "falcon": "FalconForCausalLM",
    "stablelm": "StableLmForCausalLM",
    "starcoder2": "Starcoder2ForCausalLM",
    "arcee": "ArceeForCausalLM",
    "exaone4": "Exaone4ForCausalLM",
    "seed_oss": "SeedOssForCausalLM",
}
WHY = {
    "qwen3_next": "linear attention .*recurrent state",
    "qwen3_5": "linear attention .*recurrent state",
    "llava": "more than text",
    "qwen2_vl": "more than text",
}


@pytest.mark.peers
@pytest.mark.parametrize("kind", OTHERS)
def test_another_architecture_is_named_before_its_weights_are_opened(tmp_path, kind):
    import transformers

    if kind not in transformers.CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {kind}")
    config = json.loads(transformers.AutoConfig.for_model(kind).to_json_string(use_diff=False))
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": [OTHERS[kind]]}))
    with pytest.raises(
        ValueError, match=rf"supported architectures \(LlamaFor.*got {OTHERS[kind]}.*{WHY.get(kind, '')}"
    ):
        load_huggingface(tmp_path)


FIELDS = {
    "bos_token_id": 3,
    "eos_token_id": 4,
    "pad_token_id": 5,
    "max_position_embeddings": 77,
    "initializer_range": 0.5,
    "dtype": "bfloat16",
}
GENERATION = {"eos_token_id": [4, 6], "do_sample": True, "temperature": 0.7}


@pytest.fixture
def published(tmp_path):
    """A published folder with more settings than a network has."""
    folder = tmp_path / "published"
    save_huggingface(tied(), folder, dtype="bfloat16")
    about(folder, **FIELDS)
    (folder / "generation_config.json").write_text(json.dumps(GENERATION))
    return folder


def with_tokenizer(folder):
    from jaxspec.text.tokenizer import train_tokenizer

    train_tokenizer(["abc"]).save(str(folder / "tokenizer.json"))
    for name in ("vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json"):
        (folder / name).write_text("{}")


@pytest.mark.parametrize("prepare", [lambda folder: None, with_tokenizer], ids=["ids", "text"])
def test_a_round_trip_keeps_every_setting(published, tmp_path, prepare):
    prepare(published)
    assert convert(published, tmp_path / "ours") == "checkpoint"
    assert convert(tmp_path / "ours", tmp_path / "again") == "huggingface"
    read = lambda name: json.loads((tmp_path / "again" / name).read_text())  # noqa: E731
    assert {name: read("config.json")[name] for name in FIELDS} == FIELDS
    assert read("generation_config.json") == GENERATION
    assert {file.name for file in (tmp_path / "again").iterdir()} == {file.name for file in published.iterdir()}
    arrays = load_file(published / "model.safetensors"), load_file(tmp_path / "again" / "model.safetensors")
    for name, array in arrays[0].items():
        np.testing.assert_array_equal(arrays[1][name], array)


def test_by_hand_it_is_the_same(published, tmp_path):
    with_tokenizer(published)
    save_model(load_huggingface(published), tmp_path / "ours")
    save_huggingface(load_model(tmp_path / "ours"), tmp_path / "again")
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert {name: config[name] for name in FIELDS} == FIELDS | {"dtype": "float32"}


@pytest.mark.parametrize("stop", [[7, 8], []])
def test_tokens_that_end_a_text_are_the_model_s_own(published, tmp_path, stop):
    with_tokenizer(published)
    model = load_huggingface(published)
    assert model.text.stop == (4, 6)
    save_model(model._replace(text=model.text.stopping(stop)), tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "again")
    assert load_huggingface(tmp_path / "again").text.stop == tuple(stop)


@pytest.mark.peers
def test_transformers_reads_the_same_settings(published, tmp_path):
    from transformers import AutoConfig, GenerationConfig

    convert(published, tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "again")
    for kind in (AutoConfig, GenerationConfig):
        one, other = (kind.from_pretrained(folder).to_dict() for folder in (published, tmp_path / "again"))
        assert {**one, "_name_or_path": ""} == {**other, "_name_or_path": ""}
