"""Where would each policy pay? Published pairs on chips that are not here, predicted; and the prediction's errors here.

    python benchmarks/predicted.py [--json] [--picture FILE]

Nothing is measured: ``jaxspec.analysis.roofline`` has bytes, operations and the cost model, at given acceptance and
foresight. Lines "check" lay it beside steps measured on an H200 (``results/mirror_gpu.jsonl``); lines "compiled" have
the TPU compiler's estimates of the programs instead (``results/compiled.jsonl``).
"""

import argparse
import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
from published import SIZES, config_of

from jaxspec.analysis.roofline import (
    Machine,
    PassPart,
    PredictedPair,
    PredictedTimes,
    Workload,
    gains_at,
    pass_seconds,
    predicted_gains,
    predicted_times,
)
from jaxspec.devices.chips import CHIPS
from jaxspec.zoo import grown_config, load

RESULTS = Path(__file__).parent / "results"
DRAFT = "Qwen3-0.6B"


class Slice(NamedTuple):
    """Chips of the target and of the draft."""

    chip: str
    count: int
    draft_chip: str
    draft_count: int

    @property
    def name(self) -> str:
        """As it is printed."""
        return f"{self.count} {self.chip} + {self.draft_count} {self.draft_chip}"


SLICES = (Slice("v5e", 8, "v5e", 2), Slice("v5e", 8, "v5e", 8), Slice("v6e", 4, "v6e", 4), Slice("H200", 8, "L40S", 8))
#: R, and seconds of a message, as ``predicted_times`` takes them.
BRANCHES, MESSAGE = 8, 50e-6
RATES, FORESEEN = (0.6, 0.7, 0.8, 0.9), (0.5, 0.8, 0.95)


def gains() -> Iterator[dict[str, Any]]:
    """Return a line for every pair, slice, acceptance and foresight."""
    for target, where in product([name for name in SIZES if name != DRAFT], SLICES):
        machines = Machine(CHIPS[where.chip], where.count), Machine(CHIPS[where.draft_chip], where.draft_count)
        pair = PredictedPair(config_of(target), config_of(DRAFT), *machines)
        times = {f"{name}_ms": round(1e3 * value, 3) for name, value in predicted_times(pair)._asdict().items()}
        for rate, foreseen in product(RATES, FORESEEN):
            found = predicted_gains(pair, rate, foreseen)
            about = {"kind": "gain", "target": target, "draft": DRAFT, "chips": where.name}
            yield about | times | {"rate": rate, "foreseen": foreseen} | _rounded(found._asdict())


def compiled() -> Iterator[dict[str, Any]]:
    """Return the same of the compiler's estimates for single sequences (``results/compiled.jsonl``)."""
    rows = [json.loads(line) for line in (RESULTS / "compiled.jsonl").read_text().splitlines()[1:]]
    for target in dict.fromkeys(row["target"] for row in rows):
        mine = {row["program"]: row for row in rows if row["target"] == target and row["batch"] == 1}
        chip = mine["whole"]["topology"].partition(":")[0]
        first, second = mine["whole"]["chips"].split("+")
        named = {"draft": "select"} | {name: name for name in ("plain", "whole", "prefix", "suffix", "rollout")}
        times = {name: mine[program]["estimate_ms"] for name, program in named.items()}
        found = PredictedTimes(**{name: 1e-3 * value for name, value in times.items()}, message=MESSAGE)
        for rate, foreseen in product(RATES, FORESEEN):
            about = {"kind": "compiled", "target": target, "draft": DRAFT, "chips": f"{first} {chip} + {second} {chip}"}
            gained = {"same_placement": gains_at(found, BRANCHES, rate, foreseen), "all_devices": None}
            yield (
                about
                | {f"{name}_ms": value for name, value in times.items()}
                | _rounded({"rate": rate, "foreseen": foreseen} | gained)
            )


def checks() -> Iterator[dict[str, Any]]:
    """Return measured steps of the grown targets on an H200 beside what is predicted of them."""
    rows = [json.loads(line) for line in (RESULTS / "mirror_gpu.jsonl").read_text().splitlines()]
    small, on = load().target.network.config, Machine(CHIPS["H200"])
    for size, factors in (("7B", (33, 1)), ("1B", (13, 1))):
        config = grown_config(small, *factors)
        measured = next(
            row["step_ms"] for row in rows if (row.get("target"), row.get("method")) == (size, "autoregressive")
        )
        predicted = 1e3 * pass_seconds(config, PassPart(config.num_layers), 1, on, Workload(rows=256))
        yield {
            "kind": "check", "what": f"a step of plain decoding, {size} target, one H200", "measured_ms": measured,
            "predicted_ms": round(predicted, 3), "error": round(predicted / measured - 1, 3),
        }  # fmt: skip


def _rounded(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: _rounded(value) for name, value in tree.items()}
    return round(tree, 3) if isinstance(tree, float) else tree


def draw(lines: list[dict[str, Any]], path: Path) -> None:
    """Draw each policy over speculative decoding at the same placement, a panel for each slice, at Ω′ = 0.8."""
    targets = list(dict.fromkeys(line["target"] for line in lines))
    figure, panels = plt.subplots(len(targets), len(SLICES), figsize=(11, 5.2), sharex=True, sharey=True, squeeze=False)
    for (row, target), (column, where) in product(enumerate(targets), enumerate(SLICES)):
        axes, mine = panels[row][column], [
            line for line in lines if (line["target"], line["chips"], line["foreseen"]) == (target, where.name, 0.8)
        ]  # fmt: skip
        for policy in ("pearl", "saguaro", "mirror", "hybrid"):
            ratios = [line["same_placement"][policy] / line["same_placement"]["speculative"] for line in mine]
            axes.plot([line["rate"] for line in mine], ratios, marker="o", markersize=3, label=policy)
        if mine[0]["all_devices"] is not None:
            both = [line["all_devices"] / line["equal_chips"]["speculative"] for line in mine]
            axes.plot(
                [line["rate"] for line in mine], both, color="0.4", linestyle="--", label="speculative, all chips"
            )
        axes.axhline(1, color="0.3", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(f"{target}, {where.name}", fontsize=9)
        if row == len(targets) - 1:
            axes.set_xlabel("accepted, α")
    panels[0][0].set_ylabel("× vanilla SD, same placement", fontsize=9)
    handles, names = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, names, frameon=False, fontsize=8, loc="lower center", ncols=len(names))
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    """Print the lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--picture", type=Path, help="file to draw")
    options = parser.parse_args()
    lines = list(gains())
    for line in [*checks(), *lines, *compiled()]:
        print(json.dumps(line) if options.json else line)
    if options.picture:
        options.picture.parent.mkdir(parents=True, exist_ok=True)
        draw(lines, options.picture)


if __name__ == "__main__":
    main()
