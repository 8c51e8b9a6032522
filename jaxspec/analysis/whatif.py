"""Which policy is the fastest by the cost model, over the draft's cost, its acceptance and the exit's hit rate.

    T_target = 1 for a pass over any window and for a step of plain decoding; E[A] = Σ αʳ
    T_draft(γ, R) = x·γ/7·(1 + ε·(R − 1))

    speculative   T = 1 + T_draft(γ, 1)
    pearl         FF = 1 − α^{γ+1}                  one branch from the start, during the whole pass
    saguaro       FF = (1 − α^{γ+1})·(1 − s·Ω′)     R branches from the start, during the whole pass
    mirror        FF = 1 − Ω′                       R branches after the prefix, during the suffix
    hybrid        FF = that of saguaro · of mirror  R branches from the start, R after the prefix

Every policy has its best window. Assumptions: tokens are accepted independently, with probability α; the draft predicts
the bonus token as often as any other; of the outcomes in the exit's candidates, a share s is in the draft's as well;
both sides miss independently; the meshes overlap. On the embedded pair (γ = 7, R = 8,
``jaxspec.analysis.replay``) s is 0.55; independence predicts that both sides miss 8 % of the steps, 7 % were measured.

Source: the cost model is ``jaxspec.analysis.cost``; PEARL (arXiv 2408.11850), SSD (arXiv 2603.03251), Mirror-SD
(arXiv 2510.13161).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from jaxspec.analysis.cost import ProgramTimes, accepted_length, step_time

#: The window for which the draft's cost x is stated, as in the paper.
REFERENCE = 7


@dataclass(frozen=True)
class Assumptions:
    """Constants of the comparison.

    Attributes:
        exit_share: ℓₑ/N, the prefix's share of the target's pass.
        draft_share: s.
        branches: R of each side.
        branch_cost: ε, what each further branch adds to a pass of the draft.
        rendezvous: a message between the meshes, over the target's pass.
        windows: γ to choose from.

    Raises:
        ValueError: a share outside [0, 1], or a negative number.
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
    """A point of the comparison.

    Attributes:
        cost: x, T_draft of a window of 7 over T_target.
        rate: α, a number or an array.
        foreseen: Ω′.
    """

    cost: float
    rate: Any
    foreseen: float


#: From assumptions, a point and γ to the times of a step's programs and its FF.
PolicyCost = Callable[[Assumptions, Point, int], tuple[ProgramTimes, Any]]


def _draft(constants: Assumptions, at: Point, window: int, branches: int = 1) -> float:
    return at.cost * window / REFERENCE * (1 + constants.branch_cost * (branches - 1))


def speculative(constants: Assumptions, at: Point, window: int) -> tuple[ProgramTimes, Any]:
    """Draft after every verdict, on the target's mesh."""
    return ProgramTimes(suffix=1.0, fallback=_draft(constants, at, window)), 1.0


def pearl(constants: Assumptions, at: Point, window: int) -> tuple[ProgramTimes, Any]:
    """Continue as if the whole window were accepted, with the draft's own next token."""
    one = _draft(constants, at, window)
    times = ProgramTimes(suffix=1.0, ahead=one, fallback=one, rendezvous=constants.rendezvous)
    return times, 1 - at.rate ** (window + 1)


def saguaro(constants: Assumptions, at: Point, window: int) -> tuple[ProgramTimes, Any]:
    """Roll out PEARL's branch and other candidates of the draft."""
    times, missed = pearl(constants, at, window)
    times = replace(times, ahead=_draft(constants, at, window, constants.branches))
    return times, missed * (1 - constants.draft_share * at.foreseen)


def mirror(constants: Assumptions, at: Point, window: int) -> tuple[ProgramTimes, Any]:
    """Roll out the exit's candidates."""
    rollout = _draft(constants, at, window, constants.branches)
    share = constants.exit_share
    times = ProgramTimes(share, 1 - share, 0.0, rollout, 0.0, _draft(constants, at, window), constants.rendezvous)
    return times, 1 - at.foreseen


def hybrid(constants: Assumptions, at: Point, window: int) -> tuple[ProgramTimes, Any]:
    """Roll out both."""
    (early, one), (late, other) = saguaro(constants, at, window), mirror(constants, at, window)
    return replace(late, ahead=early.ahead), one * other


#: Simpler policies first.
POLICIES: dict[str, PolicyCost] = {
    "speculative": speculative,
    "pearl": pearl,
    "saguaro": saguaro,
    "mirror": mirror,
    "hybrid": hybrid,
}


def speed_ups(policy: PolicyCost, constants: Assumptions, at: Point) -> np.ndarray:
    """Return the speed-up over plain decoding at the best window for every α: [A]."""
    rates, by_window = np.atleast_1d(at.rate), []
    for window in constants.windows:
        times, missed = policy(constants, at._replace(rate=rates), window)
        lengths = np.asarray([accepted_length(rate, window) for rate in rates])
        hit, miss = (step_time(times, float(rate)) for rate in (0, 1))
        by_window.append((1 + lengths) / (hit + missed * (miss - hit)))
    return np.max(by_window, axis=0)


def best_at(constants: Assumptions, at: Point, margin: float = 0.0) -> tuple[str, float]:
    """Return the simplest policy within ``margin`` of the fastest at a point, and its speed-up over plain decoding."""
    gains = {"plain": 1.0} | {name: float(speed_ups(policy, constants, at)[0]) for name, policy in POLICIES.items()}
    most = max(gains.values())
    return next((name, gain) for name, gain in gains.items() if gain >= most * (1 - margin - 1e-9))


class WhatIf(NamedTuple):
    """The result over a grid.

    Attributes:
        costs: x: [C].
        rates: α: [A].
        foreseen: Ω′: [O].
        gains: speed-up of each policy over plain decoding: [O, A, C].
        margin: how much slower, as a share, a simpler policy may be and still win.
    """

    costs: np.ndarray
    rates: np.ndarray
    foreseen: np.ndarray
    gains: dict[str, np.ndarray]
    margin: float = 0.0

    @property
    def names(self) -> list[str]:
        """Plain decoding, then ``POLICIES``."""
        return ["plain", *self.gains]

    @property
    def best(self) -> np.ndarray:
        """Speed-up of the fastest; 1 where that is plain decoding: [O, A, C]."""
        return np.maximum(1.0, np.max(list(self.gains.values()), axis=0))

    @property
    def winners(self) -> np.ndarray:
        """Index in ``names`` of the simplest one that is at most ``margin`` slower than the best: [O, A, C]."""
        every = np.stack([np.ones_like(self.best), *self.gains.values()])
        return np.argmax(every >= self.best * (1 - self.margin - 1e-9), axis=0)

    def shares(self, panel: int) -> dict[str, float]:
        """Return the share of a panel's points that each of ``names`` wins."""
        return {name: float(np.mean(self.winners[panel] == number)) for number, name in enumerate(self.names)}


def compare(
    foreseen: Sequence[float] = (0.5, 0.8, 0.95),
    points: int = 160,
    assumptions: Assumptions = Assumptions(),
    margin: float = 0.02,
    at: Point | None = None,
) -> WhatIf:
    """Compare policies for T_draft/T_target of 0.05 to 2, on a logarithmic axis, and acceptance rates of 0.5 to 0.95.

    Args:
        foreseen: Ω′, one panel each.
        points: along either axis.
        assumptions: constants.
        margin: share of the best speed-up within which the simplest policy wins.
        at: a point that the axes shall reach.

    Raises:
        ValueError: an Ω′ outside [0, 1], fewer than two points, or a margin outside [0, 1).
    """
    if points < 2 or not len(foreseen) or not all(0 <= share <= 1 for share in foreseen) or not 0 <= margin < 1:
        values = f"{points}, {tuple(foreseen)} and {margin}"
        raise ValueError(f"expected points >= 2, shares in [0, 1] and a margin in [0, 1), got {values}")
    least, most, low, high = 0.05, 2.0, 0.5, 0.95
    if at is not None:
        least, most = min(least, at.cost / 1.2), max(most, at.cost * 1.2)
        low, high = min(low, max(at.rate - 0.05, 0.0)), max(high, min(at.rate + 0.02, 1.0))
    costs, rates = np.geomspace(least, most, points), np.linspace(low, high, points)

    def over_grid(policy: PolicyCost) -> np.ndarray:
        by_cost = [[speed_ups(policy, assumptions, Point(cost, rates, share)) for cost in costs] for share in foreseen]
        return np.swapaxes(by_cost, 1, 2)

    gains = {name: over_grid(policy) for name, policy in POLICIES.items()}
    return WhatIf(costs, rates, np.asarray(foreseen), gains, margin)
