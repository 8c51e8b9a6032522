"""Programs of a step of Mirror-SD at full size, compiled for TPUs that are not here, beside what is predicted of them.

    python benchmarks/compiled.py [--pairs Llama-3-8B] [--json]

Needs libtpu (``make tpu`` installs it in ``.venv-tpu``), and some minutes a pair. Nothing is run: ``moved_MB`` of main
memory, copies, loops and messages are counted in the compiler's output, of one chip; ``estimate_ms`` is the larger of
these bytes over bandwidth and, for v5e, the compiler's cycles; ``predicted_ms`` is of ``jaxspec.analysis.roofline``.
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

from published import config_of
from tqdm import tqdm

from jaxspec.analysis.compiling import CompiledProgram
from jaxspec.analysis.crossing import StepSizes
from jaxspec.analysis.fits import compile_step, shapes_of
from jaxspec.analysis.roofline import Machine, PredictedPair, Workload, predicted_times
from jaxspec.devices import Placement, mesh_of
from jaxspec.devices.chips import Chip, chip_of, topology
from jaxspec.models import fit_vocabulary

DRAFT, LARGE = "Qwen3-0.6B", 1 << 20


class Setting(NamedTuple):
    """A pair on a slice.

    Attributes:
        target: its name.
        topology: of both.
        chips: of the target and of the draft.
        batch: B.
    """

    target: str
    topology: str
    chips: tuple[int, int]
    batch: int = 1


SETTINGS = (
    Setting("Llama-3-8B", "v5e:2x4", (4, 4)),
    Setting("Llama-3-8B", "v5e:2x4", (4, 4), 8),
    Setting("Qwen3-14B", "v5e:4x4", (8, 8)),
)


def lines(setting: Setting) -> Iterator[dict[str, Any]]:
    """Yield a line for every program."""
    config = config_of(setting.target)
    devices, (first, second) = topology(setting.topology), setting.chips
    placement, sizes = Placement(mesh_of(devices[:first]), mesh_of(devices[-second:])), StepSizes(batch=setting.batch)
    draft = fit_vocabulary(shapes_of(config_of(DRAFT)), config.vocab_size)
    with tqdm(desc=f"{setting.target}, B = {setting.batch}", unit="program") as bar:
        made = compile_step(
            shapes_of(config), draft, placement, sizes, report=lambda name: bar.set_postfix_str(name) or bar.update()
        )
    chip = chip_of(setting.topology)
    pair = PredictedPair(config, draft.network.config, Machine(chip, first, 1.0), Machine(chip, second, 1.0))
    found = predicted_times(pair, work=Workload(setting.batch, sizes.capacity))._asdict()
    expected = found | {"select": found["draft"]}
    about = setting._asdict() | {"draft": DRAFT, "chips": f"{first}+{second}"}
    for name, program in made.items():
        yield {
            "kind": "program",
            **about,
            "program": name,
            **row(program, chip),
            "predicted_ms": ms(expected.get(name)),
        }


def row(program: CompiledProgram, chip: Chip) -> dict[str, Any]:
    """Return what was counted of a program."""
    counted = program.counted
    sent = Counter(each.kind for each in counted.collectives for _ in range(each.times))
    return {
        "compile_s": round(program.seconds, 1),
        "arguments_MB": round(program.arguments / 1e6),
        "temporary_MB": round(program.temporary / 1e6),
        "moved_MB": round(counted.hbm_bytes / 1e6),
        "bytes_ms": ms(counted.hbm_bytes / chip.bandwidth),
        "cycles_ms": ms(counted.cycles / chip.clock) if chip.clock else None,
        "estimate_ms": ms(program.estimate(chip)),
        "copied_MB": round(sum(copy.bytes * copy.times for copy in counted.copied(LARGE)) / 1e6),
        "loops": counted.loops,
        "collectives": dict(sent),
    }


def ms(seconds: float | None) -> float | None:
    """Return milliseconds."""
    return None if seconds is None else round(1e3 * seconds, 3)


def main() -> None:
    """Print the lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = list(dict.fromkeys(setting.target for setting in SETTINGS))
    parser.add_argument("--pairs", nargs="+", choices=names, default=names, help="targets")
    parser.add_argument("--json", action="store_true", help="has no effect: lines are JSON")
    options = parser.parse_args()
    for setting in SETTINGS:
        for line in lines(setting) if setting.target in options.pairs else ():
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
