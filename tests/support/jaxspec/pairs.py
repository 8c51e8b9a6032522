"""A tiny pair like each published family, settings that cycle through the options, and where two decodings differ."""

from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxspec
from jaxspec import Model, Sampling
from jaxspec.generation.requests import request_of
from jaxspec.loading.families import family_of
from jaxspec.models._decoder import network
from jaxspec.training import hidden_states
from jaxspec.verify.sampling import perturbed
from jaxspec.verify.seen import Seen
from tests.support.jaxspec import models

VOCAB, NEW_TOKENS = 11, 12
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "intermediate_size": 16,
    "ffn_dim": 16,
    "max_position_embeddings": 128,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 2.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
#: Name → published architecture, and the settings of its ``config.json`` besides the sizes.
FAMILIES = {
    "llama": ("LlamaForCausalLM", {"rope_scaling": LLAMA3}),
    "qwen2": ("Qwen2ForCausalLM", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3ForCausalLM", {"num_key_value_heads": 4}),
    "mistral": ("MistralForCausalLM", {"sliding_window": 5}),
    "opt": ("OPTForCausalLM", {}),
    "opt after": ("OPTForCausalLM", {"do_layer_norm_before": False, "word_embed_proj_dim": 8}),
    "gemma2": (
        "Gemma2ForCausalLM",
        {
            "query_pre_attn_scalar": 4,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 8.0,
            "sliding_window": 5,
            "hidden_activation": "gelu_pytorch_tanh",
        },
    ),
    "gemma3": (
        "Gemma3ForCausalLM",
        {"query_pre_attn_scalar": 4, "sliding_window": 5, "sliding_window_pattern": 2, "rope_local_base_freq": 100.0},
    ),
    "gpt-oss": ("GptOssForCausalLM", EXPERTS | {"sliding_window": 5, "swiglu_limit": 2.0}),
    "qwen2-moe": ("Qwen2MoeForCausalLM", EXPERTS | {"mlp_only_layers": [1], "shared_expert_intermediate_size": 8}),
    "olmo2": ("Olmo2ForCausalLM", {}),
    "gpt-neox": ("GPTNeoXForCausalLM", {"rotary_pct": 0.5}),
}
WINDOWS, BATCHES, TEMPERATURES = tuple(range(1, 9)), (1, 3, 8), (0.0, 0.7, 1.0)
PROMPTS = [[1, 5, 3], [7, 2, 9, 4, 4, 8, 1], [6], [0, 10, 2, 2], [3] * 9, [8, 8], [4, 1, 10, 9, 0], [2, 5, 7, 3, 3, 1]]
FILTERS = [
    {},
    {"top_k": 4},
    {"top_p": 0.8},
    {"min_p": 0.1},
    {"top_k": 6, "top_p": 0.9},
    {"top_p": 0.95, "min_p": 0.02},
    {"top_k": 5, "top_p": 0.9, "min_p": 0.05},
]
PENALTIES = (1.3, 1.0, 0.9)
#: Below it two tokens are equally likely, as far as float32 can tell.
TIE = 1e-5


def config_of(name, num_layers=2):
    architecture, special = FAMILIES[name]
    config = SIZES | {"architectures": [architecture], "num_hidden_layers": num_layers} | special
    return family_of(config).read(config)


@cache
def target(name):
    """Random weights with biases that matter; a strong first layer, so that a draft can guess."""
    model = models.random_model(config_of(name), seed=2, first=2.0, rest=1.2)
    return model._replace(params=_shaken(model.params, jax.random.key(3), 0.0, 0.3))


@cache
def draft(name):
    """The target's first layer with noise."""
    params = {**target(name).params, "layers": target(name).params["layers"][:1]}
    return Model(network(config_of(name, 1)), _shaken(params, jax.random.key(1), 0.06, 0.0))


def _shaken(params, key, share, zeros):
    """Change every number by a random share of it; zeros by a random number."""
    leaves, tree = jax.tree.flatten(params)
    noise = [
        jax.random.normal(k, leaf.shape) for k, leaf in zip(jax.random.split(key, len(leaves)), leaves, strict=True)
    ]
    moved = [jnp.where(x == 0, zeros * n, x * (1 + share * n)) for x, n in zip(leaves, noise, strict=True)]
    return jax.tree.unflatten(tree, moved)


def sampling_of(name, batch, window, temperature):
    """Settings of one row, another filter for every sequence; the batch decides whether repetitions are penalised."""
    number = list(FAMILIES).index(name) + 3 * window + BATCHES.index(batch)
    filters = [FILTERS[(number + i) % len(FILTERS)] for i in range(batch)]
    penalised = (list(FAMILIES).index(name) + BATCHES.index(batch)) % 2
    return Sampling(
        temperature,
        top_k=[row.get("top_k", 0) for row in filters],
        top_p=[row.get("top_p", 1.0) for row in filters],
        min_p=[row.get("min_p", 0.0) for row in filters],
        repetition_penalty=[PENALTIES[i % 3] if penalised else 1.0 for i in range(batch)],
        seed=100 * number,
    )


def speculative(name, window):
    return jaxspec.speculative(target(name), draft(name), window)


def mirror(name, window):
    pair = {"target": target(name), "draft": draft(name)}
    return models.mirror(window=window, num_candidates=1 + window % 2, exit_layer=1, **pair)


METHODS = {"speculative": speculative, "mirror": mirror}


@cache
def autoregressive(name):
    return jaxspec.autoregressive(target(name))


class Parting(NamedTuple):
    """Where a sequence first differs from plain decoding, and by how much its two best tokens differ there."""

    sequence: int
    position: int
    gap: float


def partings(name, tokens, expected, sampling):
    """Return one ``Parting`` for every sequence that differs."""
    rows = []
    for index, (one, other) in enumerate(zip(tokens, expected, strict=True)):
        if one != other:
            position = next(i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
            rows.append(Parting(index, position, gap(name, sampling, index, len(tokens), other[:position])))
    return rows


def gap(name, sampling, index, batch, tokens):
    """Top-2 gap of what the next token of a sequence is the argmax of, by a pass over its whole text."""
    method, prompts = autoregressive(name), [np.asarray(prompt, np.int32) for prompt in PROMPTS[:batch]]
    request, _ = request_of(prompts, method, NEW_TOKENS, sampling)
    text = [*PROMPTS[index], *tokens]
    seen = Seen(None if request.seen.marks is None else np.isin(np.arange(VOCAB), text)[None, None])
    own = jax.tree.map(lambda leaf: jnp.asarray(leaf[index : index + 1]), request.sampling)
    padded = np.zeros((1, 64), np.int32)
    padded[0, : len(text)] = text
    values = _scores(target(name).network, target(name).params, padded, np.int32(len(text)), own, seen)
    best = np.sort(np.asarray(values))[::-1]
    return float(best[0] - best[1])


@partial(jax.jit, static_argnums=0)
def _scores(net, params, tokens, length, sampling, seen):
    logits = net.logits(params, hidden_states(net, params, tokens)[-1])
    last = jax.lax.dynamic_slice_in_dim(logits, length - 1, 1, axis=2)
    return perturbed(last, sampling, length[None, None], seen)[:, 0, 0]


def compared(kind, name, batch, window, temperature, new_tokens=NEW_TOKENS):
    """One method against plain decoding with the same settings: (result, partings)."""
    sampling, prompts = sampling_of(name, batch, window, temperature), PROMPTS[:batch]
    expected = jaxspec.generate(autoregressive(name), prompts, new_tokens, sampling=sampling)
    result = jaxspec.generate(METHODS[kind](name, window), prompts, new_tokens, sampling=sampling)
    return result, partings(name, result.tokens, expected.tokens, sampling)
