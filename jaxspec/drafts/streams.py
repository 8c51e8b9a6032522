"""Speculative streaming: a draft that guesses several tokens ahead in the pass that gives the next one.

Stream j of a token starts from the main stream's hidden state after ``start`` layers and runs the other layers along
with it: s_j = h + e_j + U_j·V_j·h. It attends to what the main stream sees there and to streams 1..j of its own token,
has a position j higher, and its logits, through the same head, are a guess at the token j positions behind the next
one. The main stream never attends to a stream, so its tokens are those of the plain draft.

Source: Bhendawade et al., Speculative Streaming (arXiv 2402.11131), §3; Mirror-SD (arXiv 2510.13161), §3. The low-rank
map, which makes streams useful while the draft itself stays frozen, is ours.
"""

from dataclasses import dataclass
from typing import Any

import jax

from jaxspec.drafts import _lookahead as lookahead
from jaxspec.drafts._branches import scratch_of
from jaxspec.drafts._streaming import StreamingNetwork, causal_streams, forward, init_streams, streaming_network
from jaxspec.drafts.plain import Plain
from jaxspec.drafts.proposer import Proposer
from jaxspec.drafts.records import Branches, BranchSlots, Pending
from jaxspec.models.base import Cache, Model, Network, Params
from jaxspec.models.vocabulary import check_language_model, unfitted

__all__ = [
    "Streams",
    "StreamingNetwork",
    "causal_streams",
    "check_no_streams",
    "describe",
    "forward",
    "init_streams",
    "like",
    "limited",
    "num_streams",
    "streaming",
    "streaming_network",
]


@dataclass(frozen=True)
class Streams(Plain):
    """A streaming draft: the plain draft's windows in fewer passes."""

    network: StreamingNetwork

    def roll(
        self,
        params: Params,
        cache: Cache,
        roots: Pending,
        window: int,
        proposer: Proposer,
        pending: Pending | None = None,
        slots: BranchSlots | None = None,
    ) -> tuple[Branches, Cache]:
        """Do as ``Plain.roll`` in J ≤ γ passes; the scratch is laid out alike."""
        scratch = scratch_of(cache, roots.token.shape[1], window, slots)
        return lookahead.rollout(lookahead.RolloutTask(self.network, params, roots, proposer, scratch), cache, pending)


def streaming(draft: Model, count: int = 2, *, start: int | None = None, rank: int = 32, seed: int = 0) -> Model:
    """Make a streaming draft from a plain one; its main stream is that draft, its streams are to be trained.

    Args:
        draft: the plain draft; its parameters are shared, not copied.
        count: lookahead streams.
        start: layers below the streams; default half of the draft's.
        rank: of the map with which a stream starts.
        seed: of the new parameters.

    Raises:
        ValueError: a draft of another kind or one that has streams already, a count or rank below 1, a start outside
            the draft.
    """
    check_language_model(draft, "to give streams")
    draft = unfitted(draft)
    config = draft.network.config
    check_no_streams(draft, "", "the draft that it was made from")
    start = config.num_layers // 2 if start is None else start
    if count < 1 or rank < 1 or not 0 <= start < config.num_layers:
        raise ValueError(
            f"expected count >= 1, rank >= 1 and 0 <= start < {config.num_layers} (layers of the draft), got {count}, "
            f"{rank} and {start}"
        )
    if config.tracks is not None and start not in config.tracks.meetings(config.num_layers):
        raise ValueError(
            f"expected streams to start where tracks meet, {config.tracks.meetings(config.num_layers)}, got {start}"
        )
    own = init_streams(config, count, rank, jax.random.key(seed))
    return Model(streaming_network(draft.network, count, start), {"draft": draft.params, "streams": own}, draft.text)


def num_streams(network: Network) -> int:
    """Return the number of lookahead streams of a network; 0 for a plain one."""
    return network.count if isinstance(network, StreamingNetwork) else 0


def check_no_streams(model: Model, use: str, instead: str = "jaxspec.drafts.limited(model, 0)") -> None:
    """Raise ValueError for a model with streams; ``use`` says what for, ``instead`` what to pass."""
    if num_streams(model.network):
        raise ValueError(f"expected a plain draft{use}, got one with streams; pass {instead}")


def describe(model: Model) -> dict[str, Any] | None:
    """Return what ``like`` needs to know of a model's streams; None without any."""
    if not isinstance(model.network, StreamingNetwork):
        return None
    reduce, network = model.params["streams"]["reduce"], model.network
    return {"count": network.count, "start": network.start, "rank": reduce.shape[1], "dtype": reduce.dtype.name}


def like(draft: Network, params: Params, count: int, start: int, rank: int, dtype: str) -> tuple[Network, Params]:
    """Return the streaming network over a plain one, and the shapes of its parameters."""
    own = jax.eval_shape(lambda: init_streams(draft.config, count, rank, jax.random.key(0)))
    own = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), own)
    return streaming_network(draft, count, start), {"draft": params, "streams": own}


def limited(draft: Model, count: int) -> Model:
    """Return a streaming draft with no more than its first ``count`` streams; 0: the plain draft.

    Raises:
        ValueError: more streams than it has, or a draft of another kind.
    """
    check_language_model(draft, "to limit its streams")
    network, most = draft.network, num_streams(draft.network)
    if not 0 <= count <= most:
        raise ValueError(
            f"expected 0 to {most} streams, as many as the draft has, got {count}; jaxspec.streaming makes streams, "
            "jaxspec.training.fit_streams trains them"
        )
    if not isinstance(network, StreamingNetwork):
        return draft
    if count == 0:
        return Model(network.plain, draft.params["draft"], draft.text)
    own = jax.tree.map(lambda leaf: leaf[:count], draft.params["streams"])
    params = {"draft": draft.params["draft"], "streams": own}
    return Model(streaming_network(network.plain, count, network.start), params, draft.text)
