"""``jaxspec fits``: do a target and a draft fit on a slice of TPUs, and how long may a step take there?"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import rich
import tyro
from rich.table import Table
from tqdm import tqdm

from jaxspec.cli.checks import at_least
from jaxspec.cli.shared import Flag, report

if TYPE_CHECKING:
    from jaxspec.analysis.compiling import CompiledProgram
    from jaxspec.analysis.crossing import StepSizes

#: Programs of a step with an exit, for the progress bar.
PROGRAMS = 8
ESTIMATED = "Compiled, not run: times are the larger of bytes over bandwidth and, where known, the compiler's cycles."


@dataclass(frozen=True)
class StepFlags:
    """Sizes of the step.

    Attributes:
        batch: sequences (B).
        prompt: tokens of each.
        capacity: rows of the cache of each sequence.
        window: tokens drafted per step (γ).
        num_candidates: tokens that the exit sends for each position (κ).
        budget: branches that are rolled out (R).
        exit_layer: layers before the exit; default: half of the target's.
    """

    batch: int = 1
    prompt: int = 256
    capacity: int = 4096
    window: int = 7
    num_candidates: int = 8
    budget: int = 8
    exit_layer: int | None = None

    def sizes(self) -> "StepSizes":
        """Return the sizes.

        Raises:
            ValueError: a number below 1, or a cache too small for prompt and window.
        """
        from jaxspec.analysis.crossing import StepSizes

        at_least(1, batch=self.batch, prompt=self.prompt, window=self.window, num_candidates=self.num_candidates)
        at_least(1, budget=self.budget, exit_layer=self.exit_layer)
        at_least(self.prompt + self.window + 2, capacity=self.capacity)
        return StepSizes(self.batch, self.prompt, self.capacity, self.window, self.num_candidates, self.exit_layer)


def fits(
    target: Path,
    draft: Path,
    topology: str = "v5e:2x4",
    split: str | None = None,
    step: Annotated[StepFlags, tyro.conf.arg(name="")] = StepFlags(),
    int8: Flag = False,
    json: Flag = False,  # noqa: A002  the flag is called --json
) -> None:
    """Compile a step of Mirror-SD for TPUs that are not here: memory, traffic, messages, estimated times; no weights.

    Needs the package libtpu (pip install "jax[tpu]"), on any machine. Weights are bfloat16.

    Args:
        target: config.json of a published model, or its folder.
        draft: likewise.
        topology: kind and shape of the slice: v4, v5e, v5p, v6e.
        split: chips of the target and of the draft, as 6+2; default: half each; a single chip is both.
        step: sizes.
        int8: the target's layers in eight bits.
        json: end with one JSON object on one line.
    """
    from jaxspec.analysis.cost import step_time
    from jaxspec.analysis.fits import compile_step, program_times, shapes_of
    from jaxspec.devices import chips
    from jaxspec.devices.sharding import Placement, mesh_of
    from jaxspec.loading.huggingface import read_config
    from jaxspec.methods import candidates
    from jaxspec.models import fit_vocabulary

    sizes, chip = step.sizes(), chips.chip_of(topology)
    configs = [read_config(path) for path in (target, draft)]
    devices = chips.topology(topology)
    first, second = parts_of(split, len(devices))
    placement = Placement(mesh_of(devices[:first]), mesh_of(devices[-second:]))
    large = shapes_of(configs[0], int8=int8)
    small = fit_vocabulary(shapes_of(configs[1]), configs[0].vocab_size)
    with tqdm(total=PROGRAMS, desc="compile", unit="program", disable=json) as bar:
        policy = candidates.mirror(step.budget)
        programs = compile_step(large, small, placement, sizes, policy, partial(_next, bar))
    times = program_times(programs, (chip, chip))
    steps = {f"step_{name}_ms": round(1e3 * step_time(times, rate), 3) for name, rate in (("reused", 0), ("anew", 1))}
    summary = {"topology": topology, "target_chips": first, "draft_chips": second, "chip_GB": chip.memory / 1e9}
    rows = {name: _row(program, chip) for name, program in programs.items()}
    report(summary | steps | ({"programs": rows} if json else {}), json)
    if not json:
        rich.print(_table(rows))
        print(ESTIMATED)


def parts_of(split: str | None, count: int) -> tuple[int, int]:
    """Return the chips of target and draft.

    Raises:
        ValueError: not two numbers that are the chips together.
    """
    if split is None:
        return (1, 1) if count == 1 else (count // 2, count - count // 2)
    parts = [int(part) if part.isdigit() else 0 for part in split.split("+")]
    if len(parts) != 2 or min(parts) < 1 or sum(parts) != count:
        raise ValueError(f"expected --split of {count} chips, as {count - 1}+1, got {split!r}")
    return parts[0], parts[1]


def _next(bar: Any, name: str) -> None:
    """Show which program is compiled."""
    bar.set_postfix_str(name)
    bar.update()


def _row(program: "CompiledProgram", chip: Any) -> dict[str, Any]:
    sent = program.counted.collectives
    return {
        "compile_s": round(program.seconds, 1),
        "arguments_MB": round(program.arguments / 1e6, 1),
        "temporary_MB": round(program.temporary / 1e6, 1),
        "moved_MB": round(program.counted.hbm_bytes / 1e6, 1),
        "estimate_ms": round(1e3 * program.estimate(chip), 3),
        "collectives": sum(each.times for each in sent),
        "sent_MB": round(sum(each.bytes * each.times for each in sent) / 1e6, 3),
    }


def _table(rows: dict[str, dict[str, Any]]) -> Table:
    table = Table(title="a chip's share of each program")
    table.add_column("program")
    for column in next(iter(rows.values())):
        table.add_column(column.replace("_", " "), justify="right")
    for name, row in rows.items():
        table.add_row(name, *map(str, row.values()))
    return table
