"""LongRoPE beyond the original length: the long factors, as transformers has them for a prompt of that length."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxspec
from jaxspec.models import for_long_texts
from jaxspec.training import hidden_states
from tests.support.jaxspec import models

LONG = {
    "rope_type": "longrope",
    "rope_theta": 1000.0,
    "short_factor": [1.0, 1.5, 2.0, 3.0, 4.0, 6.0],
    "long_factor": [1.5, 3.0, 5.0, 8.0, 9.0, 12.0],
    "original_max_position_embeddings": 32,
}
SIZES = {"vocab_size": 96, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 12}
HEADS = {
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "eos_token_id": None,
}
TEXT = np.random.default_rng(0).integers(1, 96, (2, 40))


def folder_of(path):
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.Phi3Config(
        **SIZES, **HEADS, original_max_position_embeddings=32, rope_parameters=LONG, initializer_range=0.3
    )
    model = transformers.Phi3ForCausalLM(config).eval()
    model.save_pretrained(path)
    return model


@pytest.mark.peers
def test_a_long_text_has_the_long_factors(tmp_path):
    import torch

    theirs, ours = folder_of(tmp_path), jaxspec.load_huggingface(tmp_path)
    stretched = for_long_texts(ours)
    with torch.no_grad():
        long, short = (theirs(torch.from_numpy(text)).logits.numpy() for text in (TEXT, TEXT[:, :20]))
    for model, text, expected in ((stretched, TEXT, long), (ours, TEXT[:, :20], short)):
        x = hidden_states(model.network, model.params, jnp.asarray(text, jnp.int32))[-1]
        np.testing.assert_allclose(jnp.moveaxis(model.network.logits(model.params, x), 0, -1), expected, atol=1e-4)
    with torch.no_grad():
        tokens = theirs.generate(torch.from_numpy(TEXT), max_new_tokens=24, do_sample=False)[:, TEXT.shape[1] :]
    new = jaxspec.generate(jaxspec.autoregressive(stretched), TEXT.tolist(), 24)
    assert new.tokens == tokens.tolist()


@pytest.mark.peers
def test_what_is_saved_is_read_again(tmp_path):
    folder_of(tmp_path / "one")
    ours = jaxspec.load_huggingface(tmp_path / "one")
    for name, model in (("short", ours), ("long", for_long_texts(ours))):
        jaxspec.save_huggingface(model, tmp_path / name)
        again = jaxspec.load_huggingface(tmp_path / name).network.config.attention.rotary
        rotary = model.network.config.attention.rotary
        np.testing.assert_array_equal(again.frequencies(12), rotary.frequencies(12))
        assert again.max_length == rotary.max_length
        assert again.attention_factor == pytest.approx(rotary.attention_factor)


@pytest.mark.peers
def test_a_prompt_beyond_the_original_length_says_how(tmp_path):
    folder_of(tmp_path)
    method = jaxspec.autoregressive(jaxspec.load_huggingface(tmp_path))
    with pytest.raises(ValueError, match=r"cache of 32, got 40 \+ 4; .*no more positions \(jaxspec.models.for_long"):
        jaxspec.generate(method, TEXT.tolist(), 4)


def test_a_model_of_one_length():
    with pytest.raises(ValueError, match="expected a model with LongRoPE, got rotary positions"):
        for_long_texts(models.target())
