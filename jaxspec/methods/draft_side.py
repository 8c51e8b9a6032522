"""The draft's side of a step as three compiled programs: roll out what it foresees, what the exit foresees, select."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxspec.devices.channel import unpack
from jaxspec.drafts.branches import Branches, Drafted, Pending, Proposer, take
from jaxspec.drafts.plain import Window, commit, extend, first_window, rollout
from jaxspec.methods.candidates import Policy
from jaxspec.methods.fallbacks import Fallback, Need, Text
from jaxspec.models.base import Array, Cache, Network, Params
from jaxspec.verify import Message, Roots, join, message_like
from jaxspec.verify.acceptance import Acceptance
from jaxspec.verify.sampling import SamplingArrays, mark_seen, seen_along
from jaxspec.verify.target import Request
from jaxspec.verify.verdict import Verdict, verdict_like


class Standing(NamedTuple):
    """Where the draft's side of each sequence stands.

    Attributes:
        window: the window under verification.
        likely: the draft's other candidates along it, where the policy asks for them.
        position: of the last committed token: [B].
        sampling: how tokens are drawn.
        seen: tokens of the committed text, [B, V] bool, where repetitions are penalised.
        text: the committed text, [B, S], where the fallback reads it.
    """

    window: Window
    likely: Message | None
    position: Array
    sampling: SamplingArrays | None
    seen: Array | None
    text: Array | None

    @property
    def size(self) -> Array:
        """Tokens of the window, which may be a short one: [B]."""
        return jnp.sum(self.window.tokens >= 0, axis=1)

    @property
    def pending(self) -> Pending:
        """The window's last token, whose row nothing has needed so far."""
        size = jnp.maximum(self.size, 1)
        last = jnp.take_along_axis(self.window.tokens, size[:, None] - 1, axis=1)[:, 0]
        return Pending(jnp.maximum(last, 0), self.position + size)


class DraftState(NamedTuple):
    """The draft mesh's side: its rows, and where it stands."""

    cache: Cache
    standing: Standing


class Drafter(NamedTuple):
    """What is fixed on the draft's side; static in its programs.

    Attributes:
        network: the draft.
        acceptance: the rule.
        policy: what is rolled out ahead.
        num_candidates: κ of the exit's message.
        fallback: what is drafted where no branch came true.
    """

    network: Network
    acceptance: Acceptance
    policy: Policy
    num_candidates: int
    fallback: Fallback

    def branches(self, window: int) -> tuple[int, int]:
        """Branches rolled out from the draft's own message, and from the exit's."""
        policy = self.policy
        ranked = (policy.ahead, policy.num_candidates), (policy.exit, self.num_candidates)
        ahead, later = (count_roots(ranking, window, kappa) for ranking, kappa in ranked)
        return ahead, later

    @property
    def own_candidates(self) -> int:
        """κ of the draft's own message, 0 where nobody asks for it."""
        return self.policy.num_candidates if self.policy.ahead else 0

    def proposer(self, standing: Standing, seen: Array | None) -> Proposer:
        """How tokens are drawn after ``seen``."""
        return Proposer(self.acceptance, standing.sampling, seen, self.own_candidates)


def draft_begin(side: Drafter, window: int, capacity: int, params: Params, request: Request) -> DraftState:
    """Runs the prompts and drafts the first window; rows for all branches are part of the cache's ``capacity``."""
    fixed = window, capacity, side.own_candidates
    first, others, cache = first_window(side.network, side.acceptance, params, request, *fixed)
    tokens, reads = request.tokens, side.fallback.reads_text
    text = jnp.pad(tokens, ((0, 0), (0, capacity - tokens.shape[1]))) if reads else None
    return DraftState(cache, Standing(first, others, request.lengths - 1, request.sampling, request.seen, text))


def count_roots(ranking: Any, window: int, num_candidates: int) -> int:
    """R of a ranking; 0 without one."""
    if ranking is None:
        return 0
    return int(jax.eval_shape(ranking, message_like(1, window, num_candidates)).tokens.shape[1])


class Rolled(NamedTuple):
    """What has been rolled out ahead."""

    roots: Roots
    branches: Branches


@partial(jax.jit, static_argnames="side", donate_argnames="cache")
def draft_ahead(side: Drafter, params: Params, cache: Cache, standing: Standing) -> tuple[Rolled, Cache]:
    """Runs the window's last token, and rolls out what the draft itself holds for likely."""
    assert side.policy.ahead is not None
    assert standing.likely is not None
    pending = standing.pending
    logits, cache = extend(side.network, params, cache, pending.token[:, None], pending.position)
    along = seen_along(standing.seen, standing.window.tokens)
    proposer = side.proposer(standing, None if along is None else along[:, -1:])
    behind = proposer.others(logits, pending.position[:, None] + 1)
    roots = side.policy.ahead(join(standing.likely, behind, standing.size), None)
    return _rolled(side, params, cache, standing, roots, None, None)


@partial(jax.jit, static_argnames="side", donate_argnames="cache")
def draft_rollout(
    side: Drafter, params: Params, cache: Cache, standing: Standing, ahead: Rolled | None, received: Array
) -> tuple[Rolled, Cache]:
    """Ranks the candidates of the packed message and rolls out the best, beside what was rolled out ``ahead``."""
    assert side.policy.exit is not None
    batch, window = standing.window.tokens.shape
    sent = unpack(received, message_like(batch, window, side.num_candidates))
    roots = side.policy.exit(sent, None if ahead is None else ahead.roots)
    return _rolled(side, params, cache, standing, roots, ahead, standing.pending if ahead is None else None)


def _rolled(
    side: Drafter,
    params: Params,
    cache: Cache,
    standing: Standing,
    roots: Roots,
    ahead: Rolled | None,
    pending: Pending | None,
) -> tuple[Rolled, Cache]:
    """γ tokens from every root; all branches so far."""
    drafted, window = standing.window.tokens, standing.window.tokens.shape[1]
    at = Pending(roots.tokens, standing.position[:, None] + roots.accepted + 1)
    proposer = side.proposer(standing, seen_at(standing.seen, drafted, roots)).after(roots.tokens)
    place = (0 if ahead is None else ahead.roots.tokens.shape[1]), sum(side.branches(window))
    branches, cache = rollout(side.network, params, cache, at, window, proposer, pending, place)
    new = Rolled(roots, branches)
    both = lambda one, other: jnp.concatenate([one, other], axis=1)  # noqa: E731
    return new if ahead is None else jax.tree.map(both, ahead, new), cache


def seen_at(seen: Array | None, window: Array, roots: Roots) -> Array | None:
    """What branches have seen before their roots: [B, R, V]."""
    along = seen_along(seen, window)
    return None if along is None else jnp.take_along_axis(along, roots.accepted[..., None], axis=1)


@partial(jax.jit, static_argnames="side", donate_argnames="cache")
def draft_select(
    side: Drafter, params: Params, cache: Cache, standing: Standing, rolled: Rolled | None, received: Array
) -> tuple[DraftState, Array]:
    """The branch that came true becomes the next window; where none did, a fresh rollout does."""
    drafted, window = standing.window.tokens, standing.window.tokens.shape[1]
    verdict = unpack(received, verdict_like(drafted.shape[0]))
    seen = mark_seen(standing.seen, drafted, verdict.num_accepted)
    seen = mark_seen(seen, verdict.next_token[:, None], jnp.ones_like(verdict.position))
    text = written(standing.text, drafted, verdict)
    need = Need(
        Pending(verdict.next_token, verdict.position),
        standing.pending if rolled is None else None,
        side.proposer(standing, None if seen is None else seen[:, None]),
        None if text is None else Text(text, verdict.position),
    )
    again = lambda: side.fallback(side.network, params, cache, window, need)  # noqa: E731
    if rolled is None:
        (following, cache), reused = again(), jnp.zeros(drafted.shape[0], bool)
    else:
        following, reused = _chosen(cache, rolled, verdict, again)
    new, likely, cache = commit(cache, following, verdict.position)
    return DraftState(cache, Standing(new, likely, verdict.position, standing.sampling, seen, text)), reused


def written(text: Array | None, drafted: Array, verdict: Verdict) -> Array | None:
    """Committed text [B, S] after a verdict; what stands behind the next token counts for nothing."""
    if text is None:
        return None
    places = jnp.arange(drafted.shape[1] + 1)[None]
    new = jnp.where(
        places == verdict.num_accepted[:, None], verdict.next_token[:, None], jnp.pad(drafted, ((0, 0), (0, 1)))
    )
    return jax.vmap(lambda old, part, start: jax.lax.dynamic_update_slice_in_dim(old, part, start, axis=0))(
        text, new, verdict.position - verdict.num_accepted
    )


def _chosen(
    cache: Cache, rolled: Rolled, verdict: Verdict, again: Callable[[], tuple[Drafted, Cache]]
) -> tuple[Drafted, Array]:
    roots, branches = rolled
    hit = (roots.accepted == verdict.num_accepted[:, None]) & (roots.tokens == verdict.next_token[:, None])
    reused, chosen = jnp.any(hit, axis=1), take(branches, cache, jnp.argmax(hit, axis=1))

    def mixed(_: None) -> Drafted:
        return jax.tree.map(lambda old, new: jnp.where(_like(reused, old), old, new), chosen, again()[0])

    return jax.lax.cond(jnp.all(reused), lambda _: chosen, mixed, None), reused


def _like(flags: Array, array: Array) -> Array:
    """Flags [B] with as many axes as ``array``."""
    return flags.reshape(-1, *(1,) * (array.ndim - 1))
