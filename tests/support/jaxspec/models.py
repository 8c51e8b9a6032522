"""Tiny models whose text varies: a target, drafts that agree with it in part, prompts of unequal lengths."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

import jaxspec
from jaxspec import DecoderConfig, Model
from jaxspec.drafts import draft_for
from jaxspec.models._decoder import network
from jaxspec.training import hidden_states
from jaxspec.verify.target import Request

VOCAB = 11
TARGET = DecoderConfig(VOCAB, 16, 4, 4, 2, 4, 16)
DRAFT = replace(TARGET, num_layers=1)
#: All windows up to 8 share one cache capacity (64 rows) with prompts of at most 32 tokens and this many new ones.
NEW_TOKENS = 14
PROMPTS = [[1, 5, 3], [7, 2, 9, 4, 4, 8, 1]]
#: Shared by tests so that they share compiled programs.
ALL_BRANCHES = jaxspec.candidates.mirror()


def random_model(config, seed, first=4.0, rest=2.0):
    """Random weights: a strong first layer makes the text vary; weaker other layers leave an early exit half right."""
    model = jaxspec.decoder(config, jax.random.key(seed))
    scales = [first] + [rest] * (config.num_layers - 1)
    scaled = [
        jax.tree.map(lambda leaf, by=scale: by * leaf, layer)
        for scale, layer in zip(scales, model.params["layers"], strict=True)
    ]
    return model._replace(params={**model.params, "layers": scaled})


@cache
def target():
    return random_model(TARGET, 2)


@cache
def draft():
    """The target's first layer with noise: it agrees with the target on some tokens and not on others."""
    params = target().params
    params = {**params, "layers": params["layers"][:1]}
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [leaf * (1 + 0.06 * jax.random.normal(key, leaf.shape)) for leaf, key in zip(leaves, keys, strict=True)]
    return Model(network(DRAFT), jax.tree.unflatten(tree, noisy))


@cache
def streaming(count=2, model=draft):
    """A draft with streams; they are random, so that some guesses are right in so small a vocabulary."""
    plain = model()
    model = jaxspec.streaming(plain, count, start=plain.network.config.num_layers - 1, rank=4)
    up = jax.random.normal(jax.random.key(8), model.params["streams"]["expand"].shape)
    return model._replace(params={**model.params, "streams": {**model.params["streams"], "expand": up}})


def drafter(draft):
    """The drafter of a language model."""
    return draft_for(draft, draft).drafter


@cache
def stranger():
    """A draft that is independent of the target."""
    return random_model(DecoderConfig(VOCAB, 8, 1, 2, 1, 4, 8), 7)


def meshes(target_size=1, draft_size=1):
    """Disjoint meshes: the first devices for the target, the next ones for the draft."""
    devices = jax.devices()[: target_size + draft_size]
    return jaxspec.Placement(jaxspec.mesh_of(devices[:target_size]), jaxspec.mesh_of(devices[target_size:]))


def mirror(window=3, num_candidates=2, exit_layer=2, **options):
    """Mirror-SD of the tiny pair on two devices, one mesh each."""
    options = {"policy": ALL_BRANCHES, "placement": meshes()} | options
    pair = options.pop("target", target()), options.pop("draft", draft())
    return jaxspec.mirror(*pair, window=window, num_candidates=num_candidates, exit_layer=exit_layer, **options)


def speculative(window=3, **options):
    return jaxspec.speculative(options.pop("target", target()), options.pop("draft", draft()), window, **options)


@cache
def expected(max_new_tokens=NEW_TOKENS):
    """The target's own greedy continuation of ``PROMPTS``, by passes over the whole text without a cache."""
    return [greedy_text(target(), prompt, max_new_tokens) for prompt in PROMPTS]


def greedy_text(model, prompt, count):
    """Greedy decoding without any cache: every token comes from a pass over the whole text."""
    tokens = list(prompt)
    for _ in range(count):
        padded = np.zeros((1, 64), np.int32)
        padded[0, : len(tokens)] = tokens
        tokens.append(int(_choices(model.network, model.params, jnp.asarray(padded))[0, len(tokens) - 1]))
    return tokens[len(prompt) :]


def request(prompts=PROMPTS, max_new_tokens=NEW_TOKENS, size=32):
    """A request to a decoding method: padded prompts, greedy unless replaced."""
    tokens = np.stack([np.pad(np.asarray(prompt, np.int32), (0, size - len(prompt))) for prompt in prompts])
    lengths = np.asarray([len(prompt) for prompt in prompts], np.int32)
    return Request(tokens, lengths, np.full_like(lengths, max_new_tokens))


def _forward(net, params, tokens):
    return jnp.argmax(net.logits(params, hidden_states(net, params, tokens)[-1]), axis=0)


_choices = jax.jit(_forward, static_argnums=0)
