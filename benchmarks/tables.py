"""Tables of the page of figures, made from the lines that a command printed; one function per command."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

Line = dict[str, Any]


class Table(NamedTuple):
    """Head, rows of cells, and a title."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""

    def markdown(self) -> str:
        """Return Markdown with the first column aligned left, the others right."""
        rule = ["---", *["---:"] * (len(self.head) - 1)]
        lines = [f"| {' | '.join(cells)} |" for cells in (self.head, rule, *self.rows)]
        return "\n".join([f"{self.title}\n", *lines] if self.title else lines) + "\n"


def number(value: Any, digits: int = 2) -> str:
    """Format a number with fixed digits and commas at thousands; a dash for None."""
    if value is None:
        return "–"
    if isinstance(value, bool | str):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}f}"


def share(value: float | None) -> str:
    """Format a share as per cent."""
    return "–" if value is None else f"{100 * value:.1f} %"


def millions(count: int) -> str:
    """Format a number of parameters."""
    return f"{count / 1e6:.1f} M"


def pivot(lines: list[Line], row: str, column: str, cell: Callable[[Line], str], title: str = "") -> Table:
    """Make one row per value of ``row`` and one column per value of ``column``, in the order of the lines."""
    columns = list(dict.fromkeys(line[column] for line in lines))
    cells = {(line[row], line[column]): cell(line) for line in lines}
    rows = [
        [str(name), *(cells.get((name, other), "–") for other in columns)]
        for name in dict.fromkeys(line[row] for line in lines)
    ]
    return Table([row, *map(str, columns)], rows, title)


def demo(lines: list[Line]) -> Iterator[Table]:
    """Speed of the methods, Mirror-SD over both baselines, then the gain by federated training."""
    (line,) = lines
    accepted = {
        "speculative": line["accepted_length_speculative"],
        "speculative, two meshes": line.get("accepted_length_same_placement"),
        "mirror": line["accepted_length"],
    }
    rows = [
        [name, number(speed, 0), number(line["ratio_to_autoregressive"][name]), number(accepted.get(name)),
         line["settings"][name]]
        for name, speed in line["tokens_per_second"].items()
    ]  # fmt: skip
    title = f"{number(line['tokens_compared'])} tokens, identical: {line['identical']}"
    yield Table(("method", "tokens/s", "over plain", "accepted per step", "settings"), rows, title)
    over = "all_devices", "same_placement", "same_placement_independent"
    ratios = [number(line.get(f"mirror_over_{name}")) for name in over]
    head = "all devices", "same placement", "same placement, on independent clocks"
    yield Table(tuple(f"Mirror-SD over vanilla SD: {name}" for name in head), [ratios])
    gains = [[name, number(value)] for name, value in line["acceptance"].items()]
    yield Table(("draft", "accepted per step, unseen text"), gains)


def drafts(lines: list[Line]) -> Iterator[Table]:
    """Every run at its last round or best step, then decoding with the drafts."""
    names = "learning_rate", "seed", "held_out", "unseen", "message_bytes", "seconds"
    ends = [{**line, **{name: line[name][-1] for name in ("held_out", "unseen")}} for line in lines if "method" in line]
    rows = [[line["method"], *(number(line[name]) for name in names)] for line in ends]
    head = "method", "learning rate", "seed", "held-out clients", "unseen text", "bytes per client and round", "seconds"
    yield Table(head, rows, "Accepted tokens per step")
    for line in lines:
        if "decoded" in line:
            cells = [[name, number(speed, 0)] for name, speed in line["tokens_per_second"].items()]
            title = f"Decoding on {line['decoded']} text, identical: {line['identical']}"
            yield Table(("draft", "tokens/s"), cells, title)


def vocabulary(lines: list[Line]) -> Iterator[Table]:
    """One row per tokenizer."""
    names = "vocabulary", "characters_per_token", "accepted_length", "ratio_to_autoregressive"
    rows = [[number(line[name]) for name in names] for line in lines]
    yield Table(("vocabulary", "characters per token", "accepted per step", "speculative over plain"), rows)


def engine(lines: list[Line]) -> Iterator[Table]:
    """Time of a pass by number of tokens, then plain decoding, then 8-bit weights."""
    passes = [{**line, "parameters": millions(line["parameters"])} for line in lines if line["kind"] == "forward"]
    title = "Milliseconds of a pass over T tokens"
    yield pivot(passes, "parameters", "tokens", lambda line: number(line["ms"]), title)
    floors = {line["parameters"]: line["floor_ms"] for line in lines if line["kind"] == "forward"}
    rows = [
        [millions(line["parameters"]), number(floors[line["parameters"]]), number(line["step_ms"]),
         number(line["step_ms"] / floors[line["parameters"]]), number(line["tokens_per_second"], 0),
         number(line.get("ratio_to_transformers"))]
        for line in lines
        if line["kind"] == "generate"
    ]  # fmt: skip
    head = "parameters", "floor, ms", "step, ms", "step / floor", "tokens/s", "over transformers"
    yield Table(head, rows, "Plain decoding, one token per step")
    rows = [
        [f"{line['weight_bytes'][0] / line['weight_bytes'][1]:.2f}", number(line["largest_logit_difference"]),
         share(line["same_most_likely_token"]), *(number(bits, 4) for bits in line["bits_per_character"])]
        for line in lines
        if line["kind"] == "int8"
    ]  # fmt: skip
    head = "times smaller", "largest difference of a logit", "same argmax", "bits per character before", "after"
    yield Table(head, rows, "The embedded target with 8-bit weights")


def mirror(lines: list[Line]) -> Iterator[Table]:
    """Speed-up over plain decoding, one row per target and draft; then Mirror-SD's step and its cost model."""
    lines = [{**line, "models": _models(line)} for line in lines if "method" in line]
    drafted = [line for line in lines if line["method"] != "autoregressive"]
    ratio = lambda line: number(line["ratio_to_autoregressive"])  # noqa: E731
    title = "Speed-up over plain decoding; target, draft, T_draft / T_target"
    yield pivot(drafted, "models", "method", ratio, title)
    rows = [
        [line["models"], *(number(line[name]) for name in ("step_ms", "law_ms", "overlap", "accepted_length")),
         share(line["reuse_rate"])]
        for line in drafted
        if line["method"] == "mirror"
    ]  # fmt: skip
    yield Table(("Mirror-SD", "step, ms", "cost model, ms", "overlap", "accepted per step", "windows reused"), rows)
    totals = f"{sum(line['tokens_compared'] for line in lines):,}", str(all(line["identical"] for line in lines))
    yield Table(("tokens compared with plain decoding", "identical"), [totals])


def devices(lines: list[Line]) -> Iterator[Table]:
    """Ratios over vanilla SD by clock, one row per target, draft and batch; then steps beside the cost model's."""
    lines = [{**line, "models": f"{_models(line)}, B = {line['batch']}"} for line in lines]
    names = {
        "ratio_to_same_placement": "vanilla SD with a device for each model",
        "ratio_to_all_devices": "vanilla SD on both cores",
        "ratio_to_autoregressive": "plain decoding on one core",
    }
    for name, over in names.items():
        for clock in ("independent", "measured"):
            own = [line for line in lines if line["clock"] == clock]
            ratio = lambda line, name=name: number(line[name])  # noqa: E731
            how = "on independent clocks" if clock == "independent" else "measured, two cores of one memory"
            yield pivot(own, "models", "method", ratio, f"Over {over}, {how}; target, draft, T_draft / T_target")
    apart = [line for line in lines if line["clock"] == "independent" and line["law_ms"] is not None]
    both = lambda line: f"{number(line['step_ms'])} / {number(line['law_ms'])}"  # noqa: E731
    yield pivot(apart, "models", "method", both, "A step on independent clocks / by the cost model, ms")
    totals = f"{sum(line['tokens_compared'] for line in lines) // 2:,}", str(all(line["identical"] for line in lines))
    yield Table(("tokens compared with plain decoding", "identical"), [totals])


def _models(line: Line) -> str:
    sizes = millions(line["target_parameters"]), millions(line["draft_parameters"])
    return f"{', '.join(sizes)}, {line['draft_over_target']:.2f}"


def mirror_gpu(lines: list[Line]) -> Iterator[Table]:
    """Methods and placements, one table per target and draft; then the programs of a step and the cost model."""
    digits = {"ratio_to_autoregressive": 2, "tokens_per_second": 0, "step_ms": 2, "accepted_length": 2}
    head = (
        "method, window, branches", "draft on", "over plain", "tokens/s", "step, ms", "accepted per step",
        "windows reused", "tokens as in plain decoding",
    )  # fmt: skip
    measured = [line for line in lines if line["kind"] == "method"]
    for target, draft in dict.fromkeys((line["target"], line["draft"]) for line in measured):
        own = [line for line in measured if (line["target"], line["draft"]) == (target, draft)]
        floors = [number(line["floor_ms"]) for line in own if "floor_ms" in line]
        rows = [
            [f"{line['method']}, {line['window']}, {line['budget']}" if line["draft_on"] else line["method"],
             number(line["draft_on"]), *(number(line[name], count) for name, count in digits.items()),
             share(line["reuse_rate"]), share(line["agreeing"])]
            for line in own
        ]  # fmt: skip
        about = f"Target {target}, draft {draft}; weights at the bandwidth of copies: {', '.join(floors)} ms"
        yield Table(head, rows, f"{about}; rounds: {own[0]['rounds']}")
    parts = "prefix", "suffix", "ahead", "rollout", "select", "fallback", "rendezvous", "law", "step"
    rows = [
        [f"{line['target']}, {line['draft']}; {line['method']}, {line['window']}, {line['budget']}",
         *(number(line[f"{part}_ms"]) for part in parts)]
        for line in lines
        if line["kind"] == "law"
    ]  # fmt: skip
    title = (
        "Programs of a step one at a time, step of the cost model (law), and the step; milliseconds, draft on the CPU"
    )
    yield Table(("target, draft; method, window, branches", *parts), rows, title)


def rounds_gpu(lines: list[Line]) -> Iterator[Table]:
    """Every plan of every timed case, compared with torch with and without CUDA graphs."""
    rows = []
    for line in (line for line in lines if "skipped" not in line):
        ours, sides = line["ms_per_local_step"], line["torch_sides_ms"]
        eager = min(taken for name, taken in sides.items() if not name.endswith("graph"))
        times = number(ours, 4), *(number(taken, 3) for taken in (line["torch_ms"], eager, line["floor_ms"]))
        ratios = line["ratio_to_torch"], eager / ours, line["ratio_to_floor"]
        case = f"{line['model']}, {line['algorithm']}, {line['cohort']}"
        rows.append([case, line["plan"], *times, *map(number, ratios)])
    head = (
        "case, cohort", "plan", "ours, ms", "torch, best", "torch, eager", "floor", "best / ours", "eager / ours",
        "ours / floor",
    )  # fmt: skip
    yield Table(head, rows, "One local step of one client")


def rounds(lines: list[Line]) -> Iterator[Table]:
    """The plan that ``auto`` chose in every case."""
    names = "ms_per_local_step", "torch_ms", "floor_ms", "gemm_ms", "ratio_to_torch", "ratio_to_floor"
    rows = [
        [f"{line['model']}, {line['algorithm']}, {line['cohort']}", line["chosen"],
         *(number(line[name]) for name in names)]
        for line in lines
        if line["plan"] == "auto"
    ]  # fmt: skip
    head = "case, cohort", "auto chose", "ours, ms", "torch", "floor", "GEMM", "torch / ours", "ours / floor"
    yield Table(head, rows, "One local step of one client")


def scaling(lines: list[Line]) -> Iterator[Table]:
    """Ends of every axis, and exponents."""
    points, fits = ([line for line in lines if ("value" in line) == ends] for ends in (True, False))
    rows = []
    for fit in fits:
        own = sorted((line for line in points if line["axis"] == fit["axis"]), key=lambda line: line["value"])
        ends = [own[0], own[-1]]
        rows.append([
            fit["axis"], " → ".join(number(line["value"]) for line in ends),
            " → ".join(number(1e3 * line["seconds"], 1) for line in ends), number(fit["seconds_slope"]),
            " → ".join(number(line["peak_mb"], 0) for line in ends), number(fit["peak_mb_slope"]),
        ])  # fmt: skip
    yield Table(("axis", "from → to", "ms per round", "slope", "memory, MB", "slope"), rows)


def reproduce(lines: list[Line]) -> Iterator[Table]:
    """Best accuracies by partition, then by local epochs, then FedSpeed compared with FedAvg."""
    *cells, last = lines

    def best(line: Line) -> str:
        return f"{line['best']:.1f} ± {line['best_std']:.1f}" if line["seeds"] > 1 else f"{line['best']:.1f}"

    seeds = " or ".join(map(str, sorted({line["seeds"] for line in cells}, reverse=True)))
    about = f"Best test accuracy, %, mean ± deviation over seeds: {seeds}; " + "{images:,} images, {suite}"
    grid = [line for line in cells if line["epochs"] == 5]
    yield pivot(grid, "algorithm", "partition", best, about.format(**cells[0]))
    ladder = [line for line in cells if line["partition"] == cells[-1]["partition"]]
    ladder = [line for line in ladder if line["algorithm"] in ("fedavg", "fedspeed")]
    for equal in ("samples", "rounds"):
        mine = [line for line in ladder if line["epochs"] == 5 or line.get("equal", "samples") == equal]
        if len({line["epochs"] for line in mine}) > 1:
            title = f"Over local epochs, at equal {equal}, partition {cells[-1]['partition']}"
            yield pivot(sorted(mine, key=lambda line: line["epochs"]), "algorithm", "epochs", best, title)
    compared, ranks = last["orderings"]["fedspeed_above_fedavg"], last["orderings"]["rank_correlation_with_published"]
    rows = [
        [name, f"{row['margin']['best']:.2f} ± {row['margin']['best_std']:.2f}", number(row["rounds"]),
         number(row["fedavg_rounds"]), number(ranks.get(name))]
        for name, row in compared.items()
    ]  # fmt: skip
    head = (
        "partition",
        "FedSpeed above FedAvg, points",
        "rounds to FedAvg's best",
        "FedAvg's own",
        "Spearman, published",
    )
    yield Table(head, rows)


def probe(lines: list[Line]) -> Iterator[Table]:
    """Accuracy of the exit after every layer."""
    (line,) = lines
    layers = line["layers"]
    for name, what in {
        "contained": "holds the target's most likely token",
        "foreseen": "holds the token that ends a step; with all branches rolled out the next window is then ready",
    }.items():
        kappas = list(layers[0][name])
        rows = [[str(layer["layer"]), *(share(layer[name][kappa]) for kappa in kappas)] for layer in layers]
        yield Table(("exit after layer", *(f"κ = {kappa}" for kappa in kappas)), rows, f"How often its top κ {what}")


def draft_kinds(lines: list[Line]) -> Iterator[Table]:
    """Tokens a step by draft and tree, milliseconds of drafting, speed; then the drafts under Mirror-SD."""
    measured = [line for line in lines if "tau" in line]
    speculative = [line for line in measured if line["method"] == "speculative"]
    sizes = {line["draft"]: f"{line['draft']}, {millions(line['parameters'])}" for line in measured}
    named = [{**line, "draft": sizes[line["draft"]]} for line in speculative]
    for title, name in {
        "Tokens a step": "tau",
        "Milliseconds of the draft in a step": "draft_ms",
        "Speculative decoding over plain decoding": "ratio_to_autoregressive",
    }.items():
        measured_there = [line for line in named if name in line]
        yield pivot(measured_there, "tree", "draft", lambda line, name=name: number(line[name]), title)
    of_chain = {(line["draft"], line["tree"]): line for line in speculative}
    rows = [
        [line["draft"], line["tree"], str(line["branches"]), number(line["accepted_length"]),
         share(line["accepted_length"] / max(of_chain[line["draft"], line["tree"]]["accepted_length"], 1e-9)),
         share(line["reuse_rate"]), number(line["ratio_to_autoregressive"])]
        for line in measured
        if line["method"] == "mirror"
    ]  # fmt: skip
    head = "draft", "window", "branches", "accepted a step", "of speculative", "windows reused", "over plain"
    yield Table(head, rows, "Mirror-SD")
    rows = [[line["draft"], share(line["overhead"])] for line in lines if "overhead" in line]
    yield Table(("draft", "a step of a chain as a tree, over one of a window"), rows)
    totals = f"{sum(line['tokens_compared'] for line in measured):,}", str(all(line["identical"] for line in measured))
    yield Table(("tokens compared with plain decoding", "identical"), [totals])


def long_caches(lines: list[Line]) -> Iterator[Table]:
    """Milliseconds with the rows in use and with all rows, by length of the text."""
    cell = lambda line: f"{line['in_use_ms']:.2f} / {line['all_rows_ms']:.2f}"  # noqa: E731
    named = [{**line, "model": f"{line['size']}, {line['tokens']} tokens"} for line in lines if line["kind"] == "pass"]
    yield pivot(named, "model", "length", cell, "Milliseconds of a pass behind so many tokens: rows in use / all rows")
    named = [{**line, "model": line["size"]} for line in lines if line["kind"] == "prompt"]
    yield pivot(named, "model", "length", cell, "Milliseconds of a prompt of so many tokens: rows in use / all rows")


def compiled(lines: list[Line]) -> Iterator[Table]:
    """What was counted of every program, by pair and batch."""
    head = (
        "program",
        "arguments MB",
        "temporary MB",
        "moved MB",
        "copied MB",
        "loops",
        "messages",
        "estimated ms",
        "predicted ms",
    )
    names = "arguments_MB", "temporary_MB", "moved_MB", "copied_MB", "loops"
    for target, chips, batch in dict.fromkeys((line["target"], line["chips"], line["batch"]) for line in lines):
        mine = [line for line in lines if (line["target"], line["chips"], line["batch"]) == (target, chips, batch)]
        rows = [
            [line["program"], *(number(line[name]) for name in names),
             ", ".join(f"{count} {kind}" for kind, count in line["collectives"].items()) or "–",
             number(line["estimate_ms"]), number(line["predicted_ms"])]
            for line in mine
        ]  # fmt: skip
        where = f"{chips} chips of {mine[0]['topology']}, {batch} sequences"
        title = f"{target} with {mine[0]['draft']} on {where}; held to copied are MB of a chip"
        yield Table(head, rows, title)


def compiled_since(lines: list[Line]) -> Iterator[Table]:
    """What was counted of every program, before and now."""

    def change(line: Line, name: str) -> str:
        before, now = line["before"][name], line["now"][name]
        shown = messages if name == "collectives" else number
        return "–" if now is None else f"{'–' if before is None else shown(before)} → {shown(now)}"

    names = "temporary_MB", "moved_MB", "cycles_ms", "loops", "copied_MB", "collectives", "sent_MB", "memory_MB"
    rows = [
        [line["program"], str(line["chips"]), str(line["batch"]), str(line.get("prompt", "–")),
         *(change(line, name) for name in names)]
        for line in lines
    ]  # fmt: skip
    head = (
        "program", "chips", "batch", "prompt", "temporary MB", "moved MB", "cycles ms", "loops", "copied MB",
        "messages", "sent MB", "held MB",
    )  # fmt: skip
    yield Table(head, rows)


def messages(counts: dict[str, int]) -> str:
    """Return "66 all-reduce, 2 all-gather"."""
    return ", ".join(f"{count} {kind}" for kind, count in counts.items()) or "none"


def mirror_trees(lines: list[Line]) -> Iterator[Table]:
    """How often the verdict is among the likeliest ones, and what continuing these costs, by shape and budget."""
    named = [{**line, "shape": f"{line['draft']}, {line['tree']}, τ {line['tau']:.2f}"} for line in lines]
    yield pivot(named, "shape", "branches", lambda line: share(line["covered"]), "Verdicts among so many branches")
    yield pivot(named, "shape", "branches", lambda line: number(line["rollout_ms"]), "Milliseconds to draft them")


def late_taps(lines: list[Line]) -> Iterator[Table]:
    """Mirror-SD's accepted tokens over those of speculative decoding, by what stands in for late features."""
    named = [{**line, "setting": f"window {line['window']}, {line['branches']} branches"} for line in lines]
    for title, name in {"Accepted tokens kept": "kept", "Windows reused": "reuse_rate"}.items():
        yield pivot(named, "setting", "late", lambda line, name=name: share(line[name]), title)
    accepted = lambda line: f"{line['accepted_length']:.2f} of {line['of_speculative']:.2f}"  # noqa: E731
    yield pivot(named, "setting", "late", accepted, "Accepted tokens a step, of speculative decoding's")


#: Speed-up over plain decoding by task: Mirror-SD, EAGLE-3, vanilla speculative decoding (arXiv 2510.13161, Table 1).
PUBLISHED = {
    "Qwen3-14B, T = 0": "4.13/2.53/2.34 3.07/2.91/1.76 3.18/3.09/1.81 5.32/3.36/2.80 3.49/2.66/2.02 3.70/3.29/2.07",
    "Qwen3-14B, T = 1": "3.89/1.92/2.19 2.81/2.84/1.50 2.80/2.61/1.36 5.02/3.25/2.53 2.95/2.53/1.68 3.48/3.05/1.98",
    "Qwen3-32B, T = 0": "3.72/2.52/2.74 3.14/2.98/2.07 3.04/2.76/2.06 5.84/3.77/3.33 3.42/2.65/2.33 3.59/3.29/2.67",
    "Qwen3-32B, T = 1": "3.15/2.36/2.43 2.92/2.79/1.92 2.90/2.34/1.89 5.08/3.45/2.88 3.33/2.34/2.08 3.28/3.14/2.39",
}
#: Spec-Bench's tasks in the order of that table.
TASKS = {
    "translation": "translation",
    "summarization": "summaries",
    "question answering": "questions",
    "mathematical reasoning": "mathematics",
    "retrieval-augmented generation": "retrieval",
    "conversation": "conversation",
    "all": "all",
}


def specbench(lines: list[Line]) -> Iterator[Table]:
    """Speed over plain decoding and tokens a step, by method and task; then what the paper reports."""
    ordered = sorted(lines, key=lambda line: list(TASKS).index(line["task"]))
    for temperature in dict.fromkeys(line["temperature"] for line in ordered):
        mine = [line | {"task": TASKS[line["task"]]} for line in ordered if line["temperature"] == temperature]
        asked = {line["method"]: line["questions"] for line in mine if line["task"] == "all"}
        named = [line | {"method": f"{line['method']} ({asked[line['method']]})"} for line in mine]
        title = (
            f"Temperature {temperature:g}: tokens/s over plain decoding, tokens a step in brackets; number of questions"
        )
        yield pivot(named, "method", "task", _over_plain, title)
    heads = ["Mirror-SD / EAGLE-3 / vanilla", *(TASKS[task] for task in TASKS if task != "all")]
    rows = [[name, *(cell.replace("/", " / ") for cell in cells.split())] for name, cells in PUBLISHED.items()]
    yield Table(heads, rows, "Published: all 480 questions, on the authors' machine (arXiv 2510.13161, Table 1)")


def sweeps(lines: list[Line]) -> Iterator[Table]:
    """Twenty runs at once, in turn, and each with a program of its own."""
    ways = {"sweep": "`jaxfed.sweep`, {} at once", "separate": "`jaxfed.simulate`, each compiled"}
    rows = [
        [ways[line["way"]].format(line["at_once"]), number(line["seconds"], 1), number(line["compile_s"], 1),
         number(line["ratio_to_steps"])]
        for line in lines
    ]  # fmt: skip
    first = lines[0]
    title = f"{first['runs']} runs of {first['rounds']} rounds; one compiled run: {number(first['one_run_s'])} s"
    yield Table(("way", "seconds", "of these compiling", "the rest over compiled runs"), rows, title)


def first_token(lines: list[Line]) -> Iterator[Table]:
    """Prompts and processes, ours and transformers'."""
    names = {"prompt": "a prompt of {} tokens", "process": "a second process, {} token"}
    rows = [
        [names[line["kind"]].format(line["tokens"]), number(line["seconds"]), number(line["transformers_seconds"]),
         number(line["seconds"] / line["transformers_seconds"])]
        for line in lines
    ]  # fmt: skip
    yield Table(("until the next token", "ours, s", "transformers, s", "ours / transformers"), rows)


def federated_heads(lines: list[Line]) -> Iterator[Table]:
    """Accepted tokens a step before and after, by method and learning rate."""
    arrow = lambda pair: " → ".join(number(value) for value in pair)  # noqa: E731
    rows = [
        [line["method"], number(line["learning_rate"]), arrow(line["unseen_before_after"]),
         arrow(line["held_out_before_after"]), number(line["bytes_a_client_a_round"], 0), number(line["samples"], 0),
         number(line["seconds"], 0)]
        for line in lines
    ]  # fmt: skip
    about = f"{lines[0]['kind']}, {lines[0]['send']}, {lines[0]['clients']} clients, {lines[0]['rounds']} rounds"
    head = (
        "method", "learning rate", "unseen text of these clients", "roles that never take part",
        "bytes a client and round", "samples", "seconds",
    )  # fmt: skip
    yield Table(head, rows, f"Accepted tokens a step; {about}")


def predicted(lines: list[Line]) -> Iterator[Table]:
    """What the prediction is wrong by, then policies over vanilla speculative decoding, by acceptance and foresight."""
    checks = [[line["what"], *map(number, (line["measured_ms"], line["predicted_ms"], line["error"]))] for line in lines
              if line["kind"] == "check"]  # fmt: skip
    yield Table(("step", "measured, ms", "predicted, ms", "error"), checks, "Checked")
    gains = [line | {"pair": f"{line['target']}, {line['chips']}"} for line in lines if line["kind"] == "gain"]
    for foreseen in dict.fromkeys(line["foreseen"] for line in gains):
        mine = [line | {"α": f"α {line['rate']:g}"} for line in gains if line["foreseen"] == foreseen]
        title = (
            f"Ω′ {foreseen:g}: pearl / saguaro / mirror / hybrid over vanilla SD at the same placement; on all chips"
        )
        yield pivot(mine, "pair", "α", _over_vanilla, title)
    named = [line | {"pair": f"{line['target']}, {line['chips']}"} for line in lines if line["kind"] == "compiled"]
    mine = [line | {"α": f"α {line['rate']:g}"} for line in named if line["foreseen"] == 0.8]
    if mine:
        yield pivot(mine, "pair", "α", _over_vanilla, "The same at Ω′ 0.8, from the compiler's estimates")


def _over_vanilla(line: Line) -> str:
    same = line["same_placement"]
    ratios = " / ".join(f"{same[name] / same['speculative']:.2f}" for name in ("pearl", "saguaro", "mirror", "hybrid"))
    if line["all_devices"] is None:
        return ratios
    return f"{ratios}; {line['all_devices'] / line['equal_chips']['speculative']:.2f}"


def _over_plain(line: Line) -> str:
    star = "" if line["identical"] else "\\*"
    steps = f" ({line['tau']:.2f})" if line["tau"] > 1 else ""
    return f"{line['ratio_to_autoregressive']:.2f}×{steps}{star}"
