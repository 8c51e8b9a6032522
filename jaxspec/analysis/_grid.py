"""The settings that ``tune`` compares."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from jaxspec.drafts.ngram import SIZES
from jaxspec.methods import candidates
from jaxspec.methods.checks import MANY_BRANCHES
from jaxspec.methods.spec import DecodeSpec
from jaxspec.models.config import DecoderConfig

PLAIN = DecodeSpec(label="plain decoding")


@dataclass(frozen=True)
class Grid:
    """Values to try.

    Attributes:
        windows: γ.
        num_candidates: κ of the exit's message; the draft's own candidates are as many as the largest.
        budgets: R of one side; None: all (γ+1)·κ of the exit's candidates.
        exit_layers: ℓₑ; None: the pair's own, and a quarter, half and three quarters of the target.

    Raises:
        ValueError: nothing to try, or a number below 1.
    """

    windows: tuple[int, ...] = (1, 3, 5, 7)
    num_candidates: tuple[int, ...] = (4, 8)
    budgets: tuple[int | None, ...] = (4, 8, None)
    exit_layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        numbers = [*self.windows, *self.num_candidates, *(self.exit_layers or ())]
        numbers += [budget for budget in self.budgets if budget is not None]
        if not self.windows or not self.num_candidates or min(numbers) < 1:
            raise ValueError(f"expected windows and candidates, each number >= 1, got {self}")

    def layers(self, own: int, config: DecoderConfig) -> tuple[int, ...]:
        """Return ℓₑ, ascending, for a pair whose exit is at ``own``; of a target in tracks, only where they meet."""
        count, tracks = config.num_layers, config.tracks
        quarters = {max(1, count * quarter // 4) for quarter in (1, 2, 3)}
        if tracks is not None:
            quarters &= set(tracks.meetings(count))
        return tuple(sorted(set(self.exit_layers or quarters | {own})))

    def limited(self, most: int | None) -> "Grid":
        """Return the grid for a draft of ``most`` heads: longer windows become ``most``; None: no limit."""
        return (
            self if most is None else replace(self, windows=tuple(sorted({min(each, most) for each in self.windows})))
        )

    @staticmethod
    def lookups(windows: Sequence[int]) -> list[DecodeSpec]:
        """Return the settings of prompt lookup."""
        return [DecodeSpec(window, sizes=SIZES, label="prompt lookup") for window in windows]

    @staticmethod
    def chains(windows: Sequence[int]) -> list[DecodeSpec]:
        """Return the settings of speculative decoding with a window."""
        return [DecodeSpec(window, label="speculative") for window in windows]

    def specs(self, layers: Sequence[int]) -> list[DecodeSpec]:
        """Return all settings with a draft, and plain decoding first."""
        return [PLAIN, *(spec for window in self.windows for spec in self._of_window(window, layers))]

    def _of_window(self, window: int, layers: Sequence[int]) -> list[DecodeSpec]:
        few, most = [r for r in self.budgets if r is not None], max(self.num_candidates)
        policies = {"none": candidates.none(), "pearl": candidates.pearl()}
        policies |= {f"saguaro({r})": candidates.saguaro(r, num_candidates=most) for r in few}
        policies |= {f"ahead({r})": candidates.ahead(r, num_candidates=most) for r in few}
        specs = self.chains((window,))
        specs += [DecodeSpec(window, policy, label=name) for name, policy in policies.items()]
        for kappa in self.num_candidates:
            every = (window + 1) * kappa
            limits = dict.fromkeys(r if r and r < every else None for r in self.budgets)
            if every > MANY_BRANCHES:
                limits.pop(None, None)
            policies = {f"mirror({r or 'all'})": candidates.mirror(r, num_candidates=most) for r in limits}
            policies |= {f"hybrid({r}, {r})": candidates.hybrid(r, r, num_candidates=most) for r in few}
            specs += [
                DecodeSpec(window, policy, kappa, layer, label=name)
                for name, policy in policies.items()
                for layer in layers
            ]
        return specs

    @property
    def branches(self) -> tuple[int, ...]:
        """R to time: powers of four from 1, and the largest R of any setting."""
        few = [r for r in self.budgets if r is not None]
        every = (max(self.windows) + 1) * max(self.num_candidates)
        most = max([2 * r for r in few] + [every] * (None in self.budgets) + [1])
        return tuple(sorted({*(4**power for power in range(20) if 4**power < most), most}))
