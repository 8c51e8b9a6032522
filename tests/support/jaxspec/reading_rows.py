"""Drafts that read hidden states: the product of kinds, trees and policies, sampling, batches and targets."""

from dataclasses import replace
from functools import cache
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np

import jaxspec
from jaxspec import Sampling
from jaxspec.drafts import Draft, trees
from jaxspec.drafts.eagle import Eagle
from jaxspec.drafts.eagle3 import Eagle3
from jaxspec.drafts.feature_drafter import FeatureDrafter
from jaxspec.drafts.hydra import Hydra
from jaxspec.drafts.medusa import Medusa
from jaxspec.models import Attention
from jaxspec.verify import Reads
from tests.support.jaxspec import models, pairs, policies

WINDOW, EXIT = 3, 2
TARGETS = {
    "grouped": models.TARGET,
    "full": replace(models.TARGET, num_kv_heads=4),
    "sliding": replace(models.TARGET, attention=Attention(window=5)),
}
LAYER = replace(models.TARGET, num_layers=1)
NARROW = replace(LAYER, vocab_size=7, width=8, num_heads=2, num_kv_heads=1)
SIZES = models.VOCAB, models.TARGET.width
#: The draft's vocabulary, for one that has seven of eleven tokens.
IDS = np.asarray([0, 2, 3, 5, 6, 8, 9])
NETWORKS = {
    "eagle3 early": Eagle3(NARROW, *SIZES, Reads((0, 1, 2))),
    "eagle3": Eagle3(replace(LAYER, num_layers=2), *SIZES, Reads((1, 2, 3)), True, True, False, True),
    "eagle": Eagle(LAYER),
    "medusa": Medusa(*SIZES, depth=4),
    "hydra": Hydra(*SIZES, depth=4, reads=Reads((2,)), norm_inputs=True),
    "hydra++": Hydra(*SIZES, depth=4, repeats=2, config=LAYER),
}
TREES = {"static": trees.static((3, 2, 1)), "dynamic": trees.dynamic(3, 3, 9)}
POLICIES = "mirror", "saguaro", "ahead", "hybrid"
#: All with a penalty share programs.
MODES = {
    "greedy": None,
    "cold": Sampling(repetition_penalty=1.2),
    "mild": Sampling(0.7, top_k=6, repetition_penalty=1.2, seed=5),
    "warm": Sampling(1.0, top_p=0.9, repetition_penalty=1.1, seed=7),
}
AXES = tuple(NETWORKS), ("chain", *TREES, *POLICIES), tuple(TARGETS), (1, 3), tuple(MODES)
ROWS = list(product(*AXES))


@cache
def target(name):
    return models.random_model(TARGETS[name], 2)


@cache
def draft(kind):
    """Random weights: hardly any token is right without noise, some are with the target's."""
    network = NETWORKS[kind]
    params = network.init(jax.random.key(3))
    if params.get("index") is not None:
        index = np.full(models.VOCAB, len(IDS), np.int32)
        index[IDS] = np.arange(len(IDS))
        params = params | {"index": jnp.asarray(index)}
    return Draft(FeatureDrafter(network), params)


@cache
def method(kind, way, name):
    pair = {"target": target(name), "draft": draft(kind)}
    if way in POLICIES:
        return models.mirror(WINDOW, 4, EXIT, policy=policies.POLICIES[way](4), **pair)
    return models.speculative(WINDOW, tree=TREES.get(way), **pair)


@cache
def expected(name, batch, mode, new_tokens):
    """Plain decoding."""
    return decode(jaxspec.autoregressive(target(name)), batch, mode, new_tokens).tokens


def decode(method, batch, mode, new_tokens=models.NEW_TOKENS):
    return jaxspec.generate(method, pairs.PROMPTS[:batch], new_tokens, sampling=MODES[mode])


def tokens_of(kind, way, name, batch, mode, new_tokens=models.NEW_TOKENS):
    """Decoded and expected tokens of a row."""
    found = decode(method(kind, way, name), batch, mode, new_tokens)
    return found.tokens, expected(name, batch, mode, new_tokens)
