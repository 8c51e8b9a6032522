"""The drafter over a network that reads hidden states of the target: EAGLE, Medusa, Hydra and others alike.

Pairs of the committed text are run with the target's own features. Tokens that the target has not run yet are paired
with what the draft's network guesses, and run again once their features are there.
"""

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxspec.drafts._branches import scratch_of
from jaxspec.drafts._grow import GrowTask
from jaxspec.drafts._roll import RollTask, roll, row_of
from jaxspec.drafts.base import Drafter
from jaxspec.drafts.networks import DraftNetwork
from jaxspec.drafts.proposer import Proposer
from jaxspec.drafts.records import Along, Branches, BranchSlots, Drafted, Pending, Verification
from jaxspec.drafts.trees import TreePolicy
from jaxspec.models.attention import cached, in_chunks, init_cache, keep_path, with_tree, write
from jaxspec.models.base import Array, Cache, Network, Params
from jaxspec.verify.features import Reader, Reads
from jaxspec.verify.message import Message, Roots
from jaxspec.verify.target import Request


class Recent(NamedTuple):
    """Pairs of the last committed tokens, with the target's features.

    Attributes:
        tokens: behind the first ``number`` anything: [B, K].
        inputs: features: [D', B, K].
        row: of the first pair, −1 if there is none (the first token of a text): [B].
        number: of the first ones that are committed: [B].
    """

    tokens: Array
    inputs: Array
    row: Array
    number: Array

    @classmethod
    def of(cls, root: Pending, feature: Array) -> "Recent":
        """Return the pair of the newest token [B] alone, with its feature [D', B, 1]."""
        return cls(root.token[:, None], feature, root.position - 1, jnp.ones_like(root.position))

    @property
    def newest(self) -> Array:
        """What comes with the newest token: [D', B, 1]."""
        return _at(self.inputs, self.number[:, None] - 1)

    def but_last(self) -> Along | None:
        """Return them without the very last one, to be run along with it."""
        if self.tokens.shape[1] == 1:
            return None
        rows = self.row[:, None] + jnp.arange(self.tokens.shape[1] - 1)[None]
        return Along(self.tokens[:, :-1], rows, self.inputs[:, :, :-1])

    def then(self, window: Array, inputs: Array) -> tuple[Along, Array]:
        """Return them with a window's pairs behind, and the index [B] of the last one before the window."""
        size, more = self.tokens.shape[1], window.shape[1]
        tokens, inputs = jnp.concatenate([self.tokens, window], axis=1), jnp.concatenate([self.inputs, inputs], axis=2)
        # A text of one token has no pair: all move up by one.
        none = jnp.minimum(self.row, 0)
        order = jnp.arange(size + more)[None] - none[:, None]
        index = jnp.where(order < self.number[:, None], order, order - self.number[:, None] + size)
        index = jnp.minimum(index, size + more - 1)
        rows = jnp.maximum(self.row, 0)[:, None] + jnp.arange(size + more)[None]
        along = Along(
            jnp.take_along_axis(tokens, index, axis=1), rows, jnp.take_along_axis(inputs, index[None], axis=2)
        )
        return along, self.number - 1 + none


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FeatureState:
    """The state of a draft that reads features.

    Attributes:
        cache: rows of all committed pairs but ``recent``.
        recent: the last committed pairs, which may not have been run yet; the last of them is the newest token's.
        guesses: the draft's own features at that token and each of the window, 0 at the last one until it has been run:
            [D', B, γ+1].
        holds: what the window's rows are made of: "nothing", "guesses" or "features"; static.
    """

    cache: Cache
    recent: Recent
    guesses: Array | None = None
    holds: str = field(default="nothing", metadata={"static": True})


@dataclass(frozen=True)
class FeatureDrafter(Drafter):
    """A network that reads hidden states of the target."""

    network: DraftNetwork

    @property
    def reads(self) -> Reads:  # type: ignore[override]
        """What the network reads."""
        return self.network.reads

    @property
    def max_window(self) -> int | None:  # type: ignore[override]
        """One token for each head, if the network has a head for each."""
        return self.network.depth

    def reader(self) -> Reader:
        """Return the network's fusion, which runs on the target's side."""
        return Reader(self.reads, self.network.fuse, self.network.imputes)

    def fusion(self, params: Params) -> Params:
        """Return its parameters."""
        return self.network.fusion_of(params)

    def for_target(self, target: Network) -> "FeatureDrafter":
        """Check that the target has the network's width and vocabulary."""
        own = self.network.target_width, self.network.num_tokens  # type: ignore[attr-defined]
        config = target.config
        if own != (config.width, config.vocab_size):
            raise ValueError(
                f"expected a target of width {own[0]} and {own[1]} tokens, for which the draft was made, got "
                f"{config.width} and {config.vocab_size}; pass the target that the draft was trained on"
            )
        return self

    def begin(self, params: Params, request: Request, features: Any, capacity: int, scratch: int) -> FeatureState:
        """Run the pairs of the prompts, whose fused features are [B, P, D']."""
        network, lengths, fused = self.network, request.lengths, _feature_major(features)
        tokens, config = jnp.pad(request.tokens[:, 1:], ((0, 0), (0, 1))), network.config
        # A pass may write rows behind the last one of a text: as many again as its branches have.
        cache = () if config is None else init_cache(config, len(tokens), capacity + 2 * scratch, fused.dtype)

        def run(cache: Cache, pairs: tuple[Array, Array], start: Array) -> tuple[Cache, tuple[()]]:
            rows = start + jnp.broadcast_to(jnp.arange(pairs[0].shape[1])[None], pairs[0].shape)
            return network.run(params, _feature_major(pairs[1]), pairs[0], rows, cache, cached(rows, start), 0)[1], ()

        cache, _ = in_chunks(run, cache, (tokens, features))
        feature = _at(fused, jnp.maximum(lengths - 2, 0)[:, None])
        feature = jnp.where(lengths[None, :, None] > 1, feature, 0)
        root = jnp.take_along_axis(request.tokens, lengths[:, None] - 1, axis=1)[:, 0]
        return FeatureState(cache, Recent.of(Pending(root, lengths - 1), feature))

    def absorb(self, params: Params, state: FeatureState, verified: Verification) -> FeatureState:
        """Note the committed pairs; their rows are made by the next pass unless they are there."""
        assert verified.features is not None
        assert verified.num_accepted is not None
        assert verified.next_token is not None
        accepted = verified.num_accepted
        fused = _feature_major(verified.features)
        if state.holds == "features":
            root = Pending(verified.next_token, verified.position + accepted + 1)
            return FeatureState(state.cache, Recent.of(root, _at(fused, accepted[:, None])))
        window = jnp.pad(jnp.maximum(verified.window, 0), ((0, 0), (0, 1)))
        is_next = jnp.arange(fused.shape[2])[None] == accepted[:, None]
        tokens = jnp.where(is_next, verified.next_token[:, None], window)
        return FeatureState(state.cache, Recent(tokens, fused, verified.position, accepted + 1))

    def propose(
        self, params: Params, state: FeatureState, root: Pending, window: int, proposer: Proposer
    ) -> tuple[Drafted, FeatureState]:
        """Draft one branch; of its rows only that of the root, whose pair is committed, is kept."""
        at = Pending(root.token[:, None], root.position[:, None])
        feature = state.recent.newest
        task = RollTask(self.network, params, at, feature, window, proposer)
        branches, cache = roll(task, state.cache, state.recent.but_last())
        first, row = scratch_of(cache, 1, window, None).start, row_of(self.network, root.position)
        cache = jax.tree.map(lambda rows: write(rows, rows[:, :, first : first + 1], row), cache)
        return self.take(state, branches, jnp.zeros_like(root.token)), FeatureState(cache, Recent.of(root, feature))

    def commit(self, state: FeatureState, drafted: Drafted, position: Array) -> FeatureState:
        """Keep the draft's own features along the window."""
        own = jnp.transpose(drafted.rows[:, 0], (2, 0, 1))
        return replace(state, guesses=jnp.pad(own, ((0, 0), (0, 0), (0, 1))), holds="nothing")

    def foresee(
        self, params: Params, state: FeatureState, verified: Verification, proposer: Proposer
    ) -> tuple[Message, FeatureState]:
        """Run the window's pairs with the draft's own features."""
        state, logits = self._guessed(params, state, verified)
        assert verified.size is not None
        return proposer.others(logits, verified.position[:, None] + jnp.maximum(verified.size, 1)[:, None] + 1), state

    def rollout(
        self,
        params: Params,
        state: FeatureState,
        verified: Verification,
        roots: Roots,
        window: int,
        proposer: Proposer,
        slots: BranchSlots,
    ) -> tuple[Branches, FeatureState]:
        """Run the window's pairs, whose rows all branches share, and roll out the branches.

        With features that have arrived both begin in one pass; otherwise the draft's own stand in for them.
        """
        along, arrived = None, verified.features is not None
        if arrived:
            fused = _feature_major(verified.features)
            along, _ = state.recent.then(jnp.maximum(verified.window, 0), fused[:, :, :-1])
        else:
            if state.holds != "guesses":
                state, _ = self._guessed(params, state, verified)
            assert state.guesses is not None
            fused = state.guesses
        at, inputs = verified.starts(roots), _at(fused, roots.accepted)
        task = RollTask(self.network, params, at, inputs, window, proposer)
        branches, cache = roll(task, state.cache, along, slots)
        holds = "features" if arrived and not self.network.imputes else "guesses"
        return branches, replace(state, cache=cache, holds=holds)

    def grow(
        self, params: Params, state: FeatureState, root: Pending, policy: TreePolicy, proposer: Proposer
    ) -> tuple[Any, FeatureState]:
        """Grow a tree; of its rows only that of the root, whose pair is committed, is kept."""
        feature = state.recent.newest
        task = GrowTask(self.network, params, root, feature, proposer, state.recent.but_last())
        grown = policy.grow(task, with_tree(state.cache))
        only_root = jnp.zeros((len(root.token), 1), jnp.int32)
        cache = keep_path(grown.cache, row_of(self.network, root.position), only_root)
        return grown.drawn, FeatureState(cache, Recent.of(root, feature))

    def _guessed(self, params: Params, state: FeatureState, verified: Verification) -> tuple[FeatureState, Array]:
        """Run the window's pairs with the draft's own features; also return logits [V, B, 1] behind the window."""
        assert state.guesses is not None
        assert verified.size is not None
        network, window = self.network, verified.window.shape[1]
        along, last = state.recent.then(jnp.maximum(verified.window, 0), state.guesses[:, :, :window])
        x, cache = network.run(params, along.inputs, along.tokens, along.rows, state.cache, cached(along.rows), 0)
        logits = network.logits(params, _at(x, (last + jnp.maximum(verified.size, 1))[:, None]), 0)
        own = _at(
            network.guessed(network.following(params, x)), jnp.maximum(last[:, None] + jnp.arange(window + 1)[None], 0)
        )
        return replace(state, cache=cache, guesses=own, holds="guesses"), logits


def _feature_major(values: Array) -> Array:
    """Return values [B, T, D] as [D, B, T]."""
    return jnp.moveaxis(values, -1, 0)


def _at(values: Array, index: Array) -> Array:
    """Return values [D, B, T] at ``index`` [B, R] of each sequence: [D, B, R]."""
    return jnp.take_along_axis(values, index[None], axis=2)
