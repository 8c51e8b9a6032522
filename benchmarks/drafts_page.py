"""Tables and picture of docs/federated_drafts.md, made from the lines of drafts.py."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pictures
from ledger import Row
from matplotlib.axes import Axes
from matplotlib.figure import Figure

#: The text between these lines of the page is replaced.
BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"
#: The colours of Okabe and Ito, which people with colour blindness can distinguish.
COLOURS = {
    "fedspeed": "#d55e00",
    "fedavg": "#0072b2",
    "scaffold": "#009e73",
    "feddyn": "#cc79a7",
    "local-only": "#999999",
    "centralised": "#222222",
    "fedspeed-dp": "#e69f00",
    "fedspeed-dp, 100x": "#b8860b",
    "fedspeed-int8": "#d55e00",
    "fedspeed-topk": "#d55e00",
}
DASHES = {
    "centralised": "--",
    "fedspeed-dp": "-.",
    "fedspeed-dp, 100x": "-.",
    "fedspeed-int8": ":",
    "fedspeed-topk": (0, (5, 1, 1, 1, 1, 1)),
}
PANELS = {"held_out": "(a) held-out clients", "unseen": "(b) unseen text of training clients"}
#: Share of the centralised gain that a federated method should reach.
AIM = 0.95


def chosen_rate(rows: Sequence[Row], name: str) -> float:
    """The learning rate with the largest accepted length on validation roles, with the seed that ran the whole grid."""
    tried = [row for row in rows if row.get("method") == name]
    if not tried:
        raise ValueError(f"expected a finished run of {name}, got none; run it first")
    first = [row for row in tried if row["seed"] == tried[0]["seed"]]
    return max(first, key=lambda row: row["validation"][-1])["learning_rate"]


def figures(rows: Sequence[Row], methods: Sequence[str]) -> Row:
    """Curves by method, decoding speeds, and shares of the centralised gain, of the finished runs."""
    curves = {}
    for name in methods:
        if any(row.get("method") == name for row in rows):
            rate = chosen_rate(rows, name)
            mine = [row for row in rows if row.get("method") == name and row["learning_rate"] == rate]
            curves[name] = _method(mine, rate, max(max(row["rounds"]) for row in rows if "method" in row))
    decoding = {row["decoded"]: row for row in rows if "decoded" in row}
    return {"methods": curves, "decoded": decoding, "aim": aim(curves)}


def _method(rows: Sequence[Row], rate: float, last: int) -> Row:
    """Curves of one method by seed; a method that kept its best step stays at it until the last round."""
    rounds = max((row["rounds"] for row in rows), key=len)
    rounds = rounds if rounds[-1] == last else [*rounds, last]
    curves = {name: np.stack([np.interp(rounds, row["rounds"], row[name]) for row in rows]) for name in PANELS}
    facts = {name: rows[0][name] for name in ("samples", "message_bytes", "privacy")}
    return {"rate": rate, "seeds": len(rows), "rounds": rounds, "curves": curves, **facts}


def aim(methods: Row) -> Row:
    """Share of the centralised gain that each method reaches, and the first round with a share of ``AIM``."""
    shares: Row = {}
    for panel in PANELS if "centralised" in methods else ():
        top = methods["centralised"]["curves"][panel].mean(axis=0)
        before, gain = top[0], top[-1] - top[0]
        shares[panel] = {name: _share(row, panel, before, gain) for name, row in methods.items() if gain > 0}
    return shares


def _share(row: Row, panel: str, before: float, gain: float) -> Row:
    parts = (row["curves"][panel].mean(axis=0) - before) / gain
    reached = [number for number, part in zip(row["rounds"], parts, strict=True) if part >= AIM]
    return {"part": round(float(parts[-1]), 3), "round": reached[0] if reached else None}


def write(results: Row, docs: Path) -> None:
    """Write the picture, and the page if it exists."""
    docs.joinpath("images").mkdir(parents=True, exist_ok=True)
    draw(results["methods"], docs / "images" / "federated_drafts.png")
    page = docs / "federated_drafts.md"
    if page.exists():
        before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
        after = rest.partition(END)[2]
        page.write_text(f"{before}{BEGIN}\n\n{text(results)}\n{END}{after}", encoding="utf-8")


def text(results: Row) -> str:
    """Tables and a summary, in Markdown."""
    parts = [_table(results)]
    if results["decoded"]:
        parts.append(_speeds(results["decoded"]))
    parts.append(_summary(results))
    return "\n".join(parts)


def _table(results: Row) -> str:
    columns = [
        "method",
        "learning rate",
        "seeds",
        *PANELS.values(),
        "of the centralised gain (a), (b)",
        f"round with {AIM:.0%} (a), (b)",
    ]
    columns += ["MB per client and round"]
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    some = next(iter(results["methods"].values()))
    before = [f"{some['curves'][panel][:, 0].mean():.2f}" for panel in PANELS]
    lines.append(f"| before | | | {before[0]} | {before[1]} | | | |")
    for name, row in results["methods"].items():
        ends = [row["curves"][panel][:, -1] for panel in PANELS]
        values = [f"{end.mean():.2f}" + (f" ± {end.std():.2f}" if len(end) > 1 else "") for end in ends]
        shares = [results["aim"].get(panel, {}).get(name) for panel in PANELS]
        share = ", ".join(f"{each['part']:.0%}" for each in shares if each)
        first = ", ".join(str(each["round"] or "–") for each in shares if each)
        size = f"{row['message_bytes'] / 1e6:.2f}" if row["message_bytes"] else ""
        lines.append(
            f"| {name} | {row['rate']:g} | {row['seeds']} | {values[0]} | {values[1]} | {share} | {first} | {size} |"
        )
    return "\n".join(lines) + "\n"


def _speeds(decoded: Row) -> str:
    names = list(next(iter(decoded.values()))["tokens_per_second"])
    lines = ["| tokens/s, over plain decoding | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for panel, row in decoded.items():
        speed = row["tokens_per_second"]
        cells = [f"{speed[name]:,.0f} ({speed[name] / speed['plain']:.2f}×)" for name in names]
        lines.append(f"| {PANELS[panel]} | " + " | ".join(cells) + " |")
    same = "are the same" if all(row["identical"] for row in decoded.values()) else "DIFFER"
    return "\n".join(lines) + f"\n\nThe tokens of all of them {same}.\n"


def _summary(results: Row) -> str:
    """Whether the aim is reached, and the guarantee of private methods."""
    lines = [_compared(PANELS[panel], parts) for panel, parts in results["aim"].items() if "fedspeed" in parts]
    for name, row in results["methods"].items():
        if (guarantee := row["privacy"]) is not None:
            bound = f"({guarantee['epsilon']:.3g}, {guarantee['delta']:.1g})-differential privacy of a client"
            lines.append(f"- {name}: {bound}; {guarantee['neighbours']}, {guarantee['sampling']}.")
    return "\n".join(lines) + "\n"


def _compared(where: str, parts: Row) -> str:
    never = {"part": 0.0, "round": None}
    speed, average = parts["fedspeed"], parts.get("fedavg", never)
    sooner = speed["round"] and (average["round"] is None or speed["round"] < average["round"])
    results = [
        f"{name} has {each['part']:.0%} of the centralised gain at the end and reaches {AIM:.0%} "
        + (f"by round {each['round']}" if each["round"] else "in no round")
        for name, each in (("FedSpeed", speed), ("FedAvg", average))
    ]
    met = [f"{AIM:.0%} is {'met' if speed['part'] >= AIM else 'missed'}"]
    met += [f"fewer rounds than FedAvg is {'met' if sooner else 'missed'}"]
    return f"- {where}: {'; '.join(results)}. {', '.join(met)}."


def draw(methods: Row, path: Path) -> None:
    """Draw accepted tokens over rounds: one panel per evaluation set, bands of one standard deviation over seeds."""
    figure = Figure(figsize=(13, 5.2), layout="constrained")
    panels = figure.subplots(1, len(PANELS))
    for axes, (panel, title) in zip(panels, PANELS.items(), strict=True):
        for name, row in methods.items():
            mean, spread = row["curves"][panel].mean(axis=0), row["curves"][panel].std(axis=0)
            style = {"color": COLOURS.get(name, "#555555"), "linestyle": DASHES.get(name, "-")}
            axes.plot(row["rounds"], mean, linewidth=2.2 if name == "fedspeed" else 1.4, **style)
            axes.fill_between(
                row["rounds"], mean - spread, mean + spread, color=style["color"], alpha=0.12, linewidth=0
            )
        ends = {name: float(row["curves"][panel][:, -1].mean()) for name, row in methods.items()}
        before = min(float(row["curves"][panel][:, 0].min()) for row in methods.values())
        axes.set_ylim(bottom=before - 0.3 * (max(ends.values()) - before))  # curves ruined by noise leave the panel
        _labels(axes, ends, max(row["rounds"][-1] for row in methods.values()))
        axes.set(title=title, xlabel="round (centralised: as many samples)")
        axes.set_xticks(max((row["rounds"] for row in methods.values()), key=len))
        pictures.plain(axes)
    panels[0].set_ylabel("accepted tokens per step")
    figure.savefig(path, dpi=130)


def _labels(axes: Axes, ends: dict[str, float], last: int) -> None:
    """Write names beside the ends of their lines, moved apart if they overlap; with the value if below the panel."""
    low, high = axes.get_ylim()
    room, height = 0.042 * (high - low), low - 0.03 * (high - low)
    for name in sorted(ends, key=lambda name: ends[name]):
        height = max(ends[name], height + room)
        axes.annotate(
            name if ends[name] >= low else f"{name}: {ends[name]:.2f}",
            (last, max(ends[name], low)),
            (1.03 * last, height),
            va="center",
            color=COLOURS.get(name, "#555555"),
            fontsize=9.5,
            arrowprops={"arrowstyle": "-", "color": "0.8", "linewidth": 0.6},
        )
    axes.set_xlim(0, 1.24 * last)
    axes.set_ylim(low, max(high, height + room))
