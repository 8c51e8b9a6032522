"""Static configuration of a decoder: frozen, hashable, never traced."""

from dataclasses import dataclass, fields, is_dataclass, replace
from numbers import Integral, Real
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from jaxspec.models.rotary import Rotary

Built = TypeVar("Built")


@dataclass(frozen=True)
class Scores:
    """Attention weights: softmax(cap·tanh(scale·q·kᵀ / cap)) over the last ``window`` positions.

    Attributes:
        scale: factor of q·kᵀ; default 1/√head_size.
        softcap: the cap; default: none.
        window: number of positions attended to, including the query's own; default: all.
        sinks: whether the softmax also runs over a learned logit of every head, whose share of the weights is dropped.
    """

    scale: float | None = None
    softcap: float | None = None
    window: int | None = None
    sinks: bool = False


@dataclass(frozen=True)
class Attention:
    """Settings of the attention blocks.

    Attributes:
        rotary: rotary positions; None: learned positions.
        local_rotary: rotary positions of layers with a window, if they differ.
        scores: attention weights in layers without a window.
        window: sliding window of the windowed layers.
        windowed: which layers have it; empty: all, if there is a window.
        unrotated: which layers have no rotary positions; empty: none.
        qkv_bias: whether the projections of queries, keys and values have biases.
        out_bias: whether the output projection has a bias.
        norm_heads: RMS norms of every query and key head, before rotation; "together": of all query heads as one, and
            of all key heads.
    """

    rotary: Rotary | None = Rotary()
    local_rotary: Rotary | None = None
    scores: Scores = Scores()
    window: int | None = None
    windowed: tuple[bool, ...] = ()
    unrotated: tuple[bool, ...] = ()
    qkv_bias: bool = False
    out_bias: bool = False
    norm_heads: Literal[False, True, "together"] = False

    def is_windowed(self, layer: int) -> bool:
        """Return whether a layer attends to a sliding window only."""
        return self.window is not None and (not self.windowed or self.windowed[layer])

    def scores_of(self, layer: int) -> Scores:
        """Return the attention weights of one layer."""
        return replace(self.scores, window=self.window if self.is_windowed(layer) else None)

    def rotary_of(self, layer: int) -> Rotary | None:
        """Return the rotary positions of one layer."""
        if self.unrotated and self.unrotated[layer]:
            return None
        return self.local_rotary if self.local_rotary and self.is_windowed(layer) else self.rotary


@dataclass(frozen=True)
class ClampedGate:
    """g·σ(slope·g)·(u + 1), with g at most ``limit`` and u between −limit and limit; instead of activation(g)·u."""

    slope: float
    limit: float


@dataclass(frozen=True)
class Block:
    """Settings of the residual blocks.

    Attributes:
        layer_norm: layer norms with biases instead of RMS norms.
        epsilon: added to the mean square or variance.
        norms: "before": x + f(norm(x)); "around": x + norm(f(norm(x))); "output": x + norm(f(x)); "after":
            norm(x + f(x)).
        activation: name in ``layers.ACTIVATIONS``.
        gated: activation(gate) · up instead of activation(up).
        bias: whether the two projections have biases.
        residual_scale: factor of what attention and feed-forward add to the residual stream; default: 1.
        clamped: a gate of another form than activation(gate) · up; default: none.
        parallel: whether the feed-forward block reads what attention read, instead of the stream after attention.
    """

    layer_norm: bool = False
    epsilon: float = 1e-5
    norms: Literal["before", "around", "output", "after"] = "before"
    activation: str = "silu"
    gated: bool = True
    bias: bool = False
    residual_scale: float | None = None
    clamped: ClampedGate | None = None
    parallel: bool = False


@dataclass(frozen=True)
class Experts:
    """A mixture of experts in place of a layer's feed-forward block.

    Attributes:
        count: number of experts E.
        top_k: experts that are computed for each token k, the likeliest ones.
        hidden: features inside one expert.
        renormalised: whether the probabilities of the k experts are divided by their sum.
        shared_hidden: features inside the expert of all tokens, which has a sigmoid gate; default: there is none.
        dense: which layers have an ordinary feed-forward block; empty: none.
        router_bias: whether the router has a bias.
    """

    count: int
    top_k: int
    hidden: int
    renormalised: bool = True
    shared_hidden: int | None = None
    dense: tuple[bool, ...] = ()
    router_bias: bool = False

    def is_dense(self, layer: int) -> bool:
        """Return whether a layer has an ordinary feed-forward block."""
        return bool(self.dense) and self.dense[layer]


@dataclass(frozen=True)
class Ends:
    """Settings of embedding and head.

    Attributes:
        tied: the head is the embedding.
        embedding_scale: factor of embedded tokens; default √width.
        embedding_size: features of an embedding, if fewer than ``width``; projected in and out.
        positions: rows of a learned table of positions, added to embedded tokens.
        final_norm: whether there is a norm before the head.
        softcap: cap·tanh(logits / cap); default: none.
        logit_scale: factor of the logits; default: 1.
        head_tokens: number of tokens that the head scores, if fewer than all; the others get −∞. Not with ``tied``.
    """

    tied: bool = True
    embedding_scale: float | None = None
    embedding_size: int | None = None
    positions: int | None = None
    final_norm: bool = True
    softcap: float | None = None
    logit_scale: float | None = None
    head_tokens: int | None = None


@dataclass(frozen=True)
class Tracks:
    """Parallel narrow decoders that are summed at the ends of segments only: x ← x + Σ_t (h_t − x).

    Heads and hidden units of every layer are divided among the tracks. In a segment, track t starts from h_t = x and
    uses only its own updates. With one track per device that needs one all-reduce per segment; tensor parallelism needs
    two per layer. Parameters have the shapes of a model without tracks, but compute another function, on every mesh.

    Source: Mirror-SD (arXiv 2510.13161), the sharding of drafts; sync-point drop (arXiv 2502.20727).

    Attributes:
        count: number of tracks; 1 is the model without tracks.
        segments: number of segments, of equal depth.
    """

    count: int
    segments: int = 2

    def meetings(self, num_layers: int) -> tuple[int, ...]:
        """Return the layer counts after which all tracks have the same x: 0, and the ends of the segments."""
        return tuple(range(0, num_layers + 1, num_layers // self.segments))


@dataclass(frozen=True)
class DecoderConfig:
    """A decoder-only transformer; the defaults are Llama's blocks with a tied head.

    A draft on several devices can run in tracks, one on each, with two all-reduces for a forward pass instead of two
    for each layer: ``DecoderConfig(32_000, 1024, 16, 16, 8, 64, 2816, tracks=Tracks(8))``. It is trained like any
    model; training can start from the parameters of a model without tracks.

    Attributes:
        vocab_size: rows of the embedding V.
        width: features of the residual stream D.
        num_layers: N.
        num_heads: query heads H.
        num_kv_heads: key-value heads G; H / G queries share one.
        head_size: features of one head.
        hidden: features inside the feed-forward block F.
        attention: options of attention that differ between families.
        block: options of a layer that differ between families.
        ends: options of embedding and head that differ between families.
        tracks: parallel tracks of the layers; default: none.
        experts: mixtures of experts in the layers; default: none.

    Raises:
        ValueError: a field of another type, a number outside its range, sizes that are not divisible, or tracks with
            blocks that do not add to the residual stream, or with experts.
    """

    vocab_size: int
    width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    hidden: int
    attention: Attention = Attention()
    block: Block = Block()
    ends: Ends = Ends()
    tracks: Tracks | None = None
    experts: Experts | None = None

    def __post_init__(self) -> None:
        _check_fields(self)
        ends = self.ends
        optional = {"window": self.attention.window, "embedding_size": ends.embedding_size}
        optional |= {"positions": ends.positions, "head_tokens": ends.head_tokens}
        for name, size in (vars(self) | optional).items():
            if isinstance(size, Integral) and int(size) < 1:
                raise ValueError(f"expected {name} >= 1, got {size}")
        if ends.head_tokens is not None and (ends.tied or ends.head_tokens >= self.vocab_size):
            raise ValueError(
                f"expected a head of its own (tied=False) that scores fewer than {self.vocab_size} tokens, got tied="
                f"{ends.tied} and {ends.head_tokens}"
            )
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"expected num_heads divisible by num_kv_heads, got {self.num_heads} and {self.num_kv_heads}"
            )
        if self.attention.rotary and self.head_size % 2:
            raise ValueError(f"expected an even head_size (rotary pairs), got {self.head_size}")
        if self.block.clamped and not self.block.gated:
            raise ValueError("expected blocks with a gate to clamp, got blocks without one (gated=False)")
        if self.block.parallel and self.block.norms == "after":
            raise ValueError('expected parallel blocks that add to the residual stream, got norms "after"')
        for name in ("windowed", "unrotated"):
            if (flags := getattr(self.attention, name)) and len(flags) != self.num_layers:
                raise ValueError(f"expected {name} for {self.num_layers} layers, got {len(flags)}")
        for rotary in filter(None, (self.attention.rotary, self.attention.local_rotary)):
            if not 0 < rotary.partial_factor <= 1 or int(self.head_size * rotary.partial_factor) % 2:
                raise ValueError(
                    f"expected a share of the head in (0, 1] with an even number of features rotated, got "
                    f"{rotary.partial_factor} of {self.head_size}"
                )
        if self.tracks is not None:
            _check_tracks(self, self.tracks)
        if self.experts is not None:
            _check_experts(self.experts, self.num_layers)

    @property
    def max_length(self) -> int | None:
        """Most tokens that the network can tell apart: rows of learned positions, or where rotary ones would change."""
        rotaries = self.attention.rotary, self.attention.local_rotary
        lengths = [self.ends.positions, *(rotary.max_length for rotary in rotaries if rotary)]
        return min((length for length in lengths if length), default=None)


def _check_fields(config: Any) -> None:
    for name, hint in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if is_dataclass(value):
            _check_fields(value)
        if not _fits(value, hint):
            raise ValueError(
                f"expected {name} of {type(config).__name__} to be {getattr(hint, '__name__', hint)} (whole numbers "
                f"below 2^31, others finite and above 0), got {value!r:.80}"
            )


def _fits(value: Any, hint: Any) -> bool:
    kind, choices = get_origin(hint), get_args(hint)
    if kind is UnionType:
        return any(_fits(value, choice) for choice in choices)
    if kind is Literal:
        return value in choices
    if kind is tuple:
        return isinstance(value, tuple) and all(_fits(part, choices[0]) for part in value)
    if hint in (int, float) and isinstance(value, bool):
        return False
    if hint is int:
        return isinstance(value, Integral) and abs(int(value)) < 2**31
    if hint is float:
        return isinstance(value, Real) and 0 < value < 1e300  # type: ignore[operator]
    return isinstance(value, hint)


def _check_tracks(config: DecoderConfig, tracks: Tracks) -> None:
    parts = {"num_kv_heads": tracks.count, "hidden": tracks.count, "num_layers": tracks.segments}
    if tracks.count < 1 or tracks.segments < 1:
        raise ValueError(f"expected tracks and segments >= 1, got {tracks.count} and {tracks.segments}")
    for name, by in parts.items():
        if getattr(config, name) % by:
            what = "segments" if name == "num_layers" else "tracks"
            raise ValueError(f"expected {name} divisible by {by} {what}, got {getattr(config, name)}; use fewer {what}")
    if config.experts is not None and tracks.count > 1:
        raise ValueError(
            "expected a model without experts under tracks, got a mixture of experts: its router would have to see "
            "what all tracks have added; use a mesh without tracks, which divides the experts"
        )
    if config.attention.norm_heads == "together" and tracks.count > 1:
        raise ValueError(
            "expected heads that are normed alone, or not, under tracks, got norms of all heads together, which no "
            "track has; use a mesh without tracks"
        )
    if config.block.norms == "after" and tracks.count > 1:
        raise ValueError(
            'expected blocks that add to the residual stream under tracks (norms "before" or "around"), got "after"'
        )


def _check_experts(experts: Experts, num_layers: int) -> None:
    for name in ("count", "hidden", "shared_hidden"):
        if (size := getattr(experts, name)) is not None and size < 1:
            raise ValueError(f"expected {name} of the experts >= 1, got {size}")
    if not 1 <= experts.top_k <= experts.count:
        raise ValueError(f"expected top_k from 1 to the {experts.count} experts there are, got {experts.top_k}")
    if experts.dense and len(experts.dense) != num_layers:
        raise ValueError(f"expected dense for {num_layers} layers, got {len(experts.dense)}")


def described(config: Any) -> str:
    """Return a configuration as text, fields with their default left out: so it stays when fields are added."""
    if not is_dataclass(config) or isinstance(config, type):
        return repr(config)
    values = {each.name: getattr(config, each.name) for each in fields(config)}
    own = [name for name, value in values.items() if value != type(config).__dataclass_fields__[name].default]
    return f"{type(config).__name__}({', '.join(f'{name}={described(values[name])}' for name in own)})"


def build(kind: type[Built], values: dict[str, Any]) -> Built:
    """Build a configuration from the result of ``dataclasses.asdict``, also after JSON.

    Raises:
        ValueError: not a dictionary, or a name that the configuration does not have.
    """
    hints = get_type_hints(kind)
    if not isinstance(values, dict):
        raise ValueError(f"expected names of {kind.__name__} ({', '.join(hints)}), got {values!r:.80}")
    if unknown := sorted(set(values) - set(hints)):
        raise ValueError(f"expected names of {kind.__name__} ({', '.join(hints)}), got {', '.join(unknown)}")
    return kind(**{name: _value(hints[name], value) for name, value in values.items()})


def _value(hint: Any, value: Any) -> Any:
    if isinstance(value, list):
        return tuple(value)
    if not isinstance(value, dict):
        return value
    choices = [choice for choice in (hint, *get_args(hint)) if is_dataclass(choice)]
    fitting = [choice for choice in choices if {field.name for field in fields(choice)} == set(value)]
    return build((fitting or choices)[0], value)  # type: ignore[arg-type]
