"""Hydra: heads that read the target's last hidden state and the tokens drafted so far.

Head i reads z = [s_t; e(x_{t+1}); …; e(x_{t+1+i})], e the target's embedding:

    h = R_i·z + r_i + SiLU(W_i·z + w_i),  then n − 1 times h ← h + SiLU(W'_i·h + w'_i),  logits_i = U_i·h + u_i

Hydra: s = f, what the target's head reads. Hydra++: s = RMS(Layer(f)), a decoder layer over the f of the whole text.

Source: Ankner et al., Hydra (arXiv 2402.05109). Its typical acceptance is not here: it changes the distribution.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from jaxspec.drafts.medusa import Affine
from jaxspec.drafts.modules import Fusion, ModuleNetwork, embedded, index_of, run_layers, scores
from jaxspec.models.base import Array, Attend, Cache, Params
from jaxspec.models.config import DecoderConfig
from jaxspec.models.layers import Layer, RMSNorm, weight
from jaxspec.verify.features import Reads


@dataclass(frozen=True)
class Hydra(ModuleNetwork):
    """The network of Hydra's heads; static.

    Attributes:
        num_tokens: V.
        target_width: D.
        depth: K, heads.
        repeats: n − 1, times that the inner block of a head is applied.
        config: of the prefix layer of Hydra++; None for Hydra.
        reads: one stream of the target, its final hidden state by default.
        norm_inputs: an RMS norm of that stream, for one that the target does not norm.
        head_tokens: V_d, tokens that the heads score; None: all.
    """

    num_tokens: int
    target_width: int
    depth: int
    repeats: int = 0
    config: DecoderConfig | None = None
    reads: Reads = Reads(final=True)
    norm_inputs: bool = False
    head_tokens: int | None = None
    lag = 1

    def module(self, rngs: nnx.Rngs) -> "HydraModule":
        """Return the module."""
        return HydraModule(self, rngs)

    @property
    def fusion(self) -> Fusion:
        """The stream, with a norm for one that the target does not norm."""
        return Fusion(1, self.target_width, norm_all=self.norm_inputs)

    def hidden(self, params: Params, x: Array, depth: int) -> Array:
        """Return h of head ``depth``: [D, B, T]."""
        return self.bound(params).hidden(x[self.target_width :], depth)

    def guessed(self, inputs: Array) -> Array:
        """Return f: nothing newer is known."""
        return inputs[: self.target_width]


class HydraModule(nnx.Module):
    """Parameters of ``Hydra``, by head: ``first`` W, ``residual`` R, ``inner`` W', and output heads with biases."""

    def __init__(self, network: Hydra, rngs: nnx.Rngs):
        width, heads, c = network.target_width, range(network.depth), network.config
        self.fusion = network.fusion.module(rngs)
        self.embedding = weight(rngs, (network.num_tokens, width), width)
        make = lambda inputs: Affine(inputs, width, True, rngs)  # noqa: E731
        self.first = nnx.List([make((i + 2) * width) for i in heads])
        self.residual = nnx.List([make((i + 2) * width) for i in heads])
        self.inner = nnx.List([make(width) for _ in heads if network.repeats])
        self.heads = nnx.List([weight(rngs, (network.scored, width), width) for _ in heads])
        self.head_biases = nnx.List([nnx.Param(jnp.zeros(network.scored)) for _ in heads])
        self.layers = None if c is None else nnx.List([Layer(c, rngs) for _ in range(c.num_layers)])
        self.final_norm = None if c is None else RMSNorm(width, c.block.epsilon)
        self.index, self.network = index_of(network), network

    def run(
        self, inputs: Array, tokens: Array, positions: Array, cache: Cache, attend: Attend, depth: int
    ) -> tuple[Array, Cache]:
        """Return [f; z], z longer by one embedding for each depth."""
        x = inputs
        if depth == 0:
            s, cache = self.prefixed(inputs, positions, cache, attend)
            x = jnp.concatenate([inputs, s])
        return jnp.concatenate([x, embedded(self.embedding, tokens)]), cache

    def prefixed(self, f: Array, positions: Array, cache: Cache, attend: Attend) -> tuple[Array, Cache]:
        """Return s [D, B, T]."""
        config = self.network.config
        if self.layers is None or self.final_norm is None or config is None:
            return f, cache
        x, cache = run_layers(self.layers, config, f, positions, cache, attend)
        return self.final_norm(x), cache

    def own_logits(self, x: Array, number: int) -> Array:
        """Return the logits [V_d, B, T] of one head, of x = [f; z]."""
        h = self.hidden(x[self.network.target_width :], number)
        return scores(self.heads[number][...], h) + self.head_biases[number][...][:, None, None]

    def hidden(self, z: Array, number: int) -> Array:
        """Return h [D, B, T] of one head."""
        h = self.residual[number](z) + jax.nn.silu(self.first[number](z))
        for _ in range(self.network.repeats):
            h = h + jax.nn.silu(self.inner[number](h))
        return h
