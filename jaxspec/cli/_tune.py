"""``jaxspec tune``: which method, policy, window, exit and number of branches are the fastest on this machine?"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from jaxspec.cli._methods import Continuations, load, two_devices
from jaxspec.cli.checks import at_least
from jaxspec.cli.exits import check_exit_file
from jaxspec.cli.shared import Flag, report
from jaxspec.zoo import PAIRS


def tune(
    pair: Annotated[str, tyro.conf.Positional] = PAIRS[0],
    draft: Path | None = None,
    windows: tuple[int, ...] = (1, 3, 5, 7),
    num_candidates: tuple[int, ...] = (4, 8),
    budgets: tuple[int, ...] = (4, 8),
    exit_layers: tuple[int, ...] = (),
    exit: Path | None = None,
    batch: int = 1,
    continuations: Annotated[Continuations, tyro.conf.arg(name="")] = Continuations(),
    json: Flag = False,  # noqa: A002  the flag is called --json
) -> None:
    """Time the programs of a step, replay every policy, and name the fastest way to decode.

    Args:
        pair: name of an embedded pair, a folder that train wrote, or a target as for generate, with --draft.
        draft: as for generate; an embedded pair has its own. Of one with heads, windows beyond them are left out.
        windows: tokens drafted per step (γ).
        num_candidates: tokens that an exit sends for each position (κ).
        budgets: branches rolled out (R); all candidates are tried as well.
        exit_layers: layers before the exit; default: the pair's own, and quarters of the target; with trained exits,
            the first of them.
        exit: exits that train lens wrote; default: those in the target's folder, if there are any.
        batch: sequences that will be decoded together.
        continuations: prompts and their continuations.
        json: end with one JSON object on one line.
    """
    from jaxspec.analysis import Grid
    from jaxspec.analysis import tune as find_fastest

    grid = Grid(windows, num_candidates, (*budgets, None), exit_layers or None)
    at_least(1, batch=batch)
    continuations.check(max(windows))
    check_exit_file(exit)
    two_devices()
    models = load(pair, draft, drafting_for="jaxspec tune", exit=exit)
    if models.exits:
        models = models.at(exit_layers[0] if exit_layers else None)
        grid = replace(grid, exit_layers=exit_layers or (models.exits[0].layer,))
    assert models.draft is not None
    tuned = find_fastest(
        models.target,
        models.draft,
        continuations.read(models.target.text),
        grid=grid,
        exit_layer=models.exit_layer,
        exit=models.exit,
        new_tokens=continuations.new_tokens,
        batch=batch,
        progress=not json,
    )
    if json:
        return report(summary(tuned), True)
    Console().print(_table(tuned))
    print(tuned)


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
    return {"chosen": rows[0], "sentence": str(tuned), "primitives": times, "rows": rows}


def _table(tuned: Any) -> Table:
    """Show the best setting of every policy: its step, how often the next window is ready, and the speed-ups."""
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
        table.add_row(
            spec.label,
            str(spec.window or ""),
            str(spec.num_candidates) if uses_exit else "",
            str(spec.exit_layer) if uses_exit else "",
            f"{1e3 * row.step:.2f}",
            f"{1 + row.accepted_length:.2f}",
            f"{100 * (1 - row.fallback_rate):.0f}%" if spec.policy else "",
            f"{row.tokens_per_second:.0f}",
            f"{tuned.over(row, 'plain decoding'):.2f}",
            f"{tuned.over(row, 'speculative'):.2f}",
        )
    return table
