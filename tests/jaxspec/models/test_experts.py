"""Mixtures of experts against their equation in NumPy, however many tokens there are."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxspec.models.config import Block, Experts, Tracks
from jaxspec.models.experts import MixtureOfExperts
from tests.support.jaxspec import models

EXPERTS = Experts(5, 2, 12, renormalised=False, shared_hidden=8, router_bias=True)
CONFIG = replace(models.TARGET, experts=EXPERTS, block=Block(bias=True))


def made(experts):
    module = MixtureOfExperts(replace(CONFIG, experts=experts), experts, nnx.Rngs(0))
    for name in ("router_bias", "expert_gate_up_bias", "expert_down_bias"):
        if (bias := getattr(module, name)) is not None:
            bias[...] = jax.random.normal(jax.random.key(len(name)), bias.shape)
    return module


def silu(x):
    return x / (1 + np.exp(-x))


def expected(module, x):
    """Token by token."""
    p = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(module)))
    y = np.zeros_like(x)
    for b, t in np.ndindex(x.shape[1:]):
        token = x[:, b, t]
        logits = p["router"] @ token + p.get("router_bias", 0)
        shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        chosen = np.argsort(-shares)[: module.experts.top_k]
        for e in chosen:
            gate, up = np.einsum("gfd,d->gf", p["expert_gate_up"][e], token) + p["expert_gate_up_bias"][e]
            share = shares[e] / (shares[chosen].sum() if module.experts.renormalised else 1)
            y[:, b, t] += share * (p["expert_down"][e] @ (silu(gate) * up) + p["expert_down_bias"][e])
        if "shared" in p:
            gate, up = np.einsum("gfd,d->gf", p["shared"]["gate_up"], token)
            opened = 1 / (1 + np.exp(-p["shared_gate"] @ token))
            y[:, b, t] += opened * (p["shared"]["down"] @ (silu(gate) * up))
    return y


@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (1, 3), (2, 7)])
@pytest.mark.parametrize("experts", [EXPERTS, Experts(5, 2, 12), Experts(4, 4, 6)], ids=["shared", "plain", "all"])
def test_a_mixture_follows_its_equation(shape, experts):
    module, x = made(experts), np.random.default_rng(0).normal(size=(CONFIG.width, *shape)).astype(np.float32)
    np.testing.assert_allclose(module(jnp.asarray(x)), expected(module, x), atol=2e-5)


def test_what_nobody_chose_changes_nothing():
    """Not even where it is infinite."""
    module, x = made(EXPERTS), jnp.asarray(np.random.default_rng(0).normal(size=(CONFIG.width, 1, 6)), jnp.float32)
    unchosen = sorted(set(range(5)) - set(np.asarray(module.route(x[:, :, :1])[1]).ravel().tolist()))
    plain = np.asarray(module(x))
    module.expert_gate_up[...] = module.expert_gate_up[...].at[jnp.asarray(unchosen)].set(jnp.inf)
    np.testing.assert_allclose(module(x)[:, :, 0], plain[:, :, 0], atol=1e-6)


@pytest.mark.parametrize(
    ("experts", "message"),
    [
        (replace(EXPERTS, top_k=6), "top_k from 1 to the 5 experts there are, got 6"),
        (replace(EXPERTS, hidden=0), "hidden of the experts >= 1, got 0"),
        (replace(EXPERTS, dense=(True,)), "expected dense for 4 layers, got 1"),
    ],
)
def test_impossible_sizes_are_refused(experts, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, experts=experts)


def test_tracks_of_experts_are_refused():
    with pytest.raises(ValueError, match="without experts under tracks"):
        replace(CONFIG, tracks=Tracks(2))
