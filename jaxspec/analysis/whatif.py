"""What if: which policy wins where, by the law alone, over the draft's cost, its acceptance and what an exit foresees.

    T_target = 1 for a pass over any window and for a step of plain decoding; E[A] = Σ αʳ
    T_draft(γ, R) = x·γ/7·(1 + ε·(R − 1))

    speculative   T = 1 + T_draft(γ, 1)
    pearl         FF = 1 − α^{γ+1}                  one branch from the start, behind the whole pass
    saguaro       FF = (1 − α^{γ+1})·(1 − s·Ω′)     R branches from the start, behind the whole pass
    mirror        FF = 1 − Ω′                       R branches after the prefix, behind the suffix
    hybrid        FF = that of saguaro · of mirror  R branches from the start, R after the prefix

Every one at the best of its windows. What is assumed: tokens are accepted independently, with probability α; the draft
names the bonus token as often as it names any other; of the other outcomes it foresees a share s of what the exit does;
both sides miss independently; meshes overlap. On the embedded pair (γ = 7, R = 8: ``jaxspec.analysis.foresight``)
s is 0.55, and where independence says that both sides miss 8 % of the steps they miss 7 %.

Source: the law of ``jaxspec.analysis.cost``; PEARL (arXiv 2408.11850), SSD (arXiv 2603.03251), Mirror-SD
(arXiv 2510.13161).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from jaxspec.analysis.cost import Parts, accepted_length, step_time

#: γ of which the draft's cost x is told: a whole window of the paper's.
REFERENCE = 7


@dataclass(frozen=True)
class Assumptions:
    """What is the same all over the surface.

    Attributes:
        exit_share: ℓₑ/N, the prefix's share of the target's pass.
        draft_share: s.
        branches: R of a side.
        branch_cost: ε, what each further branch adds to a pass of the draft.
        rendezvous: a message between the meshes, over the target's pass.
        windows: γ to choose from.

    Raises:
        ValueError: a share outside [0, 1], or a number that is negative.
    """

    exit_share: float = 0.5
    draft_share: float = 0.6
    branches: int = 8
    branch_cost: float = 0.02
    rendezvous: float = 0.0
    windows: tuple[int, ...] = tuple(range(1, 9))

    def __post_init__(self) -> None:
        if not (0 <= self.exit_share <= 1 and 0 <= self.draft_share <= 1):
            raise ValueError(f"expected shares in [0, 1], got {self.exit_share} and {self.draft_share}")
        if self.branches < 1 or min(self.branch_cost, self.rendezvous) < 0 or min(self.windows, default=0) < 1:
            raise ValueError(f"expected branches and windows >= 1 and costs >= 0, got {self}")


class Point(NamedTuple):
    """Where on the surface.

    Attributes:
        cost: x, a window of 7 over the target's pass.
        rate: α, a number or an array of them.
        foreseen: Ω′.
    """

    cost: float
    rate: Any
    foreseen: float


#: From assumptions, a point and γ to a step's parts and its FF.
Model = Callable[[Assumptions, Point, int], tuple[Parts, Any]]


def _draft(given: Assumptions, at: Point, window: int, branches: int = 1) -> float:
    return at.cost * window / REFERENCE * (1 + given.branch_cost * (branches - 1))


def speculative(given: Assumptions, at: Point, window: int) -> tuple[Parts, Any]:
    """Drafts after every verdict, on the target's mesh."""
    return Parts(suffix=1.0, fallback=_draft(given, at, window)), 1.0


def pearl(given: Assumptions, at: Point, window: int) -> tuple[Parts, Any]:
    """Goes on as if all were accepted, with the draft's own next token."""
    ahead = fallback = _draft(given, at, window)
    parts = Parts(suffix=1.0, ahead=ahead, fallback=fallback, rendezvous=given.rendezvous)
    return parts, 1 - at.rate ** (window + 1)


def saguaro(given: Assumptions, at: Point, window: int) -> tuple[Parts, Any]:
    """PEARL's branch, and others of the draft's."""
    parts, missed = pearl(given, at, window)
    ahead = _draft(given, at, window, given.branches)
    rate = missed * (1 - given.draft_share * at.foreseen)
    return Parts(suffix=1.0, ahead=ahead, fallback=parts.fallback, rendezvous=given.rendezvous), rate


def mirror(given: Assumptions, at: Point, window: int) -> tuple[Parts, Any]:
    """The exit's branches."""
    rollout = _draft(given, at, window, given.branches)
    share = given.exit_share
    parts = Parts(share, 1 - share, 0.0, rollout, 0.0, _draft(given, at, window), given.rendezvous)
    return parts, 1 - at.foreseen


def hybrid(given: Assumptions, at: Point, window: int) -> tuple[Parts, Any]:
    """Both."""
    (early, one), (late, other) = saguaro(given, at, window), mirror(given, at, window)
    parts = Parts(late.prefix, late.suffix, early.ahead, late.rollout, 0.0, late.fallback, given.rendezvous)
    return parts, one * other


#: The simpler one first.
POLICIES: dict[str, Model] = {
    "speculative": speculative,
    "pearl": pearl,
    "saguaro": saguaro,
    "mirror": mirror,
    "hybrid": hybrid,
}


def gain(policy: Model, given: Assumptions, at: Point) -> np.ndarray:
    """Speed-up over plain decoding at the best window for every α: [A]."""
    rates, found = np.atleast_1d(at.rate), []
    for window in given.windows:
        parts, missed = policy(given, at._replace(rate=rates), window)
        lengths = np.asarray([accepted_length(rate, window) for rate in rates])
        ready, late = (step_time(parts, float(rate)) for rate in (0, 1))
        found.append((1 + lengths) / (ready + missed * (late - ready)))
    return np.max(found, axis=0)


class Surface(NamedTuple):
    """What the law says over a grid.

    Attributes:
        costs: x: [C].
        rates: α: [A].
        foreseen: Ω′: [O].
        gains: speed-up of each policy over plain decoding: [O, A, C].
        margin: what a simpler policy may be slower and still win.
    """

    costs: np.ndarray
    rates: np.ndarray
    foreseen: np.ndarray
    gains: dict[str, np.ndarray]
    margin: float = 0.0

    @property
    def names(self) -> list[str]:
        """Whoever can win: plain decoding, then ``POLICIES``."""
        return ["plain", *self.gains]

    @property
    def best(self) -> np.ndarray:
        """Speed-up of the winner; 1 where that is plain decoding: [O, A, C]."""
        return np.maximum(1.0, np.max(list(self.gains.values()), axis=0))

    @property
    def winners(self) -> np.ndarray:
        """Number in ``names`` of the simplest one that is no more than ``margin`` below the best: [O, A, C]."""
        every = np.stack([np.ones_like(self.best), *self.gains.values()])
        return np.argmax(every >= self.best * (1 - self.margin - 1e-9), axis=0)

    def shares(self, panel: int) -> dict[str, float]:
        """How much of a panel each of ``names`` wins."""
        return {name: float(np.mean(self.winners[panel] == number)) for number, name in enumerate(self.names)}


def surface(
    foreseen: Sequence[float] = (0.5, 0.8, 0.95),
    points: int = 160,
    assumptions: Assumptions = Assumptions(),
    margin: float = 0.02,
) -> Surface:
    """The surface for T_draft/T_target of 0.05 to 2, on a logarithmic axis, and acceptance rates of 0.5 to 0.95.

    Args:
        foreseen: Ω′, a panel each.
        points: along either axis.
        assumptions: what is the same all over.
        margin: share of the best speed-up within which the simplest policy wins.

    Raises:
        ValueError: an Ω′ outside [0, 1], fewer than two points, or a margin outside [0, 1).
    """
    if points < 2 or not len(foreseen) or not all(0 <= share <= 1 for share in foreseen) or not 0 <= margin < 1:
        given = f"{points}, {tuple(foreseen)} and {margin}"
        raise ValueError(f"expected points >= 2, shares in [0, 1] and a margin in [0, 1), got {given}")
    costs, rates = np.geomspace(0.05, 2.0, points), np.linspace(0.5, 0.95, points)

    def over_grid(policy: Model) -> np.ndarray:
        found = [[gain(policy, assumptions, Point(cost, rates, share)) for cost in costs] for share in foreseen]
        return np.swapaxes(found, 1, 2)

    gains = {name: over_grid(policy) for name, policy in POLICIES.items()}
    return Surface(costs, rates, np.asarray(foreseen), gains, margin)
