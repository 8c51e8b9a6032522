"""EAGLE: one layer that predicts the target's next final hidden state, read by the target's own head.

For the pair (f_t, x_{t+1}) in row t, f what the target's head reads:

    u = F·[e(x_{t+1}); f_t] + b,  h = u + Attention(u),  f̂_{t+1} = h + MLP(RMS(h)),  logits of x_{t+2} = U·f̂_{t+1}

and the next pair is (f̂_{t+1}, x_{t+2}). F, b and the layer are the draft's own, e and U the target's.

Source: Li et al., EAGLE (arXiv 2401.15077), §3; EAGLE-2 (arXiv 2406.16858) is the same network with ``trees.dynamic``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from flax import nnx

from jaxspec.drafts.modules import Fusion, ModuleNetwork, embedded, index_of, run_layers, scores
from jaxspec.models.base import Array, Attend, Cache
from jaxspec.models.config import DecoderConfig
from jaxspec.models.layers import Layer, RMSNorm, bias, weight
from jaxspec.models.products import product
from jaxspec.verify.features import Reads


@dataclass(frozen=True)
class Eagle(ModuleNetwork):
    """The network of an EAGLE draft; static.

    Attributes:
        config: of its layers; width and vocabulary are the target's.
        reads: one stream of the target, its final hidden state by default.
        fc_bias: whether F has a bias.
        norm_inputs: RMS norms of the embedding and of the feature before F (HASS, ``add_para_norm``).
        norm_output: an RMS norm before the head (``pre_lm_head_layernorm``).
        head_tokens: V_d, tokens that the head scores; None: all.
    """

    config: DecoderConfig
    reads: Reads = Reads(final=True)
    fc_bias: bool = True
    norm_inputs: bool = False
    norm_output: bool = False
    head_tokens: int | None = None
    lag, depth = 1, None

    @property
    def num_tokens(self) -> int:  # type: ignore[override]
        """V."""
        return self.config.vocab_size

    @property
    def target_width(self) -> int:
        """D."""
        return self.config.width

    def module(self, rngs: nnx.Rngs) -> "EagleModule":
        """Return the module."""
        return EagleModule(self, rngs)

    @property
    def fusion(self) -> Fusion:
        """The stream as it is."""
        return Fusion(1, self.config.width)


class EagleModule(nnx.Module):
    """Parameters of ``Eagle``; the first layer has no norm before attention."""

    def __init__(self, network: Eagle, rngs: nnx.Rngs):
        c, epsilon = network.config, network.config.block.epsilon
        self.embedding = weight(rngs, (c.vocab_size, c.width), c.width)
        self.fc, self.fc_bias = (
            weight(rngs, (c.width, 2 * c.width), 2 * c.width),
            bias((c.width,), network.fc_bias),
        )
        self.embedding_norm = RMSNorm(c.width, epsilon) if network.norm_inputs else None
        self.hidden_norm = RMSNorm(c.width, epsilon) if network.norm_inputs else None
        self.layers = nnx.List([Layer(c, rngs) for _ in range(c.num_layers)])
        self.layers[0].attention_norm = None
        self.final_norm = RMSNorm(c.width, epsilon) if network.norm_output else None
        self.head, self.index = weight(rngs, (network.scored, c.width), c.width), index_of(network)
        self.config = c

    def run(
        self, f: Array, tokens: Array, positions: Array, cache: Cache, attend: Attend, depth: Any
    ) -> tuple[Array, Cache]:
        """Run pairs: f̂ [D, B, T]."""
        embedding = embedded(self.embedding, tokens)
        if self.embedding_norm is not None and self.hidden_norm is not None:
            embedding, f = self.embedding_norm(embedding), self.hidden_norm(f)
        u = product("dc,cbt->dbt", self.fc[...], jnp.concatenate([embedding, f]))
        u = u if self.fc_bias is None else u + self.fc_bias[...][:, None, None]

        def heads(layer: Layer, x: Array, turn: Callable) -> tuple[Array, Array, Array]:
            return layer.attention.heads(x, turn)

        return run_layers(self.layers, self.config, u, positions, cache, attend, heads)

    def own_logits(self, x: Array, depth: Any) -> Array:
        """Return logits [V_d, B, T]."""
        return scores(self.head[...], x if self.final_norm is None else self.final_norm(x))
