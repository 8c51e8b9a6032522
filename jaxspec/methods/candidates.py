"""Candidates: which next windows are worth rolling out before the verdict is known.

Both sides can list likely outcomes of a verification as a ``Message``: the draft from its own distribution, as soon as
a window is drafted; the target's early exit, from the target's own layers, after the prefix. A ``Policy`` sets which
message is ranked, and how: a ranking turns a message into the roots of branches, pairs (r, v): r tokens of the window
are accepted and v follows. The exit's message may be merged with the draft's before it is ranked.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.core.arguments import whole
from jaxspec.models.base import Array
from jaxspec.verify import Message, Roots

#: From a message, and roots that are rolled out already, to the roots to roll out; equal ones share programs.
Ranking = Callable[[Message, Roots | None], Roots]
#: From the exit's message and the draft's to the one that is ranked.
Merge = Callable[[Message, Message], Message]


@dataclass(frozen=True)
class Policy:
    """What is rolled out ahead of the verdict.

    Attributes:
        ahead: ranks the draft's own message; these branches start together with the target's prefix.
        exit: ranks the exit's message; these start after the prefix. Without it the target runs as one program.
        num_candidates: κ of the draft's own message.
        merge: what ``exit`` ranks, from both messages; None: the exit's alone. Without ``ahead`` the draft's has no
            candidates behind the window, −1.

    Raises:
        ValueError: messages that are merged and not ranked.
    """

    ahead: Ranking | None = None
    exit: Ranking | None = None
    num_candidates: int = 8
    merge: Merge | None = None

    def __post_init__(self) -> None:
        if self.merge is not None and self.exit is None:
            raise ValueError("expected a ranking of the exit's message with merge, got none; pass exit=, or no merge")

    @property
    def uses_own(self) -> bool:
        """Whether the draft's own message is used."""
        return self.ahead is not None or self.merge is not None


def mirror(
    budget: int | None = None, sharpness: float = 5.0, exit_weight: float | None = 0.2, num_candidates: int = 8
) -> Policy:
    """Rank as Mirror-SD: the likeliest ``budget`` (R) outcomes of the exit's top-κ at every position; None: all.

    Args:
        budget: R.
        sharpness: of ``Likeliest``.
        exit_weight: of ``Merged``; None: outcomes are ranked by the exit's message alone.
        num_candidates: κ of the draft's message, which is used under a budget, unless ``exit_weight`` is None.

    Source: Mirror-SD (arXiv 2510.13161), §3; ranking under a budget is ours.
    """
    merge = None if budget is None or exit_weight is None else Merged(exit_weight)
    return Policy(exit=Likeliest(budget, sharpness), num_candidates=num_candidates, merge=merge)


def saguaro(budget: int = 8, acceptance_rate: float = 0.8, exponent: float = 0.5, num_candidates: int = 8) -> Policy:
    """Rank as SSD: the draft's own likeliest tokens, from the start of the step, with ``Geometric`` fan-out."""
    return Policy(Geometric(budget, acceptance_rate, exponent), num_candidates=num_candidates)


def ahead(budget: int = 8, sharpness: float = 5.0, num_candidates: int = 8) -> Policy:
    """Rank SSD's candidates as the exit's are: the likeliest outcomes under the draft's own distribution."""
    return Policy(Likeliest(budget, sharpness), num_candidates=num_candidates)


def pearl() -> Policy:
    """Go on as if the whole window were accepted, PEARL's post-verify: one branch from the start of the step.

    Source: Liu et al., PEARL (arXiv 2408.11850).
    """
    return Policy(Geometric(1, 1.0), num_candidates=1)


def none() -> Policy:
    """Roll out nothing ahead: vanilla speculative decoding over two meshes."""
    return Policy()


def hybrid(
    ahead: int = 4, budget: int = 4, sharpness: float = 5.0, num_candidates: int = 8, exit_weight: float | None = 0.2
) -> Policy:
    """Roll out the draft's ``ahead`` likeliest outcomes during the prefix, then the exit's ``budget`` other ones.

    Without one of them, 0, it is ``candidates.ahead`` or ``mirror``: the best of hybrids is no worse than either.

    Raises:
        ValueError: nothing to roll out.
    """
    if ahead == 0 and budget == 0:
        raise ValueError("expected ahead or budget >= 1, got 0 of both; vanilla speculative decoding is none()")
    if budget == 0:
        return Policy(Likeliest(ahead, sharpness), num_candidates=num_candidates)
    late = mirror(budget, sharpness, exit_weight, num_candidates)
    return late if ahead == 0 else replace(late, ahead=Likeliest(ahead, sharpness))


@dataclass(frozen=True)
class Merged:
    """The exit's candidates with what both sides know: score = log p_draft + w·log p_exit, for drafted tokens likewise.

    Whether the target accepts what was drafted, a draft that was distilled from it knows better than its own early
    exit: on the embedded pair (γ = 7, R = 8, κ = 8; ``jaxspec.analysis.replay``) 93 % of the outcomes are rolled out,
    79 % if the exit's message is ranked alone, 90 % if the draft's is. A token that the draft does not list has the
    score of the last one that it does, its upper bound. No log-probability counts for less than ``LEAST``: one side may
    rule out what the other has.

    Attributes:
        weight: w.
        alone: w where the draft has no candidates: score = w·log p_exit.

    Raises:
        ValueError: a weight that is not positive.
    """

    weight: float = 0.2
    alone: float = 0.5

    def __post_init__(self) -> None:
        if not (0 < self.weight < np.inf and 0 < self.alone < np.inf):
            raise ValueError(f"expected finite weights > 0, got {self}; without merge the exit's message alone counts")

    def __call__(self, sent: Message, own: Message) -> Message:
        """Return the exit's message with merged scores."""
        same = sent.tokens[..., None] == own.tokens[:, :, None]
        listed = jnp.max(jnp.where(same, own.scores[:, :, None], -jnp.inf), axis=-1)
        draft = _bounded(jnp.where(jnp.any(same, axis=-1), listed, own.scores[:, :, -1:]))
        known = own.tokens[:, :, :1] >= 0
        scores = jnp.where(known, draft + self.weight * sent.scores, self.alone * sent.scores)
        possible = jnp.isfinite(own.drafted) | jnp.isfinite(sent.drafted)
        drafted = _bounded(own.drafted) + self.weight * _bounded(sent.drafted)
        return Message(sent.tokens, scores, jnp.where(possible, drafted, -jnp.inf))


#: The least log-probability that is merged.
LEAST = -20.0


def _bounded(scores: Array) -> Array:
    """Return scores of at least ``LEAST``, which NaN becomes too."""
    return jnp.where(scores > LEAST, scores, LEAST)


@dataclass(frozen=True)
class Likeliest:
    """The likeliest outcomes under a message's distribution.

    score(r, v) = Σ_{j≤r} log q(ŷⱼ | j) + log q(v | r): the log-probability that exactly r tokens are accepted and v
    follows. Greedy verification needs the target's most likely token, and the exit's argmax is right more often than
    its probability: q ∝ p^β over the tokens that the message holds for a position.

    Attributes:
        budget: R, branches rolled out for each sequence; None: all (γ+1)·κ.
        sharpness: β; 1 is the distribution as it was sent.

    Raises:
        ValueError: a budget below 1, or a sharpness that is not positive.
    """

    budget: int | None = None
    sharpness: float = 5.0

    def __post_init__(self) -> None:
        if self.budget is not None:
            budget = whole("budget (branches)", self.budget, 1, remedy="without a limit pass None")
            object.__setattr__(self, "budget", budget)
        if not 0 < self.sharpness < np.inf:
            raise ValueError(f"expected a finite sharpness > 0, got {self.sharpness}")

    def __call__(self, received: Message, known: Roots | None = None) -> Roots:
        """Return the best R roots that are not ``known``."""
        drafted, scores = _sharpened(received, self.sharpness)
        reach = jnp.pad(jnp.cumsum(drafted, axis=1), ((0, 0), (1, 0)))
        scores = reach[:, :, None] + scores
        scores = jnp.where(jnp.isnan(scores), -jnp.inf, scores)  # top_k would put NaN first
        batch, positions, kappa = scores.shape
        if known is not None:
            scores = jnp.where(_among(received, known), -jnp.inf, scores)
        count = positions * kappa if self.budget is None else min(self.budget, positions * kappa)
        best = jax.lax.top_k(scores.reshape(batch, -1), count)[1].astype(jnp.int32)
        return Roots(best // kappa, jnp.take_along_axis(received.tokens.reshape(batch, -1), best, axis=1))


def _among(received: Message, known: Roots) -> Array:
    """Return which candidates [B, γ+1, κ] are known roots."""
    accepted = jnp.arange(received.tokens.shape[1])[None, :, None]
    same = (known.accepted[:, None, None] == accepted[..., None]) & (
        known.tokens[:, None, None] == received.tokens[..., None]
    )
    return jnp.any(same, axis=-1)


def _sharpened(received: Message, sharpness: float) -> tuple[Array, Array]:
    """Return log q of the drafted tokens [B, γ] and of the candidates [B, γ+1, κ]."""
    drafted = jnp.pad(received.drafted, ((0, 0), (0, 1)), constant_values=-jnp.inf)[:, :, None]
    scores = jnp.concatenate([drafted, received.scores], axis=2) * sharpness
    logs = jax.nn.log_softmax(scores, axis=2)
    return logs[:, :-1, 0], logs[:, :, 1:]


@dataclass(frozen=True)
class Geometric:
    """A fixed number of candidates a position: F_r ∝ a^(r/(1+e)) for r < γ, F_γ ∝ a^(γ/(1+e))·(1 − a)^(−1/(1+e)).

    It maximises the hit rate if every token is accepted with probability a and a position's miss rate falls as F^(−e).

    Attributes:
        budget: R = Σ F_r, at most κ for one position.
        acceptance_rate: a; 1 puts all on the position behind the window.
        exponent: e.

    Raises:
        ValueError: a budget below 1, a rate outside (0, 1], an exponent that is not positive.

    Source: Kumar et al., Speculative Speculative Decoding (arXiv 2603.03251), theorem on the geometric fan-out.
    """

    budget: int
    acceptance_rate: float = 0.8
    exponent: float = 0.5

    def __post_init__(self) -> None:
        object.__setattr__(self, "budget", whole("budget (branches)", self.budget, 1))
        if not 0 < self.acceptance_rate <= 1 or not 0 < self.exponent < np.inf:
            raise ValueError(
                f"expected 0 < acceptance_rate <= 1 and exponent > 0, got {self.acceptance_rate} and {self.exponent}"
            )

    def __call__(self, received: Message, known: Roots | None = None) -> Roots:
        """Return the first F_r candidates of every position r, ``known`` or not; the same r for all sequences."""
        batch, positions, kappa = received.tokens.shape
        counts = self.fan_out(positions - 1, kappa)
        numbers = np.repeat(np.arange(positions), counts)
        rank = np.concatenate([np.arange(count) for count in counts])
        accepted = jnp.broadcast_to(jnp.asarray(numbers, jnp.int32), (batch, len(numbers)))
        return Roots(accepted, received.tokens[:, numbers, rank])

    def fan_out(self, window: int, most: int) -> np.ndarray:
        """Return F_0..F_γ: whole numbers that add up to R, at most ``most`` each, apportioned by highest averages."""
        power = 1 / (1 + self.exponent)
        share = self.acceptance_rate ** (power * np.arange(window + 1))
        share[-1] *= max(1 - self.acceptance_rate, 1e-12) ** -power
        counts = np.zeros(window + 1, int)
        for _ in range(min(self.budget, most * (window + 1))):
            counts[np.argmax(np.where(counts < most, share / (counts + 1), -1.0))] += 1
        return counts
