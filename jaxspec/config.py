"""Static configuration: frozen, hashable, never traced."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DecoderConfig:
    """Shape of a decoder-only transformer (RMS norms, rotary positions, grouped queries, gated SiLU, tied head).

    Attributes:
        vocab_size: rows of the embedding V.
        width: features of the residual stream D.
        num_layers: N.
        num_heads: query heads H.
        num_kv_heads: key-value heads G; H / G queries share one.
        head_size: features of one head.
        hidden: features inside the gated block F.
        rope_theta: base of the rotary frequencies.
        norm_epsilon: added to the mean square.
    """

    vocab_size: int
    width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    hidden: int
    rope_theta: float = 10_000.0
    norm_epsilon: float = 1e-5

    def __post_init__(self) -> None:
        for name in ("vocab_size", "width", "num_layers", "num_heads", "num_kv_heads", "head_size", "hidden"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} >= 1, got {getattr(self, name)}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"expected num_heads divisible by num_kv_heads, got {self.num_heads} and {self.num_kv_heads}"
            )
        if self.head_size % 2:
            raise ValueError(f"expected an even head_size (rotary pairs), got {self.head_size}")
