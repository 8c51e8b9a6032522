"""``jaxspec bench``: Spec-Bench on any target and draft."""

from pathlib import Path
from typing import Annotated

import jax
import rich
import tyro
from rich.table import Table

from jaxspec.cli._methods import WITH_DRAFT, Drafting, Method, load, method_of, two_devices
from jaxspec.cli.checks import at_least, check_readable
from jaxspec.cli.shared import Flag, report
from jaxspec.devices.sharding import is_shardable
from jaxspec.methods.protocol import DecodingMethod
from jaxspec.models.base import Model
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
    """Run Spec-Bench: tokens per second of every method over plain decoding, task by task.

    Plain decoding runs on one device, or on as many as the other methods if these can share its heads: whichever is
    faster on the first question.

    Args:
        questions: Spec-Bench's question.jsonl.
        target: name of an embedded pair, a folder that train or convert wrote, a published checkpoint.
        draft: as for generate; an embedded pair has its own.
        methods: compared with plain decoding.
        per_task: most questions of each task.
        max_new_tokens: of every answer.
        runs: measured in turns; the result is the median.
        dtype: of the parameters.
        drafting: window, tree of speculative, policy, exit.
        json: one JSON object per row, one on each line.
    """
    from jaxspec.analysis.specbench import fastest, read_questions, run

    at_least(1, per_task=per_task, max_new_tokens=max_new_tokens, runs=runs)
    drafting.check(*methods)
    check_readable(questions)
    chosen = read_questions(questions, per_task)
    two_devices()
    needs = [name for name in methods if name in WITH_DRAFT]
    use = f"--methods {' '.join(needs)}" if needs else None
    models = load(target, draft, dtype, drafting_for=use, exit=drafting.exit)
    plain = baselines(models.target, 2 if "mirror" in methods else 1)
    others = {name: method_of(models, name, drafting) for name in methods if name != "autoregressive"}
    count = fastest(plain, chosen[:1], max_new_tokens, runs)
    rows = run({"autoregressive": plain[count]} | others, chosen, max_new_tokens, runs, progress=not json)
    if json:
        for row in rows:
            report(row._asdict() | {"baseline_devices": count}, True)
        return
    table = Table(title=f"{len(chosen)} questions, plain decoding on {count} device(s), the fastest of {sorted(plain)}")
    for column in ("task", "method", "tokens/s", "ratio", "accepted", "tokens", "identical"):
        table.add_column(column, justify="left" if column in ("task", "method") else "right")
    for task, method, speed, ratio, accepted, tokens, identical in rows:
        table.add_row(task, method, f"{speed:.1f}", f"{ratio:.2f}", f"{accepted:.2f}", f"{tokens:,}", str(identical))
    rich.print(table)


def baselines(target: Model, most: int) -> dict[int, DecodingMethod]:
    """Return plain decoding by number of devices, up to ``most``, where these can share heads and features."""
    import jaxspec

    meshes = {count: jaxspec.mesh_of(jax.devices()[:count]) for count in range(1, min(most, jax.device_count()) + 1)}
    return {
        count: jaxspec.autoregressive(target, mesh)
        for count, mesh in meshes.items()
        if is_shardable(target.network.config, mesh)
    }
