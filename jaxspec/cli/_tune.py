"""``jaxspec tune``: which method, policy, window, exit and branches are the fastest on this machine?"""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from jaxspec.cli._methods import load, two_devices
from jaxspec.cli.checks import at_least, check_readable
from jaxspec.cli.shared import Flag, prompts_of, report
from jaxspec.zoo import PAIRS


def tune(
    pair: Annotated[str, tyro.conf.Positional] = PAIRS[0],
    draft: Path | None = None,
    texts: Path | None = None,
    windows: tuple[int, ...] = (1, 3, 5, 7),
    num_candidates: tuple[int, ...] = (4, 8),
    budgets: tuple[int, ...] = (4, 8),
    exit_layers: tuple[int, ...] = (),
    prompts: int = 16,
    new_tokens: int = 128,
    batch: int = 1,
    json: Flag = False,  # noqa: A002  the flag is called --json
) -> None:
    """Time what steps are made of, read off what every policy foresees, and name the fastest way to decode.

    Args:
        pair: name of an embedded pair, a folder that train wrote, or a target as for generate, with --draft.
        draft: a smaller model over the same vocabulary; an embedded pair brings its own.
        texts: prompts are windows of these: .txt file, folder of them, or JSON lines with "user" and "text"; default:
            roles of Shakespeare that the embedded pair never saw. Best are texts like those to come.
        windows: tokens drafted a step (γ).
        num_candidates: tokens that an exit sends for each position (κ).
        budgets: branches rolled out (R); all of them are tried besides.
        exit_layers: layers before the exit; default: the pair's own, and quarters of the target.
        prompts: how many are continued.
        new_tokens: length of each continuation.
        batch: sequences that will be decoded together.
        json: end with one JSON object on one line.
    """
    from jaxspec.analysis import Grid
    from jaxspec.analysis import tune as tuned

    grid = Grid(windows, num_candidates, (*budgets, None), exit_layers or None)
    at_least(1, prompts=prompts, batch=batch)
    at_least(max(windows) + 1, new_tokens=new_tokens)
    check_readable(texts)
    two_devices()
    models = load(pair, draft, drafting_for="jaxspec tune")
    assert models.draft is not None
    found = tuned(
        models.target,
        models.draft,
        prompts_of(models.target.text, prompts, texts),
        grid=grid,
        exit_layer=models.exit_layer,
        exit=models.exit,
        new_tokens=new_tokens,
        batch=batch,
        progress=not json,
    )
    if json:
        return report(summary(found), True)
    Console().print(_table(found))
    print(found)


def summary(found: Any) -> dict[str, Any]:
    """What was found, for machines; seconds."""
    rows = [
        {**asdict(row), "setting": str(row.setting), "over_plain": plain, "over_speculative": vanilla}
        for row in found.rows
        for plain, vanilla in [(found.over(row, "plain decoding"), found.over(row, "speculative"))]
    ]
    measured = {**vars(found.primitives), "passes": _named(found.primitives.passes)}
    for side in ("drafting", "beside"):
        measured[side] = {**measured[side]._asdict(), "selects": dict(measured[side].selects)}
    return {"chosen": rows[0], "sentence": str(found), "primitives": measured, "rows": rows}


def _named(passes: Any) -> dict[int, Any]:
    return {window: found._asdict() for window, found in passes.items()}


def _table(found: Any) -> Table:
    """The best setting of every policy: its step, how often the next window is ready, and what is gained."""
    best: dict[str, Any] = {}
    for row in found.rows:
        best.setdefault(row.setting.name, row)
    title = f"the best of each policy, by the law, of {len(found.rows)} settings"
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    table.add_column("policy", no_wrap=True)
    for column in ("γ", "κ", "exit", "ms", "1+E[A]", "ready", "tok/s", "×plain", "×SD"):
        table.add_column(column, justify="right")
    for row in best.values():
        setting, asks = row.setting, row.setting.policy and row.setting.policy.exit
        table.add_row(
            setting.name,
            str(setting.window or ""),
            str(setting.num_candidates) if asks else "",
            str(setting.exit_layer) if asks else "",
            f"{1e3 * row.step:.2f}",
            f"{1 + row.accepted_length:.2f}",
            f"{100 * (1 - row.fallback_rate):.0f}%" if setting.policy else "",
            f"{row.tokens_per_second:.0f}",
            f"{found.over(row, 'plain decoding'):.2f}",
            f"{found.over(row, 'speculative'):.2f}",
        )
    return table
