"""The decoder against another library's: our weights in transformers' Llama give its logits and its greedy tokens."""

import warnings

import jax.numpy as jnp
import numpy as np
import pytest

import jaxspec
from jaxspec.training import hidden_states
from tests.support.jaxspec import models

pytestmark = pytest.mark.peers

CONFIG = models.TARGET


def tensor(array):
    import torch

    return torch.from_numpy(np.array(array, np.float32))


def layer_weights(index, layer):
    """One layer under Llama's names; heads of a group are neighbours in both."""
    qkv, name = np.asarray(layer["attention"]["qkv"]), f"model.layers.{index}."
    flat = lambda part: part.reshape(-1, CONFIG.width)  # noqa: E731
    return {
        f"{name}self_attn.q_proj.weight": flat(qkv[:, :-2]),
        f"{name}self_attn.k_proj.weight": flat(qkv[:, -2]),
        f"{name}self_attn.v_proj.weight": flat(qkv[:, -1]),
        f"{name}self_attn.o_proj.weight": layer["attention"]["out"],
        f"{name}mlp.gate_proj.weight": layer["mlp"]["gate_up"][0],
        f"{name}mlp.up_proj.weight": layer["mlp"]["gate_up"][1],
        f"{name}mlp.down_proj.weight": layer["mlp"]["down"],
        f"{name}input_layernorm.weight": layer["attention_norm"]["scale"],
        f"{name}post_attention_layernorm.weight": layer["mlp_norm"]["scale"],
    }


def all_weights(params):
    arrays = {
        "model.embed_tokens.weight": params["embedding"] * CONFIG.width**0.5,
        "model.norm.weight": params["final_norm"]["scale"],
        "lm_head.weight": params["embedding"],
    }
    for index, layer in enumerate(params["layers"]):
        arrays |= layer_weights(index, layer)
    return {name: tensor(array) for name, array in arrays.items()}


@pytest.fixture(scope="module")
def llama():
    """transformers' model with the weights of the tiny target."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers
    config = transformers.LlamaConfig(
        vocab_size=CONFIG.vocab_size,
        hidden_size=CONFIG.width,
        intermediate_size=CONFIG.hidden,
        num_hidden_layers=CONFIG.num_layers,
        num_attention_heads=CONFIG.num_heads,
        num_key_value_heads=CONFIG.num_kv_heads,
        head_dim=CONFIG.head_size,
        rms_norm_eps=CONFIG.block.epsilon,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        attention_bias=False,
        mlp_bias=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    model.load_state_dict(all_weights(models.target().params), strict=True)
    return model


@pytest.mark.parametrize("prompt", models.PROMPTS, ids=len)
def test_logits_of_llama(llama, prompt):
    import torch

    network, params, _ = models.target()
    text = prompt + models.greedy_text(models.target(), prompt, 20)
    with torch.no_grad():
        expected = llama(torch.tensor([text])).logits[0].numpy()
    logits = network.logits(params, hidden_states(network, params, jnp.asarray([text]))[-1])[:, 0].T
    assert np.ptp(expected) > 3, "logits that hardly differ would show little"
    np.testing.assert_allclose(logits, expected, atol=1e-4)


@pytest.mark.parametrize("prompt", models.PROMPTS, ids=len)
def test_greedy_tokens_of_llama(llama, prompt):
    import torch

    ids = torch.tensor([prompt])
    with torch.no_grad():
        expected = llama.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False)
    expected = expected[0, len(prompt) :].tolist()
    for method in (jaxspec.autoregressive(models.target()), models.speculative()):
        assert jaxspec.generate(method, [prompt], 20).tokens[0] == expected
