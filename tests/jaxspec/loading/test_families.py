"""Published families against transformers: from its checkpoints we compute its logits and its greedy tokens."""

import warnings
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxspec
from jaxspec.models.attention import cached, init_cache
from jaxspec.training import hidden_states

pytestmark = pytest.mark.peers

VOCAB, NEW_TOKENS = 97, 64
RNG = np.random.default_rng(0)
PROMPTS = [RNG.integers(3, VOCAB, length).tolist() for length in (5, 11, 23)]
#: Longer than every sliding window below.
TEXT = RNG.integers(3, VOCAB, (2, 40))
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 16}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 1000.0,
    "short_factor": [1.0, 1.5, 2.0, 3.0, 4.0, 6.0],
    "long_factor": [9.0] * 6,
    "original_max_position_embeddings": 100,
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 2.0}
LINEAR = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}
ONE_HEAD = {"num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 24}
BIASED = {"attention_bias": True, "mlp_bias": True}
THREE = {"num_hidden_layers": 3}
OPT = {"hidden_size": 48, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "word_embed_proj_dim": 48}
POST_NORM = {"do_layer_norm_before": False, "word_embed_proj_dim": 32}
GPT2 = {"n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 128}
PART = {"rope_parameters": {"rope_type": "default", "rope_theta": 1000.0, "partial_rotary_factor": 0.5}}
MULTIPLIED = {
    "embedding_multiplier": 6.0,
    "attention_multiplier": 0.2,
    "residual_multiplier": 0.6,
    "logits_scaling": 0.4,
}
SLIDING = ["sliding_attention", "full_attention", "sliding_attention"]
GEMMA = {"head_dim": 12, "sliding_window": 7, "query_pre_attn_scalar": 24}
GEMMA3_ROPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
    "full_attention": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.0},
}

MIXTRAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
SHARED = EXPERTS | {"shared_expert_intermediate_size": 40}
OLMO3_ROPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
    "full_attention": YARN | {"rope_theta": 1000.0},
}
NEOX_ROPE = {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5}
OSS_LIMITS = {"swiglu_limit": 0.8, "swiglu_alpha": 1.3, "attention_bias": False, "layer_types": SLIDING}


class Case(NamedTuple):
    """A configuration of transformers: which class, and what differs from ``SIZES``."""

    family: str
    config: dict
    slow: bool = False


CASES = {
    "llama3": Case("Llama", {"rope_parameters": LLAMA3, "head_dim": 12, "tie_word_embeddings": True}),
    "llama-linear": Case("Llama", ONE_HEAD | BIASED | {"rope_parameters": LINEAR}, True),
    "llama-yarn": Case("Llama", {"rope_parameters": YARN, "head_dim": 24}),
    "llama-yarn-whole": Case("Llama", {"rope_parameters": YARN | {"truncate": False, "attention_factor": 1.3}}, True),
    "llama-dynamic": Case("Llama", {"rope_parameters": DYNAMIC, "max_position_embeddings": 100}, True),
    "phi3-long": Case("Phi3", {"rope_parameters": LONG, "head_dim": 12}),
    "mistral": Case("Mistral", {"sliding_window": 9, "head_dim": 12}),
    "mistral-one-head": Case("Mistral", ONE_HEAD | THREE | {"sliding_window": 17}, True),
    "qwen2": Case("Qwen2", {"tie_word_embeddings": True}),
    "qwen2-sliding": Case(
        "Qwen2", THREE | {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}, True
    ),
    "qwen3": Case("Qwen3", {"head_dim": 24, "tie_word_embeddings": True}),
    "qwen3-sliding": Case(
        "Qwen3", ONE_HEAD | {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}, True
    ),
    "mixtral": Case("Mixtral", MIXTRAL),
    "mixtral-sliding": Case("Mixtral", ONE_HEAD | {"num_local_experts": 5, "sliding_window": 9}, True),
    "qwen2-moe": Case("Qwen2Moe", SHARED | {"norm_topk_prob": False}),
    "qwen2-moe-some": Case(
        "Qwen2Moe",
        SHARED | THREE | {"mlp_only_layers": [1], "use_sliding_window": True, "sliding_window": 6, "qkv_bias": False},
        True,
    ),
    "qwen3-moe": Case("Qwen3Moe", EXPERTS | {"head_dim": 24, "norm_topk_prob": True}),
    "qwen3-moe-some": Case(
        "Qwen3Moe",
        EXPERTS | ONE_HEAD | {"decoder_sparse_step": 2, "use_sliding_window": True, "sliding_window": 6},
        True,
    ),
    "olmo2": Case("Olmo2", {"num_key_value_heads": 4}),
    "olmo2-biased": Case("Olmo2", THREE | {"attention_bias": True, "tie_word_embeddings": True}, True),
    "olmo3": Case("Olmo3", THREE | {"sliding_window": 9, "rope_parameters": OLMO3_ROPE, "layer_types": SLIDING}),
    "olmo3-four": Case("Olmo3", {"num_hidden_layers": 4, "sliding_window": 7}, True),
    "gpt-neox": Case("GPTNeoX", {"hidden_size": 64, "rope_parameters": NEOX_ROPE}),
    "gpt-neox-in-turn": Case(
        "GPTNeoX", THREE | {"use_parallel_residual": False, "attention_bias": False, "hidden_size": 32}, True
    ),
    "gpt-oss": Case("GptOss", MIXTRAL | {"head_dim": 12, "sliding_window": 9, "rope_parameters": YARN}),
    "gpt-oss-limited": Case("GptOss", ONE_HEAD | THREE | MIXTRAL | OSS_LIMITS, True),
    "opt": Case("OPT", OPT),
    "opt-post-norm": Case("OPT", OPT | POST_NORM | THREE | {"num_attention_heads": 2}),
    "gpt2": Case("GPT2", GPT2),
    "gpt2-three": Case("GPT2", GPT2 | {"n_layer": 3, "n_head": 3, "n_inner": 80, "tie_word_embeddings": False}, True),
    "phi3": Case("Phi3", {"sliding_window": 9}),
    "phi3-part": Case("Phi3", THREE | PART | {"head_dim": 24, "tie_word_embeddings": True}, True),
    "granite": Case("Granite", MULTIPLIED | {"tie_word_embeddings": True}),
    "granite-biased": Case("Granite", ONE_HEAD | BIASED | {"attention_multiplier": 0.3, "logits_scaling": 0.5}, True),
    "smollm3": Case("SmolLM3", THREE | {"no_rope_layer_interval": 2, "head_dim": 12}),
    "smollm3-one-head": Case("SmolLM3", ONE_HEAD | {"no_rope_layers": [1, 0], "attention_bias": True}, True),
    "gemma": Case("Gemma", {"head_dim": 12}),
    "gemma-untied": Case("Gemma", ONE_HEAD | THREE | {"attention_bias": True, "tie_word_embeddings": False}, True),
    "gemma2": Case("Gemma2", GEMMA | {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 8.0}),
    "gemma2-untied": Case("Gemma2", ONE_HEAD | THREE | {"sliding_window": 10, "tie_word_embeddings": False}, True),
    "gemma3": Case("Gemma3", GEMMA | THREE | {"rope_parameters": GEMMA3_ROPE, "layer_types": SLIDING}),
    "gemma3-one-head": Case("Gemma3", ONE_HEAD | {"sliding_window": 10, "layer_types": SLIDING[:2]}, True),
}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Use one thread: torch's threads wait for each other longer than these models take."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def published(case):
    """A random model of transformers with varied logits, in evaluation mode."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch
        import transformers
    name = case.family + ("TextConfig" if case.family == "Gemma3" else "Config")
    renamed = case.family in ("OPT", "GPT2")
    own = {key: SIZES[key] for key in SIZES if not renamed or key == "vocab_size" or "token" in key}
    own = own | case.config
    if case.family == "GPTNeoX":
        del own["num_key_value_heads"]
    config = getattr(transformers, name)(**own, attn_implementation="eager")
    torch.manual_seed(0)
    model = getattr(transformers, f"{case.family}{'LMHeadModel' if case.family == 'GPT2' else 'ForCausalLM'}")(
        config
    ).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape)
            if parameter.ndim > 1:
                parameter.copy_(noise * gain(name, case.family) * parameter.shape[-1] ** -0.5)
            else:
                post = 8 * (case.family in ("Gemma2", "Gemma3") and "post_" in name)
                parameter.add_(post + noise * (0.03 if name.endswith(".bias") else 0.2))
    return model


def gain(name, family):
    """Size of random weights with which a model neither repeats the last token nor ignores the prompt."""
    embedded = "embed_tokens", "wte"
    quieter = {"OPT": ("out_proj", "fc2"), "Gemma": embedded, "Gemma2": embedded, "Gemma3": embedded, "GPT2": embedded}
    return 1 if any(part in name for part in quieter.get(family, ())) else 2


class Peer(NamedTuple):
    """A model of transformers, ours read from its files, and the logits of ``TEXT`` [B, T, V] by transformers."""

    theirs: object
    ours: jaxspec.Model
    logits: np.ndarray


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[pytest.mark.slow] if case.slow else []) for name, case in CASES.items()],
)
def peer(request, tmp_path_factory):
    import torch

    folder = tmp_path_factory.mktemp(request.param)
    model = published(CASES[request.param])
    model.save_pretrained(folder)
    with torch.no_grad():
        logits = model(torch.from_numpy(TEXT)).logits.numpy()
    assert np.ptp(logits) > 3, "logits that hardly differ would show little"
    return Peer(model, jaxspec.load_huggingface(folder), logits)


@partial(jax.jit, static_argnums=0)
def whole(network, params, tokens):
    """Logits [B, T, V] in one pass."""
    return jnp.moveaxis(network.logits(params, hidden_states(network, params, tokens)[-1]), 0, -1)


@partial(jax.jit, static_argnums=0)
def one_by_one(network, params, tokens):
    """Logits [B, T, V], token by token through the cache."""
    batch, length = tokens.shape
    layers = range(network.config.num_layers)

    def step(cache, column):
        token, position = column
        positions = jnp.broadcast_to(position, (batch, 1))
        x, cache = network.blocks(
            params, network.embed(params, token[:, None]), positions, cache, cached(positions), layers
        )
        return cache, network.logits(params, x)[:, :, 0].T

    cache = init_cache(network.config, batch, length + 1)
    return jnp.moveaxis(jax.lax.scan(step, cache, (tokens.T, jnp.arange(length)))[1], 0, 1)


@pytest.mark.parametrize("run", [whole, one_by_one], ids=["prompt", "cached"])
def test_logits_are_those_of_transformers(peer, run):
    network, params, _ = peer.ours
    np.testing.assert_allclose(run(network, params, jnp.asarray(TEXT, jnp.int32)), peer.logits, atol=1e-4, rtol=0)


def theirs_greedily(model):
    """New tokens of ``PROMPTS``, padded on the left into one batch."""
    import torch

    longest = max(map(len, PROMPTS))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in PROMPTS])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in PROMPTS])
    with torch.no_grad():
        tokens = model.generate(ids, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False)
    return tokens[:, longest:].tolist()


def gaps(model, prompt, new):
    """How far the best logit is above the next one, at every new token."""
    import torch

    with torch.no_grad():
        logits = model(torch.tensor([prompt + new])).logits[0, len(prompt) - 1 : -1]
    best = logits.topk(2).values
    return (best[:, 0] - best[:, 1]).tolist()


def test_greedy_tokens_are_those_of_transformers(peer):
    expected = theirs_greedily(peer.theirs)
    assert len(set().union(*expected)) > 8, "texts that repeat themselves would show little"
    tokens = jaxspec.generate(jaxspec.autoregressive(peer.ours), PROMPTS, NEW_TOKENS).tokens
    for prompt, ours, theirs in zip(PROMPTS, tokens, expected, strict=True):
        assert len(theirs) == NEW_TOKENS
        differ = [i for i in range(NEW_TOKENS) if ours[i] != theirs[i]]
        gap = gaps(peer.theirs, prompt, theirs)[differ[0]] if differ else None
        assert not differ, f"other tokens from new token {differ[0]} on, where the best two logits differ by {gap}"
