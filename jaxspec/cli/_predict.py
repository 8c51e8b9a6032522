"""``jaxspec predict``: how fast would a pair be on chips that are not here, by bytes, operations and the cost model?"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import rich
import tyro
from rich.table import Table

from jaxspec.cli.checks import at_least
from jaxspec.cli.shared import Flag, report

if TYPE_CHECKING:
    from jaxspec.analysis.roofline import Gains, Machine

PREDICTED = (
    "Predicted, not measured: bytes over bandwidth, operations over peak, assumed latencies, and the cost model at the "
    "given acceptance and foresight."
)


@dataclass(frozen=True)
class ChipFlags:
    """Where target and draft are.

    Attributes:
        chips: of the target: v4, v5e, v5p, v6e, H100, H200, L4, L40S.
        count: of these.
        draft_chips: of the draft; default: as the target's.
        draft_count: of these.
    """

    chips: str = "v5e"
    count: int = 4
    draft_chips: str | None = None
    draft_count: int = 4

    def machines(self) -> "tuple[Machine, Machine]":
        """Return the chips of the target, and those of the draft.

        Raises:
            ValueError: an unknown chip, or fewer than one.
        """
        from jaxspec.analysis.roofline import Machine
        from jaxspec.devices.chips import chip_named

        at_least(1, count=self.count, draft_count=self.draft_count)
        kinds = chip_named(self.chips), chip_named(self.draft_chips or self.chips)
        return Machine(kinds[0], self.count), Machine(kinds[1], self.draft_count)


@dataclass(frozen=True)
class WorkFlags:
    """What is decoded.

    Attributes:
        exit_share: the prefix's share of the target's layers.
        branches: that are rolled out (R).
        rows: tokens in the cache of a sequence.
        batch: sequences (B).
    """

    exit_share: float = 0.5
    branches: int = 8
    rows: int = 1024
    batch: int = 1

    def options(self) -> dict[str, Any]:
        """Return the options of ``predicted_times``.

        Raises:
            ValueError: a number below 1, or a share outside [0, 1].
        """
        from jaxspec.analysis.roofline import Workload

        at_least(1, branches=self.branches, rows=self.rows, batch=self.batch)
        if not 0 <= self.exit_share <= 1:
            raise ValueError(f"expected --exit-share in [0, 1], got {self.exit_share}")
        work = Workload(self.batch, self.rows)
        return {"branches": self.branches, "exit_share": self.exit_share, "work": work}


def predict(
    target: Path,
    draft: Path,
    where: Annotated[ChipFlags, tyro.conf.arg(name="")] = ChipFlags(),
    work: Annotated[WorkFlags, tyro.conf.arg(name="")] = WorkFlags(),
    rate: tuple[float, ...] = (0.7, 0.8, 0.9),
    foreseen: float = 0.8,
    json: Flag = False,  # noqa: A002  the flag is called --json
) -> None:
    """Predict a step's times on given chips, and which policy is the fastest there.

    Every gain is over plain decoding: at the same placement (plain decoding on the target's chips), at equal chips
    (plain decoding on all of them), and of speculative decoding with both models on all chips.

    Args:
        target: config.json of a published model, or its folder.
        draft: likewise.
        where: target and draft are.
        work: what is decoded.
        rate: probabilities that a drafted token is accepted (α).
        foreseen: probability that the exit's candidates hold the outcome (Ω′).
        json: end with one JSON object on one line.
    """
    from jaxspec.analysis.roofline import PredictedPair, predicted_gains, predicted_times
    from jaxspec.loading.huggingface import read_config

    machines, options = where.machines(), work.options()
    pair = PredictedPair(read_config(target), read_config(draft), *machines)
    times = predicted_times(pair, **options)
    gains = {each: predicted_gains(pair, each, foreseen, **options) for each in rate}
    milliseconds = {f"{name}_ms": round(1e3 * seconds, 3) for name, seconds in times._asdict().items()}
    every = {"gains": {str(each): gain._asdict() for each, gain in gains.items()}} if json else {}
    report(milliseconds | every, json)
    if not json:
        rich.print(_table(gains))
        print(PREDICTED)


def _table(gains: "dict[float, Gains]") -> Table:
    """Return a row for each policy, columns for each α."""
    table = Table(title="times as fast as plain decoding: same placement / equal chips")
    table.add_column("policy")
    for each in gains:
        table.add_column(f"α {each:g}", justify="right")
    for name in next(iter(gains.values())).same_placement:
        table.add_row(name, *(_cell(gain, name) for gain in gains.values()))
    if all(gain.all_devices is not None for gain in gains.values()):
        table.add_row("speculative, all chips", *(f"{gain.all_devices:.2f}" for gain in gains.values()))
    return table


def _cell(gain: "Gains", name: str) -> str:
    equal: Any = "" if gain.equal_chips is None else f" / {gain.equal_chips[name]:.2f}"
    return f"{gain.same_placement[name]:.2f}{equal}"
