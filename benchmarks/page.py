"""The page of figures, from the JSON lines of past runs in benchmarks/results/; no number on it is typed by hand.

    python benchmarks/page.py                      print the page, as Markdown
    python benchmarks/page.py probe scaling ...    run these, keep their lines, and print the page

A file of lines is NAME.jsonl: first ``{"run": {command, date, python, jax, cores}}``, with the card where lines name
one, then every line that the command printed. A run that fails leaves the old file as it is. Libraries are not needed
to read, only to run.
"""

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import tables
from tables import Line, Table

HERE = Path(__file__).parent
RESULTS = HERE / "results"

HEAD = """# Figures

Tables of the last recorded runs, made from the JSON lines that the commands printed (`benchmarks/results/`). Quote
ratios, not single times: both sides of a ratio run interleaved in one process. What the figures mean, aims that were
missed, and tables of older runs, of which no lines were kept: [notes](README.md).
"""


@dataclass(frozen=True)
class Report:
    """A section of the page.

    Attributes:
        title: its heading.
        question: what the command answers.
        command: what prints the lines, from the repository's root.
        tables: from the lines to tables.
        picture: in docs/images/, if the command draws one.
    """

    title: str
    question: str
    command: str
    tables: Callable[[list[Line]], Iterator[Table]]
    picture: str | None = None


#: In the order of the page.
REPORTS: dict[str, Report] = {
    "demo": Report(
        "Demo",
        "Plain, speculative and Mirror-SD decoding; what federation gains.",
        "python -m jaxspec demo --json",
        tables.demo,
    ),
    "drafts": Report(
        "Federated drafts",
        "What does federation give a draft, by which method, with privacy and compression? More: [federated drafts]"
        "(../docs/federated_drafts.md).",
        "python benchmarks/drafts.py --json",
        tables.drafts,
        "federated_drafts.png",
    ),
    "probe": Report(
        "What an exit knows",
        "Layer by layer of the embedded target, on text of held-out roles that the target wrote on, without decoding.",
        "python -m jaxspec probe --json",
        tables.probe,
    ),
    "vocabulary": Report(
        "Tokenizers",
        "Characters or byte pairs?",
        "python benchmarks/vocabulary.py --steps 250",
        tables.vocabulary,
    ),
    "engine": Report(
        "Decoding engine",
        "A pass against tokens and model size, beside the memory floor; tokens/s against transformers.",
        "python benchmarks/decode.py --suite engine --json",
        tables.engine,
    ),
    "mirror": Report(
        "Mirror-SD and its rivals",
        "Every policy on grown models, the draft's cost swept.",
        "python benchmarks/decode.py --suite mirror --json --picture docs/images/mirror.png",
        tables.mirror,
        "mirror.png",
    ),
    "mirror_gpu": Report(
        "Mirror-SD on a GPU",
        "A target in bfloat16 on the card, the draft on the processor or beside the target; greedy, one sequence.",
        "JAX_PLATFORMS=cuda,cpu python benchmarks/decode.py --suite gpu --json --sizes 7B 1B --drafts 0.4M 6.7M"
        " --prompts 2 --rounds 3 --new-tokens 64 --minutes 1.45",
        tables.mirror_gpu,
    ),
    "mirror_gpu_dear": Report(
        "Mirror-SD on a GPU, a dearer draft",
        "The same with a draft of 27 million parameters.",
        "JAX_PLATFORMS=cuda,cpu python benchmarks/decode.py --suite gpu --json --sizes 7B 1B --drafts 27M"
        " --prompts 2 --rounds 3 --new-tokens 64 --minutes 2.6",
        tables.mirror_gpu,
    ),
    "rounds": Report(
        "Rounds",
        "How long is a local step, against a lean torch loop and bare gradients?",
        "python benchmarks/rounds.py --json",
        tables.rounds,
    ),
    "rounds_gpu": Report(
        "Rounds on a GPU",
        "How long is a local step there, against a torch loop and the same as a CUDA graph?",
        "XLA_PYTHON_CLIENT_PREALLOCATE=false python benchmarks/rounds.py --device gpu --json"
        " --models mlp resnet18 lenet --cohorts 10 100 --minutes 2.0 --limit 400",
        tables.rounds_gpu,
    ),
    "scaling": Report(
        "Scaling",
        "How do a round's time and memory grow with cohort, population and model?",
        "python benchmarks/scaling.py --json --picture docs/images/scaling.png",
        tables.scaling,
        "scaling.png",
    ),
    "reproduce": Report(
        "The paper's orderings",
        "FedSpeed and ten others on Fashion-MNIST, an MLP; $JAXFED_FASHION_MNIST names the folder.",
        "python benchmarks/reproduce.py --json --rounds 32",
        tables.reproduce,
        "reproduce.png",
    ),
    "reproduce_lenet": Report(
        "The same with LeNet",
        "60 rounds, on a GPU.",
        "python benchmarks/reproduce.py --json --suite lenet --rounds 60 --epochs 5 --seeds 3",
        tables.reproduce,
        "reproduce_lenet.png",
    ),
}


def read(name: str, folder: Path = RESULTS) -> tuple[Line, list[Line]] | None:
    """About the recorded run, and its lines; None if there is none."""
    path = folder / f"{name}.jsonl"
    if not path.exists():
        return None
    first, *lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return first["run"], lines


def page(folder: Path = RESULTS) -> str:
    """The page, as Markdown; links and pictures as seen from benchmarks/."""
    parts, missing = [HEAD], []
    for name, report in REPORTS.items():
        found = read(name, folder)
        if found is None:
            missing.append(report)
            continue
        run, lines = found
        about = f"`{run['command']}`, {run['date']}, {machine(run)}\n"
        parts += [f"## {report.title}\n", f"{report.question}\n", about]
        parts += [table.markdown() for table in report.tables(lines)]
        parts += [f"![{report.title}](../docs/images/{report.picture})\n"] if report.picture else []
    if missing:
        parts += ["## Not recorded yet\n", "No lines of these are kept; the [notes](README.md) have older figures.\n"]
        parts += [f"- {report.title}: `{report.command}`" for report in missing] + [""]
    return "\n".join(parts)


def machine(run: Line) -> str:
    """What a run was made on."""
    card = f"{run['card']}, " if "card" in run else ""
    return f"{card}{run['cores']} cores, Python {run['python']}, jax {run['jax']}"


def record(name: str, folder: Path = RESULTS) -> None:
    """Run a report's command and keep its lines.

    Raises:
        CalledProcessError: the command failed; the old lines stay.
    """
    words = shlex.split(REPORTS[name].command)
    at = words.index("python")  # after variables of the environment
    settings, arguments = dict(word.split("=", 1) for word in words[:at]), words[at + 1 :]
    root = HERE.parent
    environment = {**os.environ, "PYTHONPATH": str(root), **settings}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=root, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    about = {
        "command": REPORTS[name].command,
        "date": datetime.now(UTC).date().isoformat(),
        "python": platform.python_version(),
        "jax": version("jax"),
        "cores": os.cpu_count(),
    }
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    about |= next(({"card": line["card"]} for line in map(json.loads, lines) if "card" in line), {})
    folder.mkdir(exist_ok=True)
    text = "\n".join([json.dumps({"run": about}), *lines]) + "\n"
    part = folder / f"{name}.part"
    part.write_text(text, encoding="utf-8")
    part.replace(folder / f"{name}.jsonl")


def main() -> None:
    """Run what is named, then print the page."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("names", nargs="*", choices=[*REPORTS, []], metavar="NAME", help=", ".join(REPORTS))
    for name in asked.parse_args().names:
        record(name)
    print(page())


if __name__ == "__main__":
    main()
