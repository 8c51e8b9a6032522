"""``jaxspec bench``: Spec-Bench on any target and draft."""

from pathlib import Path
from typing import Annotated

import jax
import tyro
from rich.console import Console
from rich.table import Table

from jaxspec.commands.methods import Drafting, Method, load, method_of, two_devices
from jaxspec.commands.shared import Flag, report
from jaxspec.zoo import PAIRS


def bench(
    questions: Annotated[Path, tyro.conf.Positional],
    target: str = PAIRS[0],
    draft: Path | None = None,
    methods: tuple[Method, ...] = ("speculative", "mirror"),
    per_task: int | None = None,
    max_new_tokens: int = 256,
    runs: int = 3,
    dtype: str | None = None,
    drafting: Annotated[Drafting, tyro.conf.arg(name="")] = Drafting(),
    json: Flag = False,  # noqa: A002  the flag is called --json
) -> None:
    """Run Spec-Bench: tokens a second of every method over plain decoding on as many devices, task by task.

    Args:
        questions: Spec-Bench's question.jsonl.
        target: name of an embedded pair, a folder that train or convert wrote, a published checkpoint.
        draft: a smaller model over the same vocabulary; an embedded pair brings its own.
        methods: compared with plain decoding.
        per_task: questions of each task at most.
        max_new_tokens: of every answer.
        runs: measured ones, in turns; medians.
        dtype: of the parameters.
        drafting: window, policy, exit.
        json: one JSON object a row, one on each line.
    """
    import jaxspec
    from jaxspec.specbench import read_questions, run

    asked = read_questions(questions, per_task)
    two_devices()
    models = load(target, draft, dtype)
    devices = jax.devices()[: 2 if "mirror" in methods else 1]
    built = {"autoregressive": jaxspec.autoregressive(models.target, jaxspec.mesh_of(devices))}
    built |= {name: method_of(models, name, drafting) for name in methods if name not in built}
    rows = run(built, asked, max_new_tokens, runs, progress=not json)
    if json:
        for row in rows:
            report(row._asdict(), True)
        return
    table = Table(title=f"{len(asked)} questions, plain decoding on {len(devices)} device(s)")
    for column in ("task", "method", "tokens/s", "ratio", "accepted", "tokens", "identical"):
        table.add_column(column, justify="left" if column in ("task", "method") else "right")
    for task, method, speed, ratio, accepted, tokens, identical in rows:
        table.add_row(task, method, f"{speed:.1f}", f"{ratio:.2f}", f"{accepted:.2f}", f"{tokens:,}", str(identical))
    Console().print(table)
