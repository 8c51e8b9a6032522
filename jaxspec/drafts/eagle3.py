"""EAGLE-3: one layer over fused hidden states of three depths of the target, fed with its own output.

g_t = F·[r_low; r_mid; r_high]_t, and for the pair (g_t, x_{t+1}) in row t:

    n_e = RMS(e(x_{t+1}); w_e),  n_g = RMS(g_t; w_g),  h = g_t + Attention([n_e; n_g]),  a = h + MLP(RMS(h))
    logits of x_{t+2} = U·RMS(a; w) over the draft's vocabulary; the next pair is (a, x_{t+2})

Source: Li et al., EAGLE-3 (arXiv 2503.01840); flags of vllm-project/speculators 0.9.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from flax import nnx

from jaxspec.drafts.modules import Fusion, ModuleNetwork, embedded, index_of, run_layers, scores
from jaxspec.models.base import Array, Attend, Cache, Params
from jaxspec.models.config import DecoderConfig
from jaxspec.models.layers import Layer, RMSNorm, weight
from jaxspec.verify.features import Reads

#: Fewest layers of a target whose default taps differ.
LEAST_LAYERS = 7


def default_taps(num_layers: int) -> tuple[int, int, int]:
    """Return (2, L//2, L−3), the taps of published drafts.

    Raises:
        ValueError: fewer than 7 layers, where they are not three.
    """
    if num_layers < LEAST_LAYERS:
        raise ValueError(
            f"expected a target of at least {LEAST_LAYERS} layers for taps (2, L//2, L-3), got {num_layers}; pass taps="
        )
    return 2, num_layers // 2, num_layers - 3


@dataclass(frozen=True)
class Eagle3(ModuleNetwork):
    """The network of an EAGLE-3 draft; static.

    Attributes:
        config: of its layers; ``vocab_size`` is that of the draft, V_d.
        num_tokens: V of the target.
        target_width: D of the target.
        reads: taps in ascending order; ``Reads(final=True)`` for a draft without auxiliary hidden states.
        norm_before_residual: h starts from RMS(g) instead of g.
        norm_before_fc: an RMS norm over the concatenated taps before F.
        fc_norm: an RMS norm over each tap before F.
        norm_output: the next pair gets RMS(a; w) instead of a.
    """

    config: DecoderConfig
    num_tokens: int
    target_width: int
    reads: Reads
    norm_before_residual: bool = False
    norm_before_fc: bool = False
    fc_norm: bool = False
    norm_output: bool = False
    lag, depth = 1, None

    def module(self, rngs: nnx.Rngs) -> "Eagle3Module":
        """Return the module."""
        return Eagle3Module(self, rngs)

    @property
    def fusion(self) -> Fusion:
        """F over the taps; nothing for a draft without them."""
        count, epsilon = len(self.reads.taps), self.config.block.epsilon
        if not count:
            return Fusion(1, self.target_width)
        return Fusion(count, self.target_width, self.config.width, self.norm_before_fc, self.fc_norm, epsilon)

    @property
    def scored(self) -> int:
        """V_d."""
        return self.config.vocab_size

    def following(self, params: Params, x: Array) -> Array:
        """Return a, or its norm."""
        return self.bound(params).final_norm(x) if self.norm_output else x


class Eagle3Module(nnx.Module):
    """Parameters of ``Eagle3``."""

    def __init__(self, network: Eagle3, rngs: nnx.Rngs):
        c, epsilon = network.config, network.config.block.epsilon
        self.embedding = weight(rngs, (network.num_tokens, c.width), c.width)
        self.fusion = network.fusion.module(rngs)
        self.hidden_norm, self.final_norm = RMSNorm(c.width, epsilon), RMSNorm(c.width, epsilon)
        self.layers = nnx.List([Layer(c, rngs, None if i else 2 * c.width) for i in range(c.num_layers)])
        self.head = weight(rngs, (c.vocab_size, c.width), c.width)
        self.index = index_of(network)
        self.network = network

    def run(
        self, features: Array, tokens: Array, positions: Array, cache: Cache, attend: Attend, depth: Any
    ) -> tuple[Array, Cache]:
        """Run pairs: a [D', B, T]."""
        normed, embedding = self.hidden_norm(features), embedded(self.embedding, tokens)

        def heads(layer: Layer, x: Array, turn: Callable) -> tuple[Array, Array, Array]:
            return layer.attention.heads(jnp.concatenate([layer.attention_norm(embedding), normed]), turn)

        start = normed if self.network.norm_before_residual else features
        return run_layers(self.layers, self.network.config, start, positions, cache, attend, heads)

    def own_logits(self, x: Array, depth: Any) -> Array:
        """Return logits [V_d, B, T]."""
        return scores(self.head[...], self.final_norm(x))
