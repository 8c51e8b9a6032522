"""Checkpoints of gpt-oss whose experts are in MXFP4: read as transformers dequantises them."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxspec
from jaxspec.loading import load_huggingface, save_huggingface
from jaxspec.loading._mxfp4 import dequantised
from jaxspec.loading.families import family_of
from jaxspec.training import hidden_states

TOKENS = np.random.default_rng(0).integers(0, 31, (2, 20))
SIZES = {
    "architectures": ["GptOssForCausalLM"],
    "model_type": "gpt_oss",
    "vocab_size": 32,
    "hidden_size": 64,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "sliding_window": 5,
}
SCHEME = {"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}}
EXPERTS = "model.layers.{}.mlp.experts."


def packed(rng, experts, rows, columns):
    """Random four-bit numbers, with exponents that give weights of about the usual size."""
    shape = experts, rows, columns // 32
    return rng.integers(0, 256, (*shape, 16), np.uint8), rng.integers(121, 125, shape, np.uint8)


@pytest.fixture
def quantised(tmp_path):
    """A folder as it is published: the experts' matrices in two arrays of bytes each."""
    rng = np.random.default_rng(1)
    save_huggingface(jaxspec.decoder(family_of(SIZES).config_of(SIZES), jax.random.key(0)), tmp_path)
    arrays, file = load_file(tmp_path / "model.safetensors"), tmp_path / "config.json"
    for layer in range(2):
        for name, shape in {"gate_up_proj": (4, 64, 64), "down_proj": (4, 64, 32)}.items():
            own = EXPERTS.format(layer) + name
            del arrays[own]
            arrays[own + "_blocks"], arrays[own + "_scales"] = packed(rng, *shape)
    save_file(arrays, tmp_path / "model.safetensors", metadata={"format": "pt"})
    file.write_text(json.dumps(json.loads(file.read_text()) | SCHEME))
    return tmp_path


@partial(jax.jit, static_argnums=0)
def _logits(network, params, tokens):
    return network.logits(params, hidden_states(network, params, tokens)[-1])


def logits(model):
    return np.moveaxis(np.asarray(_logits(model.network, model.params, jnp.asarray(TOKENS, jnp.int32))), 0, -1)


def test_every_number_is_dequantised():
    """Sign, exponent and mantissa of all sixteen; the lower half of a byte comes first."""
    blocks = (np.arange(0, 16, 2) | (np.arange(1, 16, 2) << 4)).astype(np.uint8).reshape(1, 1, 8)
    numbers = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    expected = np.asarray([*numbers, *(-number for number in numbers)], np.float32)
    for scale in (0, 100, 127, 130):
        scales = np.asarray([[scale]], np.uint8)
        np.testing.assert_array_equal(dequantised(blocks, scales)[0], expected * np.float32(2.0) ** (scale - 127))


@pytest.mark.peers
def test_logits_are_those_of_transformers(quantised):
    import torch
    import transformers

    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        quantised,
        attn_implementation="eager",
        dtype=torch.float32,
        quantization_config=transformers.Mxfp4Config(dequantize=True),
    )
    with torch.no_grad():
        expected = theirs.eval()(torch.from_numpy(TOKENS)).logits.numpy()
    ours = load_huggingface(quantised)
    assert np.ptp(expected) > 1
    np.testing.assert_allclose(logits(ours), expected, atol=1e-4, rtol=0)
    matrix = theirs.model.layers[1].mlp.experts.down_proj.detach().numpy()
    np.testing.assert_array_equal(ours.params["layers"][1]["mlp"]["expert_down"], np.swapaxes(matrix, 1, 2))


def test_it_is_written_without_quantisation(quantised, tmp_path):
    model = load_huggingface(quantised)
    save_huggingface(model, tmp_path / "plain")
    assert "quantization_config" not in json.loads((tmp_path / "plain" / "config.json").read_text())
    jax.tree.map(np.testing.assert_array_equal, load_huggingface(tmp_path / "plain").params, model.params)


def test_it_is_read_onto_a_mesh_in_eight_bits(quantised):
    mesh = jaxspec.mesh_of(jax.devices()[:4])
    alone, spread = load_huggingface(quantised, int8=True), load_huggingface(quantised, mesh, int8=True)
    np.testing.assert_allclose(logits(spread), logits(alone), atol=1e-4, rtol=0)


def without_scales(arrays):
    return {name: array for name, array in arrays.items() if not name.endswith("0.mlp.experts.down_proj_scales")}


def without_blocks(arrays):
    return {name: array for name, array in arrays.items() if not name.endswith("0.mlp.experts.down_proj_blocks")}


def shorter_scales(arrays):
    name = EXPERTS.format(1) + "down_proj_scales"
    return arrays | {name: arrays[name][:, 1:]}


def bytes_elsewhere(arrays):
    return arrays | {"lm_head.weight": np.zeros((32, 64), np.uint8)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_scales, "expected model.layers.0.mlp.experts.down_proj_scales .*got none"),
        (without_blocks, "the files do not have: model.layers.0.mlp.experts.down_proj"),
        (shorter_scales, r"down_proj_scales of the shape of .*got \(4, 63, 1\)"),
        (bytes_elsewhere, "expected lm_head.weight of F16, BF16, F32, F64, got U8"),
    ],
)
def test_damage_is_named(quantised, change, message):
    file = quantised / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=message):
        load_huggingface(quantised)


def test_other_schemes_are_refused(quantised):
    file = quantised / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(ValueError, match="expected weights that are not quantised, got gptq"):
        load_huggingface(quantised)
