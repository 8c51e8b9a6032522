"""Gemma 3 with a vision tower: its text part is read, under newer and older names, and what is left out is named."""

import json
import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxspec.loading import load_huggingface, save_huggingface
from jaxspec.loading._towers import text_part
from jaxspec.loading.families import family_of
from jaxspec.training import hidden_states

TOKENS = np.random.default_rng(0).integers(3, 97, (2, 20))
TEXT = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "sliding_window": 7,
    "query_pre_attn_scalar": 24,
    "max_position_embeddings": 128,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
#: The beginning of gemma-3-4b's own file.
SHORT = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "model_type": "gemma3",
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "torch_dtype": "bfloat16",
    "vision_config": {"model_type": "siglip_vision_model"},
}


@pytest.fixture
def both(tmp_path):
    """A model of transformers, and its folder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch
        import transformers
    config = transformers.Gemma3Config(text_config=TEXT, vision_config=VISION, mm_tokens_per_image=1)
    torch.manual_seed(0)
    config._attn_implementation = "eager"
    model = transformers.Gemma3ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.model.language_model.parameters():
            parameter.copy_(
                torch.randn(parameter.shape) * (2 * parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.2)
            )
    model.save_pretrained(tmp_path)
    return model, tmp_path


@partial(jax.jit, static_argnums=0)
def _logits(network, params, tokens):
    return jnp.moveaxis(network.logits(params, hidden_states(network, params, tokens)[-1]), 0, -1)


def logits(model):
    return np.asarray(_logits(model.network, model.params, jnp.asarray(TOKENS, jnp.int32)))


def renamed(folder, change):
    file = folder / "model.safetensors"
    save_file({change(name): array for name, array in load_file(file).items()}, file, metadata={"format": "pt"})


@pytest.mark.peers
def test_the_text_part_is_that_of_transformers(both, tmp_path, capsys):
    import torch

    model, folder = both
    with torch.no_grad():
        expected = model(torch.from_numpy(TOKENS)).logits.numpy()
    assert np.ptp(expected) > 1
    ours = load_huggingface(folder)
    np.testing.assert_allclose(logits(ours), expected, atol=1e-4, rtol=0)
    told = capsys.readouterr().err
    assert "only the text part is read; ignored: multi_modal_projector (2 arrays), vision_tower (" in told
    renamed(folder, lambda name: f"model.{name.replace('language_model.model', 'language_model')}")
    np.testing.assert_array_equal(logits(load_huggingface(folder)), logits(ours))
    save_huggingface(ours, tmp_path / "text")
    assert json.loads((tmp_path / "text" / "config.json").read_text())["architectures"] == ["Gemma3ForCausalLM"]
    np.testing.assert_array_equal(logits(load_huggingface(tmp_path / "text")), logits(ours))


@pytest.mark.peers
def test_an_array_of_neither_part_is_refused(both):
    _, folder = both
    renamed(folder, lambda name: name.replace("vision_tower.post", "audio_tower.post"))
    with pytest.raises(ValueError, match="config.json does not describe: audio_tower.post_layernorm.bias"):
        load_huggingface(folder)


@pytest.mark.peers
def test_what_a_short_file_leaves_out_is_what_transformers_takes():
    import transformers

    whole = json.loads(transformers.Gemma3Config(**SHORT).to_json_string(use_diff=False))
    long = whole | {"architectures": SHORT["architectures"]}
    configs = [family_of(part).config_of(part) for part in map(text_part, (SHORT, long))]
    assert configs[0] == configs[1]
    assert (configs[0].vocab_size, configs[0].num_heads, configs[0].ends.tied) == (262_208, 8, True)


def test_quantised_files_stay_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(SHORT | {"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(ValueError, match="expected weights that are not quantised, got gptq"):
        load_huggingface(tmp_path)
