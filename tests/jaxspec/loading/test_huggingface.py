"""Checkpoints that we write: they read back, over meshes too, and errors name what is wrong."""

import json
import weakref
from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import jaxspec
from jaxspec import Model
from jaxspec.loading import huggingface, load_huggingface, parameters, save_huggingface
from jaxspec.loading.families import FAMILIES, family_for
from jaxspec.loading.store import convert, open_model
from jaxspec.models._decoder import init_params, network
from jaxspec.models.quantize import Int8
from jaxspec.training import hidden_states
from tests.support.jaxspec import models

TOKENS = np.random.default_rng(0).integers(0, 31, (2, 9))
SIZES = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
OPT = {
    "vocab_size": 32,
    "hidden_size": 16,
    "ffn_dim": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 24,
}
GEMMA = {"head_dim": 4, "query_pre_attn_scalar": 6, "sliding_window": 5}
GEMMA3_ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "truncate": False}
LONG = {"rope_type": "longrope", "factor": 2.0, "short_factor": [1.0, 2.0], "original_max_position_embeddings": 16}
GPT2 = {"vocab_size": 32, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
OLMO3_ROPE = {"full_attention": YARN | {"rope_theta": 100.0}, "sliding_attention": GEMMA3_ROPE["sliding_attention"]}
NEOX = {"rotary_pct": 0.5, "hidden_size": 32, "rotary_emb_base": 1e3, "use_parallel_residual": False}
WHOLE = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0}
OSS = {"head_dim": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 5, "swiglu_limit": 2.0}
SLIDING = {"use_sliding_window": True, "sliding_window": 5}
#: ``config.json`` of every family, as newer and as older versions of transformers write it.
CONFIGS = {
    "llama": ("llama", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5} | LLAMA3}),
    "llama-older": ("llama", {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}}),
    "llama-oldest": ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "llama-yarn": ("llama", {"rope_theta": 100.0, "rope_scaling": YARN}),
    "llama-dynamic": ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "max_position_embeddings": 99}),
    "phi3": ("phi3", {"head_dim": 8, "partial_rotary_factor": 0.5}),
    "phi3-long": ("phi3", {"head_dim": 8, "partial_rotary_factor": 0.5, "rope_scaling": LONG}),
    "smollm3": ("smollm3", {"no_rope_layers": [1, 0]}),
    "granite": ("granite", {"embedding_multiplier": 12.0, "residual_multiplier": 0.22, "logits_scaling": 8.0}),
    "gemma": ("gemma", {"hidden_act": "gelu_pytorch_tanh", "head_dim": 6}),
    "gpt2": ("gpt2", GPT2),
    "mistral": ("mistral", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}, "sliding_window": 5}),
    "mistral-older": ("mistral", {"rope_theta": 1e4, "head_dim": 6}),
    "qwen2": ("qwen2", {"use_sliding_window": True, "sliding_window": 5, "layer_types": ["full_attention"] * 2}),
    "qwen2-older": ("qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    "qwen3": ("qwen3", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "head_dim": 6}),
    "qwen3-older": ("qwen3", {"rope_theta": 1e6, "rope_scaling": None, "attention_bias": True}),
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}),
    "qwen2-moe": ("qwen2_moe", EXPERTS | {"mlp_only_layers": [1], "shared_expert_intermediate_size": 16}),
    "qwen2-moe-sliding": ("qwen2_moe", EXPERTS | {"shared_expert_intermediate_size": 16} | SLIDING),
    "qwen3-moe": ("qwen3_moe", EXPERTS | {"norm_topk_prob": True, "head_dim": 6}),
    "qwen3-moe-sliding": ("qwen3_moe", EXPERTS | SLIDING | {"attention_bias": True}),
    "olmo2": ("olmo2", {"attention_bias": True}),
    "olmo3": ("olmo3", {"sliding_window": 5, "rope_parameters": OLMO3_ROPE}),
    "olmo3-older": ("olmo3", {"rope_theta": 5e5, "rope_scaling": YARN}),
    "gpt-neox": ("gpt_neox", {"hidden_act": "gelu", "attention_bias": False, "rope_parameters": WHOLE}),
    "gpt-neox-older": ("gpt_neox", NEOX),
    "gpt-oss": ("gpt_oss", OSS | {"rope_parameters": YARN | {"rope_theta": 150.0}}),
    "gpt-oss-older": ("gpt_oss", OSS | {"rope_theta": 150.0, "rope_scaling": YARN, "attention_bias": False}),
    "opt": ("opt", OPT),
    "opt-post-norm": ("opt", OPT | {"do_layer_norm_before": False, "word_embed_proj_dim": 8}),
    "gemma2": ("gemma2", GEMMA | {"layer_types": ["sliding_attention", "full_attention"]}),
    "gemma2-older": ("gemma2", GEMMA | {"hidden_act": "gelu", "attn_logit_softcapping": None}),
    "gemma3": ("gemma3_text", GEMMA | {"rope_parameters": GEMMA3_ROPE, "sliding_window_pattern": 2}),
    "gemma3-older": (
        "gemma3_text",
        GEMMA | {"rope_theta": 1e6, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    ),
}


@cache
def made(name):
    """A random model of a family's configuration, with random norms and biases too."""
    family = next(row for row in FAMILIES if row.model_type == CONFIGS[name][0])
    config = family.read(CONFIGS[name][1] if family.model_type in ("opt", "gpt2") else SIZES | CONFIGS[name][1])
    leaves, tree = jax.tree.flatten(init_params(config, jax.random.key(0)))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    change = lambda leaf, key: leaf + jnp.round(jax.random.uniform(key, leaf.shape, maxval=0.5) * 64) / 64  # noqa: E731
    changed = [change(leaf, key) if leaf.ndim == 1 else leaf for leaf, key in zip(leaves, keys, strict=True)]
    return Model(network(config), jax.tree.unflatten(tree, changed))


@pytest.fixture
def saved(tmp_path):
    """A folder with a small Llama, which tests damage."""
    save_huggingface(made("llama"), tmp_path)
    return tmp_path


@partial(jax.jit, static_argnums=0)
def _logits(net, params, tokens):
    return net.logits(params, hidden_states(net, params, tokens)[-1])


def logits(model):
    return np.asarray(_logits(model.network, model.params, jnp.asarray(TOKENS, jnp.int32)))


def assert_same(params, expected):
    assert jax.tree.structure(params) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, params, expected)


def about(folder, **changes):
    """``config.json`` after changes to it."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return json.loads(file.read_text())


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_written_reads_back_to_the_bit(name, tmp_path):
    model = made(name)
    save_huggingface(model, tmp_path)
    loaded = load_huggingface(tmp_path)
    assert loaded.network is model.network
    assert_same(loaded.params, model.params)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_is_written_as_the_family_that_it_came_from(name):
    if name != "mistral-older":
        assert family_for(made(name).network.config).model_type == CONFIGS[name][0]


def test_older_and_newer_files_give_the_same_model():
    older = ("gemma3_text", {"rope_local_base_freq": 1e4, "rope_scaling": {"rope_type": "linear", "factor": 8.0}})
    read = next(row for row in FAMILIES if row.model_type == older[0]).read
    types = {"layer_types": ["sliding_attention", "full_attention"]}
    assert read(SIZES | GEMMA | types | older[1]) == read(SIZES | CONFIGS["gemma3"][1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_scaling": {"type": "ntk", "factor": 2.0}}, "'ntk'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
    ],
)
def test_rotary_positions_of_another_kind_are_refused(saved, changes, message):
    about(saved, rope_parameters=None, **changes)
    with pytest.raises(ValueError, match=message):
        load_huggingface(saved)


def test_many_files_have_an_index(tmp_path):
    model = made("gemma2")
    save_huggingface(model, tmp_path, shard_bytes=3000)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) > 3
    assert files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    where = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    for file in files:
        with safe_open(file, "numpy") as part:
            assert {name for name in where if where[name] == file.name} == set(part.keys())
    assert_same(load_huggingface(tmp_path).params, model.params)


@pytest.mark.parametrize("sizes", [(3000, 10**9), (10**9, 3000), (2000, 5000)])
def test_writing_again_leaves_nothing_of_what_was_there(tmp_path, sizes):
    for name, size in zip(("llama", "qwen2"), sizes, strict=True):
        save_huggingface(made(name), tmp_path, shard_bytes=size)
    assert_same(load_huggingface(tmp_path).params, made("qwen2").params)


def test_short_floats_on_disk(tmp_path):
    save_huggingface(made("llama"), tmp_path, dtype=jnp.bfloat16)
    arrays = load_file(tmp_path / "model.safetensors")
    assert arrays["model.embed_tokens.weight"].dtype == jnp.bfloat16
    assert about(tmp_path)["dtype"] == "bfloat16"
    params = load_huggingface(tmp_path).params
    assert params["embedding"].dtype == jnp.float32
    expected = made("llama").params["embedding"].astype(jnp.bfloat16).astype(jnp.float32)
    np.testing.assert_array_equal(params["embedding"], expected)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, "float16"])
def test_norms_stay_wide(saved, dtype):
    params = load_huggingface(saved, dtype=dtype).params
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        norm = "norm" in jax.tree_util.keystr(path)
        assert leaf.dtype == (jnp.float32 if norm else jnp.dtype(dtype)), path


def shares(array):
    """The largest share of the parameters on one device."""
    return max(shard.data.size for shard in array.addressable_shards) / array.size


@pytest.mark.parametrize("size", [2, 4, 8])
@pytest.mark.parametrize("int8", [False, True], ids=["float32", "int8"])
def test_every_device_of_a_mesh_gets_its_share(saved, size, int8):
    mesh = jaxspec.mesh_of(jax.devices()[:size])
    model = load_huggingface(saved, mesh, int8=int8)
    layer = model.params["layers"][0]
    for leaf in jax.tree.leaves([layer["attention"], layer["mlp"], model.params["embedding"], model.params["head"]]):
        assert shares(leaf) == (1 / size if leaf.ndim > 1 else 1), "a scale of what all devices sum is needed by all"
    assert model.network.config.num_kv_heads == max(2, size), "key-value heads fewer than the devices are repeated"
    np.testing.assert_allclose(logits(model), logits(load_huggingface(saved, int8=int8)), atol=1e-4, rtol=0)


ON_MESHES = ["mixtral", "qwen2-moe", "qwen3-moe", "olmo2", "olmo3", "gpt-neox", "gpt-oss"]


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", ON_MESHES)
def test_a_family_on_a_mesh_decodes_the_same_tokens(name, size, tmp_path):
    """Prompts longer than a chunk too, and in windows."""
    save_huggingface(made(name), tmp_path)
    mesh = jaxspec.mesh_of(jax.devices()[:size])
    alone, spread = load_huggingface(tmp_path), load_huggingface(tmp_path, mesh)
    np.testing.assert_allclose(logits(spread), logits(alone), atol=1e-4, rtol=0)
    prompts = [np.random.default_rng(2).integers(0, 31, length).tolist() for length in (300, 5)]
    expected = jaxspec.generate(jaxspec.autoregressive(alone), prompts, 12).tokens
    method = jaxspec.speculative(spread, alone, window=3, mesh=mesh)
    assert jaxspec.generate(method, prompts, 12).tokens == expected


@pytest.mark.parametrize("int8", [False, True], ids=["floats", "int8"])
def test_experts_are_divided_next_to_a_batch(int8, tmp_path):
    save_huggingface(made("qwen2-moe"), tmp_path)
    mesh = jaxspec.mesh_of(jax.devices()[:4], data=2)
    alone, spread = load_huggingface(tmp_path, int8=int8), load_huggingface(tmp_path, mesh, int8=int8)
    mlp = spread.params["layers"][0]["mlp"]
    for leaf in jax.tree.leaves([mlp["expert_gate_up"], mlp["expert_down"]]):
        assert shares(leaf) == 0.5
    tokens = jaxspec.generate(jaxspec.autoregressive(spread, mesh), TOKENS.tolist(), 12).tokens
    assert tokens == jaxspec.generate(jaxspec.autoregressive(alone), TOKENS.tolist(), 12).tokens


def test_repeated_heads_decode_the_same_tokens(saved):
    mesh = jaxspec.mesh_of(jax.devices()[:8], data=2)
    alone, spread = load_huggingface(saved), load_huggingface(saved, mesh)
    tokens = jaxspec.generate(jaxspec.autoregressive(spread, mesh), TOKENS.tolist(), 6).tokens
    assert tokens == jaxspec.generate(jaxspec.autoregressive(alone), TOKENS.tolist(), 6).tokens


def test_repeated_heads_are_written_as_they_are(saved, tmp_path):
    model = load_huggingface(saved, jaxspec.mesh_of(jax.devices()[:8]))
    save_huggingface(model, tmp_path / "again")
    np.testing.assert_allclose(logits(load_huggingface(tmp_path / "again")), logits(made("llama")), atol=1e-4, rtol=0)


def test_eight_bits_take_a_scale_for_every_output_feature(saved):
    loaded, whole = load_huggingface(saved, int8=True), made("llama")
    pairs = zip(loaded.params["layers"], whole.params["layers"], strict=True)
    for part, leaf in ((new["mlp"]["down"], old["mlp"]["down"]) for new, old in pairs):
        assert isinstance(part, Int8)
        assert part.values.dtype == jnp.int8
        assert part.scale.shape == leaf.shape[:-1]
        error = np.abs(np.asarray(part.values, np.float32) * np.asarray(part.scale)[..., None] - np.asarray(leaf))
        assert np.all(error <= np.asarray(part.scale)[..., None] * 0.5001)
    np.testing.assert_array_equal(loaded.params["embedding"], whole.params["embedding"])
    assert 0 < np.max(np.abs(logits(loaded) - logits(whole))) < 0.1 * np.ptp(logits(whole))


def test_eight_bits_are_written_as_floats(saved, tmp_path):
    model = load_huggingface(saved, dtype=jnp.bfloat16, int8=True)
    save_huggingface(model, tmp_path / "again")
    arrays = load_file(tmp_path / "again" / "model.safetensors")
    assert {str(array.dtype) for name, array in arrays.items() if "norm" not in name} == {"bfloat16"}
    part = model.params["layers"][1]["mlp"]["down"]
    expected = np.asarray(part.values, np.float32) * np.asarray(part.scale)[:, None]
    weight = arrays["model.layers.1.mlp.down_proj.weight"]
    np.testing.assert_array_equal(weight, expected.astype(jnp.bfloat16))


def test_a_scaled_embedding_is_written_as_an_untied_llama(tmp_path):
    model = models.target()
    assert model.network.config.ends.tied
    save_huggingface(model, tmp_path)
    assert about(tmp_path)["architectures"] == ["LlamaForCausalLM"]
    assert about(tmp_path)["tie_word_embeddings"] is False
    tokens = jnp.asarray(TOKENS % models.VOCAB, jnp.int32)
    expected, result = (_logits(one.network, one.params, tokens) for one in (model, load_huggingface(tmp_path)))
    assert np.ptp(np.asarray(expected)) > 3
    np.testing.assert_allclose(result, expected, atol=1e-5, rtol=0)


def test_a_configuration_of_no_family_is_refused(tmp_path):
    config = models.TARGET
    odd = replace(config, block=replace(config.block, norms="after"))
    with pytest.raises(ValueError, match="a configuration of one of .*llama.*no config.json"):
        save_huggingface(jaxspec.decoder(odd, jax.random.key(0)), tmp_path)


def change(name, array):
    """Change one array of a file; None removes it."""

    def spoil(folder):
        arrays = load_file(folder / "model.safetensors")
        arrays.pop(name, None)
        save_file(arrays | ({} if array is None else {name: array}), folder / "model.safetensors")

    return spoil


def cut(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def pickles_only(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def no_weights(folder):
    (folder / "model.safetensors").unlink()


def no_config(folder):
    (folder / "config.json").unlink()


def half_a_config(folder):
    (folder / "config.json").write_text('{"model_type": ')


def one_file_less(folder):
    save_huggingface(made("llama"), folder, shard_bytes=3000)
    sorted(folder.glob("*.safetensors"))[1].unlink()


SPOILT = {
    "another architecture": (
        partial(about, architectures=["MambaForCausalLM"]),
        "supported architectures .*LlamaForCausalLM, .*Gemma3ForCausalLM.*got .*Mamba",
    ),
    "another type": (partial(about, architectures=None, model_type="bert"), "supported architectures .*got bert"),
    "pickles": (pickles_only, "got only pytorch_model.bin: reading a pickle can run any code"),
    "no weights": (no_weights, "expected .*safetensors, got none"),
    "truncated": (cut, "model.safetensors: expected a whole safetensors file"),
    "missing weight": (
        change("model.layers.1.mlp.up_proj.weight", None),
        r"do not have: model\.layers\.1\.mlp\.up_proj",
    ),
    "unexpected weight": (
        change("model.layers.0.extra.weight", np.zeros(3, np.float32)),
        r"not describe: .*0\.extra\.weight",
    ),
    "mis-shaped weight": (
        change("model.layers.1.self_attn.k_proj.weight", np.zeros((5, 16), np.float32)),
        r"model\.layers\.1\.self_attn\.k_proj\.weight: expected shape \(4, 16\), got \(5, 16\)",
    ),
    "no config.json": (no_config, "got no config.json"),
    "half a config.json": (half_a_config, "config.json: expected JSON"),
    "a missing file of the index": (one_file_less, "got no model-00002-of-"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_spoilt_folder_is_named(saved, name):
    spoil, message = SPOILT[name]
    spoil(saved)
    with pytest.raises(ValueError, match=message):
        load_huggingface(saved)


@pytest.mark.parametrize(
    ("size", "changes", "message"),
    [
        (3, {"intermediate_size": 33}, "num_kv_heads divisible by 3"),
        (8, {"num_attention_heads": 4, "head_dim": 4}, "num_heads divisible by it, got 4"),
        (4, {"intermediate_size": 30}, "hidden divisible by 4 devices, got 30"),
    ],
)
def test_a_mesh_that_does_not_divide_is_refused(tmp_path, size, changes, message):
    config = FAMILIES[0].read(SIZES | changes)
    save_huggingface(jaxspec.decoder(config, jax.random.key(0)), tmp_path)
    with pytest.raises(ValueError, match=message):
        load_huggingface(tmp_path, jaxspec.mesh_of(jax.devices()[:size]))


def test_a_mesh_that_does_not_divide_the_experts_is_refused(tmp_path):
    save_huggingface(made("mixtral"), tmp_path)
    with pytest.raises(ValueError, match="expected experts divisible by 8 devices, got 4; use fewer"):
        load_huggingface(tmp_path, jaxspec.mesh_of(jax.devices()[:8]))


def test_too_little_memory_is_detected_before_anything_is_read(saved, tmp_path, monkeypatch):
    memory = tmp_path / "meminfo"
    monkeypatch.setattr(parameters, "MEMORY", memory)
    memory.write_text("MemTotal: 900 kB\nMemAvailable: 20 kB\n")
    monkeypatch.setattr(huggingface.Weights, "__getitem__", lambda *_: pytest.fail("something was read"))
    with pytest.raises(MemoryError, match=r"expected .* GB free on each of 1 devices .*int8=True"):
        load_huggingface(saved)
    monkeypatch.undo()
    assert load_huggingface(saved)


def test_fewer_bytes_fit_where_more_do_not(saved, tmp_path, monkeypatch):
    needed = parameters.parameter_bytes(made("llama").network.config, jnp.bfloat16)
    memory = tmp_path / "meminfo"
    memory.write_text(f"MemAvailable: {int(needed * 1.2 / 1024)} kB\n")
    monkeypatch.setattr(parameters, "MEMORY", memory)
    with pytest.raises(MemoryError):
        load_huggingface(saved)
    assert load_huggingface(saved, dtype=jnp.bfloat16)


@pytest.mark.parametrize("int8", [False, True], ids=["floats", "int8"])
def test_one_leaf_at_a_time_is_in_host_memory(tmp_path, monkeypatch, int8):
    config = FAMILIES[0].read(SIZES | {"num_hidden_layers": 6, "tie_word_embeddings": True})
    save_huggingface(jaxspec.decoder(config, jax.random.key(0)), tmp_path, dtype=jnp.bfloat16)
    alive, most = weakref.WeakSet(), []

    class Holder(np.ndarray):
        """An array that can be counted while it lives."""

        __hash__ = object.__hash__

    class Counted(huggingface.Weights):
        def __getitem__(self, name):
            array = super().__getitem__(name).view(Holder)
            alive.add(array)
            most.append(sum(each.nbytes for each in alive))
            return array

    monkeypatch.setattr(huggingface, "Weights", Counted)
    params = load_huggingface(tmp_path, int8=int8).params
    largest = max(leaf.size * 2 for leaf in jax.tree.leaves(params))
    assert len(most) == 1 + 1 + 6 * 9
    assert max(most) < 2 * largest
    assert max(most) < sum(leaf.size * 2 for leaf in jax.tree.leaves(params)) / 4


def test_stop_tokens_of_a_folder_without_a_tokenizer(saved, tmp_path):
    """They end sequences, and a checkpoint of ours keeps them."""
    plain = load_huggingface(saved)
    tokens = jaxspec.generate(jaxspec.autoregressive(plain), [[1, 2, 3]], 8).tokens[0]
    about(saved, eos_token_id=[tokens[2]])
    convert(saved, tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "published")
    for folder in (saved, tmp_path / "ours", tmp_path / "published"):
        result = jaxspec.generate(jaxspec.autoregressive(open_model(folder)), [[1, 2, 3]], 8)
        assert result.tokens == [tokens[: tokens.index(tokens[2]) + 1]]
        assert (result.text, result.finish_reason) == (None, ["stop"])


WRITTEN = [
    *("llama", "mistral", "qwen2", "qwen3", "opt", "opt-post-norm", "gemma2", "gemma3"),
    *("olmo2", "olmo3", "gpt-neox", "gpt-neox-older", "gpt-oss"),
    *("mixtral", "qwen2-moe", "qwen2-moe-sliding", "qwen3-moe", "qwen3-moe-sliding"),
]


@pytest.mark.peers
@pytest.mark.parametrize("name", WRITTEN)
def test_transformers_loads_what_is_written(name, tmp_path):
    import torch
    import transformers

    model = made(name)
    save_huggingface(model, tmp_path, shard_bytes=6000)
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, attn_implementation="eager", output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    with torch.no_grad():
        expected = theirs.eval()(torch.from_numpy(TOKENS)).logits.numpy()
    assert np.ptp(expected) > 1
    np.testing.assert_allclose(np.moveaxis(logits(model), 0, -1), expected, atol=1e-4, rtol=0)
