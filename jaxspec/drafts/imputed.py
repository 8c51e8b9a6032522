"""A draft whose target guesses hidden states above the exit from that at the exit: r_i ≈ A_i·r_e + b_i.

Under Mirror-SD a draft that reads above the exit then gets a feature of every position with the exit's message, in
place of its own output; the true ones follow with the verdict. ``jaxspec.training.fit_imputation`` fits the maps.
"""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from jaxspec.drafts.networks import DraftNetwork
from jaxspec.models.base import Array, Attend, Cache, Params
from jaxspec.models.config import DecoderConfig
from jaxspec.verify.features import Features, Reads

#: Name of the maps among a draft's parameters.
MAPS = "imputation"


@dataclass(frozen=True)
class Imputed(DraftNetwork):
    """A network that reads hidden states, and affine maps from an exit's to those above it; static.

    Parameters are the network's, and under ``imputation`` a pair (A [D, D], b [D]) for each hidden state above the
    exit, in the order of taps, the final one last.

    Attributes:
        network: reads hidden states.
        exit_layer: ℓₑ.
    """

    network: Any
    exit_layer: int
    imputes = True

    @property
    def reads(self) -> Reads:  # type: ignore[override]
        """What the network reads, and the hidden state at the exit."""
        own = self.network.reads
        return own._replace(taps=tuple(sorted({*own.taps, self.exit_layer})))

    @property
    def lag(self) -> int:  # type: ignore[override]
        """The network's."""
        return self.network.lag

    @property
    def depth(self) -> int | None:  # type: ignore[override]
        """The network's."""
        return self.network.depth

    @property
    def config(self) -> DecoderConfig | None:  # type: ignore[override]
        """The network's."""
        return self.network.config

    @property
    def num_tokens(self) -> int:
        """V."""
        return self.network.num_tokens

    @property
    def target_width(self) -> int:
        """D."""
        return self.network.target_width

    def own(self, params: Params) -> Params:
        """Return the network's parameters."""
        return {name: part for name, part in params.items() if name != MAPS}

    def fusion_of(self, params: Params) -> Params:
        """Return the network's part, and the maps."""
        return self.network.fusion_of(self.own(params)), params[MAPS]

    def fuse(self, fusion: Params, features: Features) -> Array:
        """Fuse the true hidden states, or guesses at those that have not arrived."""
        fusion, maps = fusion
        source = features.taps[self.reads.taps.index(self.exit_layer)]
        guesses = iter([jnp.einsum("de,bte->btd", matrix, source) + offset[None, None] for matrix, offset in maps])
        found = dict(zip(self.reads.taps, features.taps, strict=True))
        late = {tap: next(guesses) for tap in self.network.reads.taps if tap > self.exit_layer}
        taps = tuple(late[tap] if found[tap] is None else found[tap] for tap in self.network.reads.taps)
        final = next(guesses) if self.network.reads.final and features.final is None else features.final
        return self.network.fuse(fusion, Features(taps, final))

    def run(
        self, params: Params, inputs: Any, tokens: Array, positions: Array, cache: Cache, attend: Attend, depth: Any
    ) -> tuple[Array, Cache]:
        """Run the network."""
        return self.network.run(self.own(params), inputs, tokens, positions, cache, attend, depth)

    def logits(self, params: Params, x: Array, depth: Any) -> Array:
        """Return the network's logits."""
        return self.network.logits(self.own(params), x, depth)

    def following(self, params: Params, x: Array) -> Any:
        """Return the network's."""
        return self.network.following(self.own(params), x)

    def guessed(self, inputs: Array) -> Array:
        """Return the network's."""
        return self.network.guessed(inputs)
