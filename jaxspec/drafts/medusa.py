"""Medusa: heads that read the target's last hidden state, each for a token further ahead.

Head i predicts the token i + 2 positions behind that of f: h ← h + SiLU(W_i·h + b_i), n times from h = f; logits_i =
U_i·h. What it predicts does not depend on the tokens between.

Source: Cai et al., Medusa (arXiv 2401.10774). Its typical acceptance is not here: it changes the output's distribution.
"""

from dataclasses import dataclass

import jax
from flax import nnx

from jaxspec.drafts.modules import Fusion, ModuleNetwork, index_of, scores
from jaxspec.models.base import Array, Attend, Cache
from jaxspec.models.layers import bias, weight
from jaxspec.models.products import product
from jaxspec.verify.features import Reads


@dataclass(frozen=True)
class Medusa(ModuleNetwork):
    """The network of Medusa's heads; static.

    Attributes:
        num_tokens: V.
        target_width: D.
        depth: K, heads.
        blocks: residual blocks of a head, each with weights of its own.
        repeats: times that each is applied.
        fc_bias: whether they have biases.
        shared_head: whether all U_i are one, the target's head.
        reads: one stream of the target, its final hidden state by default.
        norm_inputs: an RMS norm of that stream, for one that the target does not norm.
        head_tokens: V_d, tokens that the heads score; None: all.
    """

    num_tokens: int
    target_width: int
    depth: int
    blocks: int = 1
    repeats: int = 1
    fc_bias: bool = True
    shared_head: bool = False
    reads: Reads = Reads(final=True)
    norm_inputs: bool = False
    head_tokens: int | None = None
    lag, config = 1, None

    def module(self, rngs: nnx.Rngs) -> "MedusaModule":
        """Return the module."""
        return MedusaModule(self, rngs)

    @property
    def fusion(self) -> Fusion:
        """The stream, with a norm for one that the target does not norm."""
        return Fusion(1, self.target_width, norm_all=self.norm_inputs)


class Affine(nnx.Module):
    """W·x + b."""

    def __init__(self, inputs: int, width: int, has_bias: bool, rngs: nnx.Rngs):
        self.weight, self.bias = weight(rngs, (width, inputs), inputs), bias((width,), has_bias)

    def __call__(self, x: Array) -> Array:
        """Return W·x + b for x [D, B, T]."""
        y = product("dc,cbt->dbt", self.weight[...], x)
        return y if self.bias is None else y + self.bias[...][:, None, None]


class MedusaModule(nnx.Module):
    """Parameters of ``Medusa``: blocks by head, and output heads."""

    def __init__(self, network: Medusa, rngs: nnx.Rngs):
        width, heads = network.target_width, 1 if network.shared_head else network.depth
        self.fusion = network.fusion.module(rngs)
        one = lambda: Affine(width, width, network.fc_bias, rngs)  # noqa: E731
        self.blocks = nnx.List([nnx.List([one() for _ in range(network.blocks)]) for _ in range(network.depth)])
        self.heads = nnx.List([weight(rngs, (network.scored, width), width) for _ in range(heads)])
        self.index, self.network = index_of(network), network

    def run(
        self, f: Array, tokens: Array, positions: Array, cache: Cache, attend: Attend, depth: int
    ) -> tuple[Array, Cache]:
        """Return f: nothing depends on the tokens."""
        return f, cache

    def own_logits(self, h: Array, number: int) -> Array:
        """Return the logits [V_d, B, T] of one head."""
        for block in self.blocks[number]:
            for _ in range(self.network.repeats):
                h = h + jax.nn.silu(block(h))
        return scores(self.heads[0 if self.network.shared_head else number][...], h)
