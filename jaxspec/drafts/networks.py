"""What a draft runs: from tokens, and what comes with them, to logits, over a key-value cache of its own.

A draft that reads hidden states of the target runs pairs: the token at position t + 1 comes with the feature at t, in
row t of the cache. A language model runs tokens alone, in the row of their own position.
"""

from dataclasses import dataclass
from typing import Any

from jaxspec.models.base import Array, Attend, Cache, Network, Params
from jaxspec.models.config import DecoderConfig
from jaxspec.verify.features import Features, Reads


class DraftNetwork:
    """One forward pass of a draft; a frozen dataclass, static in compiled programs.

    What comes with a token (``inputs``) is an array [D', B, T], () for nothing. The methods are pure functions of the
    draft's parameters; T tokens of a sequence may belong to different branches or nodes.
    """

    #: Hidden states of the target that it reads.
    reads: Reads
    #: Positions between a token and its row: 1 for pairs, 0 for tokens alone.
    lag: int
    #: Most tokens behind a root, for one that has a head for each; None: any number.
    depth: int | None
    #: Sizes of the layers that have rows; None without any.
    config: DecoderConfig | None

    #: Whether ``fuse`` also takes features up to an exit alone, and guesses the others.
    imputes = False

    def fusion_of(self, params: Params) -> Params:
        """Return the part of the parameters that ``fuse`` needs."""
        return params.get("fusion", {})

    def fuse(self, fusion: Params, features: Features) -> Array:
        """Return what comes with the tokens behind the positions of ``features`` [B, T, D]: [B, T, D'].

        It runs on the target's side, with the part ``fusion`` of the parameters.
        """
        raise NotImplementedError

    def run(
        self, params: Params, inputs: Any, tokens: Array, positions: Array, cache: Cache, attend: Attend, depth: Any
    ) -> tuple[Array, Cache]:
        """Run tokens [B, T] in rows ``positions`` [B, T], ``depth`` tokens behind a root: x [D'', B, T] and the cache.

        ``inputs`` are features of the target at depth 0, behind that what ``following`` returned.
        """
        raise NotImplementedError

    def logits(self, params: Params, x: Array, depth: Any) -> Array:
        """Return logits over the target's vocabulary for the token behind each of x: [V, B, T]."""
        raise NotImplementedError

    def following(self, params: Params, x: Array) -> Any:
        """Return what comes with the token behind each of x; the draft's own guess at the target's feature."""
        return x

    def guessed(self, inputs: Array) -> Array:
        """Return what stands in for a feature of the target, of what ``following`` returned."""
        return inputs


@dataclass(frozen=True)
class TokensOnly(DraftNetwork):
    """A language model."""

    network: Network
    reads, lag, depth, config = Reads(), 0, None, None

    def run(
        self, params: Params, inputs: Any, tokens: Array, positions: Array, cache: Cache, attend: Attend, depth: Any
    ) -> tuple[Array, Cache]:
        """Run all layers."""
        x, layers = self.network.embed(params, tokens), range(self.network.config.num_layers)
        return self.network.blocks(params, x, positions, cache, attend, layers)

    def logits(self, params: Params, x: Array, depth: Any) -> Array:
        """Apply its head."""
        return self.network.logits(params, x)

    def following(self, params: Params, x: Array) -> tuple[()]:
        """Return nothing: it runs tokens alone."""
        return ()
