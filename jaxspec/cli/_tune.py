"""``jaxspec tune``: which method, policy, window, exit and number of branches are the fastest on this machine?"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import rich
import tyro
from rich.box import SIMPLE_HEAD
from rich.table import Table

from jaxspec.cli._methods import Continuations, load, two_devices
from jaxspec.cli._tuned import TUNED, fastest, folder_to_save, write_tuned
from jaxspec.cli.checks import at_least
from jaxspec.cli.exits import check_exit_file
from jaxspec.cli.shared import Flag, report
from jaxspec.zoo import PAIRS

if TYPE_CHECKING:
    from jaxspec.analysis import Grid


@dataclass(frozen=True)
class GridFlags:
    """Values to try.

    Attributes:
        windows: tokens drafted or looked up per step (γ).
        num_candidates: tokens that an exit sends for each position (κ).
        budgets: branches rolled out (R); all candidates are tried as well.
        exit_layers: layers before the exit; default: the pair's own, and quarters of the target; with trained exits,
            the first of them.
        exit: exits that train lens wrote; default: those in the target's folder, if there are any.
    """

    windows: tuple[int, ...] = (1, 3, 5, 7)
    num_candidates: tuple[int, ...] = (4, 8)
    budgets: tuple[int, ...] = (4, 8)
    exit_layers: tuple[int, ...] = ()
    exit: Path | None = None

    def grid(self) -> "Grid":
        """Return the grid that ``analysis.tune`` takes.

        Raises:
            ValueError: nothing to try, or a number below 1.
        """
        from jaxspec.analysis import Grid

        return Grid(self.windows, self.num_candidates, (*self.budgets, None), self.exit_layers or None)


def tune(
    pair: Annotated[str | None, tyro.conf.Positional] = None,
    target: str | None = None,
    draft: Path | None = None,
    tried: Annotated[GridFlags, tyro.conf.arg(name="")] = GridFlags(),
    batch: int = 1,
    continuations: Annotated[Continuations, tyro.conf.arg(name="")] = Continuations(),
    save: Flag = False,
    json: Flag = False,  # noqa: A002  the flag is called --json
) -> None:
    """Time the programs of a step, replay windows and policies, and name the fastest way to decode.

    Plain decoding and prompt lookup are always compared; speculative decoding and Mirror-SD with a draft.

    Args:
        pair: as --target. Default: the embedded pair.
        target: name of an embedded pair, a folder that train or convert wrote, a published checkpoint.
        draft: as for generate; an embedded pair has its own. Of one with heads, windows beyond them are left out.
        tried: values to try.
        batch: sequences that will be decoded together.
        continuations: prompts and their continuations, up to the target's stop tokens.
        save: write the result to tuned.json in the draft's folder, or the target's without a draft; generate then
            decodes that way by default.
        json: end with one JSON object on one line.
    """
    if pair is not None and target is not None:
        raise ValueError(f"expected one target, got {pair} and --target {target}; leave one out")
    grid, name = tried.grid(), pair or target or PAIRS[0]
    at_least(1, batch=batch)
    continuations.check(max(grid.windows))
    folder = folder_to_save(name, draft) if save else None
    check_exit_file(tried.exit)
    two_devices()
    models = load(name, draft, exit=tried.exit)
    prompts = continuations.read(models.target.text)
    options = {"new_tokens": continuations.new_tokens, "batch": batch, "progress": not json}
    tuned = fastest(models, prompts, grid, **options)
    if folder is not None:
        write_tuned(folder, tuned, models.target)
    if json:
        return report(summary(tuned), True)
    rich.print(_table(tuned))
    if tuned.left_out:
        print(f"{tuned.left_out} prompts left out: their answers are no longer than the largest window.")
    print(tuned)
    if folder is not None:
        print(f"saved in {folder / TUNED}")


def summary(tuned: Any) -> dict[str, Any]:
    """Return the result as one JSON-able object; seconds."""
    rows = [
        {
            "setting": str(row.spec),
            "step": row.step,
            "accepted_length": row.accepted_length,
            "fallback_rate": row.fallback_rate,
            "tokens_per_second": row.tokens_per_second,
            "over_plain": tuned.over(row, "plain decoding"),
            "over_speculative": tuned.over(row, "speculative"),
        }
        for row in tuned.rows
    ]
    times = dict(vars(tuned.primitives))
    times["passes"] = {window: each._asdict() for window, each in times["passes"].items()}
    for side in ("drafting", "beside"):
        times[side] = {**times[side]._asdict(), "selects": dict(times[side].selects)}
    counts = {"texts": tuned.texts, "left_out": tuned.left_out}
    return {"chosen": rows[0], "sentence": str(tuned), "primitives": times, "rows": rows, **counts}


def _table(tuned: Any) -> Table:
    """Show the best setting of every policy: its step, how often the next window is ready or found, the speed-ups."""
    best: dict[str, Any] = {}
    for row in tuned.rows:
        best.setdefault(row.spec.label, row)
    title = f"the best of each policy, by the cost model, of {len(tuned.rows)} settings"
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    table.add_column("policy", no_wrap=True)
    for column in ("γ", "κ", "exit", "ms", "1+E[A]", "ready", "tok/s", "×plain", "×SD"):
        table.add_column(column, justify="right")
    for row in best.values():
        spec, uses_exit = row.spec, row.spec.policy and row.spec.policy.exit
        ratios = [tuned.over(row, label) for label in ("plain decoding", "speculative")]
        table.add_row(
            spec.label,
            str(spec.window or ""),
            str(spec.num_candidates) if uses_exit else "",
            str(spec.exit_layer) if uses_exit else "",
            f"{1e3 * row.step:.2f}",
            f"{1 + row.accepted_length:.2f}",
            f"{100 * (1 - row.fallback_rate):.0f}%" if spec.policy or spec.sizes else "",
            f"{row.tokens_per_second:.0f}",
            *("" if ratio is None else f"{ratio:.2f}" for ratio in ratios),
        )
    return table
