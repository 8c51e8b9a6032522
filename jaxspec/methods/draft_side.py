"""The draft's side of a step as three compiled programs: roll out its own candidates, the exit's candidates, select."""

from collections.abc import Callable
from dataclasses import is_dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxspec.devices.channel import unpack
from jaxspec.drafts.base import Drafter
from jaxspec.drafts.beginning import first_window
from jaxspec.drafts.ngram import CommittedText, committed, text_of
from jaxspec.drafts.proposer import Proposer
from jaxspec.drafts.records import Branches, BranchSlots, Drafted, Pending, Verification, Window, as_window
from jaxspec.methods.candidates import Policy
from jaxspec.methods.fallbacks import Fallback, Need
from jaxspec.models.base import Array, Params
from jaxspec.verify.acceptance import Acceptance
from jaxspec.verify.features import joined
from jaxspec.verify.message import Message, Roots, join, message_like, open_ended
from jaxspec.verify.sampling import SamplingArrays
from jaxspec.verify.seen import Seen
from jaxspec.verify.target import Request
from jaxspec.verify.verdict import Verdict, verdict_like


class Standing(NamedTuple):
    """The state of each sequence on the draft's mesh, beside the drafter's own.

    Attributes:
        window: the window under verification.
        own: the draft's own message along it, where the policy uses one: positions of the window alone.
        position: of the last committed token: [B].
        sampling: how tokens are drawn.
        seen: tokens of the committed text: marks [B, V].
        text: the committed text, where the fallback reads it.
    """

    window: Window
    own: Message | None
    position: Array
    sampling: SamplingArrays | None = None
    seen: Seen = Seen()
    text: CommittedText | None = None

    def verification(self, features: Any = None) -> Verification:
        """Return the window before its verdict; it may be a short one."""
        tokens = self.window.tokens
        return Verification(tokens, self.position, jnp.sum(tokens >= 0, axis=1), features=features)


class DraftState(NamedTuple):
    """The state on the draft's mesh: the drafter's, and that of the sequences."""

    drafter: Any
    standing: Standing


class DraftSide(NamedTuple):
    """What is fixed on the draft's side; static in its programs.

    Attributes:
        drafter: the draft.
        acceptance: the rule.
        policy: what is rolled out ahead.
        num_candidates: κ of the exit's message.
        fallback: what is drafted where no branch was right.
    """

    drafter: Drafter
    acceptance: Acceptance
    policy: Policy
    num_candidates: int
    fallback: Fallback

    def branches(self, window: int) -> tuple[int, int]:
        """Return the numbers of branches rolled out from the draft's own message, and from the exit's."""
        ahead = count_roots(self.policy.ahead, window, self.policy.num_candidates)
        return ahead, count_roots(self.policy.exit, window, self.num_candidates)

    @property
    def own_candidates(self) -> int:
        """κ of the draft's own message, 0 where the policy does not use it."""
        return self.policy.num_candidates if self.policy.uses_own else 0

    def proposer(self, standing: Standing, seen: Seen) -> Proposer:
        """Return how tokens are drawn after ``seen``."""
        return Proposer(self.acceptance, standing.sampling, seen, self.own_candidates)


def draft_begin(
    side: DraftSide, window: int, capacity: int, params: Params, request: Request, features: Any
) -> DraftState:
    """Run the prompts and draft the first window; rows for all branches are beside the ``capacity``."""
    branches = max(1, sum(side.branches(window)))
    fixed = window, capacity, branches, side.own_candidates
    first, own, state = first_window(side.drafter, side.acceptance, params, request, features, *fixed)
    text = text_of(request, capacity) if side.fallback.reads_text else None
    return DraftState(state, Standing(first, own, request.lengths - 1, request.sampling, request.seen, text))


def simplified(policy: Policy, drafter: Drafter, window: int, num_candidates: int) -> Policy:
    """Return the policy without a merge that nothing depends on: all candidates are rolled out, or no chance known."""
    if policy.merge is None:
        return policy
    all_rolled = (
        policy.ahead is None and count_roots(policy.exit, window, num_candidates) == (window + 1) * num_candidates
    )
    return replace(policy, merge=None) if all_rolled or not drafter.knows_chances else policy


def count_roots(ranking: Any, window: int, num_candidates: int) -> int:
    """Return R of a ranking; 0 without one."""
    if ranking is None:
        return 0
    return jax.eval_shape(ranking, message_like(1, window, num_candidates), None).tokens.shape[1]


class Rolled(NamedTuple):
    """Branches that were rolled out, and their roots."""

    roots: Roots
    branches: Branches


class Ahead(NamedTuple):
    """What the draft's side has before the exit's message: its own message, and branches that it rolled out."""

    own: Message
    rolled: Rolled


@partial(jax.jit, static_argnames="side", donate_argnames="state")
def draft_ahead(side: DraftSide, params: Params, state: Any, standing: Standing) -> tuple[Ahead, Any]:
    """Roll out the outcomes that the draft itself ranks highest."""
    assert side.policy.ahead is not None
    assert standing.own is not None
    verified = standing.verification()
    proposer = side.proposer(standing, standing.seen.along(verified.window).last())
    behind, state = side.drafter.foresee(params, state, verified, proposer)
    assert verified.size is not None
    own = join(standing.own, behind, verified.size)
    rolled, state = _rolled(side, params, state, standing, side.policy.ahead(own, None), None, verified)
    return Ahead(own, rolled), state


@partial(jax.jit, static_argnames="side", donate_argnames="state")
def draft_rollout(
    side: DraftSide,
    params: Params,
    state: Any,
    standing: Standing,
    ahead: Ahead | None,
    received: Array,
    features: Any,
) -> tuple[Rolled, Any]:
    """Rank the candidates of the packed message and roll out the best, beside what was rolled out ``ahead``."""
    assert side.policy.exit is not None
    (batch, window), verified = standing.window.tokens.shape, standing.verification(features)
    sent = unpack(received, message_like(batch, window, side.num_candidates))
    if side.policy.merge is not None:
        assert standing.own is not None
        assert verified.size is not None
        sent = side.policy.merge(sent, open_ended(standing.own, verified.size) if ahead is None else ahead.own)
    before = None if ahead is None else ahead.rolled
    roots = side.policy.exit(sent, None if before is None else before.roots)
    return _rolled(side, params, state, standing, roots, before, verified)


def _rolled(
    side: DraftSide,
    params: Params,
    state: Any,
    standing: Standing,
    roots: Roots,
    ahead: Rolled | None,
    verified: Verification,
) -> tuple[Rolled, Any]:
    """Roll out γ tokens from every root; return all branches so far."""
    window = verified.window.shape[1]
    before = standing.seen.along(verified.window).at(roots.accepted)
    proposer = side.proposer(standing, before).after(roots.tokens)
    slots = BranchSlots(0 if ahead is None else ahead.roots.tokens.shape[1], sum(side.branches(window)))
    branches, state = side.drafter.rollout(params, state, verified, roots, window, proposer, slots)
    new = Rolled(roots, branches)
    return new if ahead is None else _together(ahead, new), state


def _together(ahead: Rolled, new: Rolled) -> Rolled:
    """Return all branches."""
    scores = [each.branches.notes.scores for each in (ahead, new)]
    without = [
        each._replace(branches=each.branches._replace(notes=each.branches.notes._replace(scores=None)))
        for each in (ahead, new)
    ]
    both = jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), *without)
    notes = both.branches.notes._replace(scores=None if scores[0] is None else jnp.concatenate(scores, axis=2))
    return both._replace(branches=both.branches._replace(notes=notes))


@partial(jax.jit, static_argnames="side", donate_argnames="state")
def draft_select(
    side: DraftSide,
    params: Params,
    state: Any,
    standing: Standing,
    rolled: Rolled | None,
    received: Array,
    features: tuple[Any, Any] = (None, None),
) -> tuple[DraftState, Array]:
    """Make the branch that was right the next window; where none was, the fallback drafts one.

    Args:
        side: what is fixed.
        params: of the draft.
        state: of the drafter.
        standing: of the sequences.
        rolled: all branches.
        received: the packed verdict.
        features: what the target sent of its hidden states with the message, and with the verdict.

    Returns:
        The new state, and whether a branch was right: [B] bool.
    """
    drafter, window = side.drafter, standing.window.tokens
    verdict = unpack(received, verdict_like(window.shape[0]))
    verified = standing.verification(joined(*features))
    verified = verified._replace(num_accepted=verdict.num_accepted, next_token=verdict.next_token)
    seen = standing.seen.add(window, verdict.num_accepted)
    seen = seen.add(verdict.next_token[:, None], jnp.ones_like(verdict.position))
    text = None if standing.text is None else committed(standing.text, verified)
    state = drafter.absorb(params, state, verified)
    need = Need(Pending(verdict.next_token, verdict.position), side.proposer(standing, seen.as_branch()), text)
    again = partial(side.fallback, drafter, params, window=window.shape[1], need=need)
    if rolled is None:
        (following, state), reused = again(state=state), jnp.zeros(window.shape[0], bool)
        following = need.proposer.told(following)
    else:
        following, state, reused = _chosen(drafter, state, rolled, verdict, again, need.proposer)
    new, own = as_window(following)
    state = drafter.commit(state, following, verdict.position)
    return DraftState(state, Standing(new, own, verdict.position, standing.sampling, seen, text)), reused


def _chosen(
    drafter: Drafter,
    state: Any,
    rolled: Rolled,
    verdict: Verdict,
    again: Callable[..., tuple[Drafted, Any]],
    proposer: Proposer,
) -> tuple[Drafted, Any, Array]:
    """Return the windows of branches that were right, new ones elsewhere; the drafter's state; which were right."""
    roots, branches = rolled
    hit = (roots.accepted == verdict.num_accepted[:, None]) & (roots.tokens == verdict.next_token[:, None])
    reused, branch = jnp.any(hit, axis=1), proposer.told(drafter.take(state, branches, jnp.argmax(hit, axis=1)))

    def right(old: Array, new: Array) -> Array:
        return jnp.where(reused.reshape(-1, *(1,) * (old.ndim - 1)), old, new)

    def once(carried: tuple[Array, Drafted, Any]) -> tuple[Array, Drafted, Any]:
        drafted, new = again(state=_with_cache(state, carried[2]))
        return jnp.bool_(False), jax.tree.map(right, carried[1], proposer.told(drafted)), _cache_of(new)

    # A loop that is run once or never: XLA updates in place what a loop carries, and copies what a branch updates.
    carried = ~jnp.all(reused), branch, _cache_of(state)
    _, following, cache = jax.lax.while_loop(lambda carried: carried[0], once, carried)
    return following, _with_cache(state, cache), reused


def _cache_of(state: Any) -> Any:
    """Return the rows of a drafter that keeps any; those that a fallback adds are of committed tokens, or scratch."""
    return getattr(state, "cache", None) if is_dataclass(state) else None


def _with_cache(state: Any, cache: Any) -> Any:
    return state if cache is None else replace(state, cache=cache)
