"""Make the page of figures from the JSON lines of recorded runs in benchmarks/results/.

    python benchmarks/page.py                      print the page, as Markdown
    python benchmarks/page.py probe scaling ...    run these, record their lines, and print the page

A file of lines is NAME.jsonl: first ``{"run": {command, date, python, jax, cores}}``, with "card" if lines have one,
then every line that the command printed. A run that fails does not change the old file. Printing the page needs the
standard library only.
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
ratios, not single times: both sides of a ratio run interleaved in one process. The [notes](README.md) explain the
figures, list aims that were missed, and have tables of older runs without recorded lines.
"""


@dataclass(frozen=True)
class Section:
    """A section of the page.

    Attributes:
        title: its heading.
        question: that the command answers.
        command: prints the lines; run from the repository's root.
        tables: makes tables of the lines.
        picture: file in docs/images/, if the command draws one.
    """

    title: str
    question: str
    command: str
    tables: Callable[[list[Line]], Iterator[Table]]
    picture: str | None = None


#: In the order of the page.
SECTIONS: dict[str, Section] = {
    "demo": Section(
        "Demo",
        "Plain, speculative and Mirror-SD decoding; gain by federated training.",
        "python -m jaxspec demo --json",
        tables.demo,
    ),
    "drafts": Section(
        "Federated drafts",
        "How much does a draft gain by federated training, by method, with privacy and compression? More: "
        "[federated drafts](../docs/federated_drafts.md).",
        "python benchmarks/drafts.py --json",
        tables.drafts,
        "federated_drafts.png",
    ),
    "probe": Section(
        "Accuracy of the exits",
        "After every layer of the embedded target, on its continuations of held-out roles, without decoding.",
        "python -m jaxspec probe --json",
        tables.probe,
    ),
    "vocabulary": Section(
        "Tokenizers",
        "Characters or byte pairs?",
        "python benchmarks/vocabulary.py --steps 250",
        tables.vocabulary,
    ),
    "engine": Section(
        "Decoding engine",
        "Time of a pass by tokens and model size, with the memory floor; tokens/s compared with transformers.",
        "python benchmarks/decode.py --suite engine --json",
        tables.engine,
    ),
    "sweeps": Section(
        "Sweeps",
        "Twenty runs of FedSpeed, four learning rates with five seeds each, by one program or one after the other.",
        "python benchmarks/sweeps.py --json",
        tables.sweeps,
    ),
    "long_caches": Section(
        "Long caches",
        "A pass and a prompt with a cache of 8,192 rows: reading the rows in use, or all.",
        "python benchmarks/decode.py --suite long-caches --sizes 10M 30M --rounds 15 --json",
        tables.long_caches,
    ),
    "mirror": Section(
        "Mirror-SD and other methods",
        "Every policy on grown models, over the draft's cost.",
        "python benchmarks/decode.py --suite mirror --json --picture docs/images/mirror.png",
        tables.mirror,
        "mirror.png",
    ),
    "devices": Section(
        "What a second device buys",
        "Policies over vanilla speculative decoding at the same placement and on all devices: measured on two cores "
        "that share memory, and on independent clocks.",
        "python benchmarks/decode.py --suite devices --batches 4 --json --picture docs/images/devices.png",
        tables.devices,
        "devices.png",
    ),
    "draft_kinds": Section(
        "Kinds of drafts",
        "EAGLE-3, EAGLE, Hydra, Medusa and a small language model for the embedded target, by chains and trees, and "
        "under Mirror-SD.",
        "python benchmarks/decode.py --suite drafts --json --prompts 5 --new-tokens 96 --rounds 7"
        " --picture docs/images/draft_kinds.png",
        tables.draft_kinds,
        "draft_kinds.png",
    ),
    "specbench": Section(
        "Spec-Bench on SmolLM2",
        "Methods on questions of six tasks, 128 new tokens of SmolLM2-135M-Instruct in float32, beside other programs "
        "on the same weights, and the paper's Table 1.",
        "python benchmarks/specbench.py --questions FILE --drafts out/specbench/drafts --others --gguf FILE --json"
        " --picture docs/images/specbench.png",
        tables.specbench,
        "specbench.png",
    ),
    "specbench_drafts": Section(
        "Spec-Bench on SmolLM2: trained drafts",
        "The same for drafts that learn: a small decoder after 13 minutes of training, EAGLE after 8, Medusa and Hydra "
        "after 5 each, EAGLE-3 after 25.",
        "python benchmarks/specbench.py --questions FILE --drafts DIR --per-task 3 --temperatures 0 --json",
        tables.specbench,
    ),
    "specbench_sampled": Section(
        "Spec-Bench on SmolLM2: temperature 1",
        "The same drafts at temperature 1; every method draws the tokens of plain decoding with the same seed.",
        "python benchmarks/specbench.py --questions FILE --drafts DIR --per-task 2 --temperatures 1 --json",
        tables.specbench,
    ),
    "first_token": Section(
        "The first token of SmolLM2",
        "How long does a prompt take, and a second process until its first token, beside transformers?",
        "python benchmarks/first_token.py --json",
        tables.first_token,
    ),
    "federated_heads": Section(
        "An EAGLE-3 head of SmolLM2, federated",
        "What do low-rank updates from 50 Shakespeare roles change in a head that was trained on other text?",
        "python benchmarks/federated_heads.py --draft DIR --json",
        tables.federated_heads,
    ),
    "predicted": Section(
        "Predicted: published pairs on other chips",
        "Where would a policy pay? Nothing here was measured, except the steps that the prediction is checked against.",
        "python benchmarks/predicted.py --json --picture docs/images/predicted.png",
        tables.predicted,
        "predicted.png",
    ),
    "compiled": Section(
        "Compiled for TPUs",
        "What do the programs of a step hold, move, copy and send, at full size? Counted in the compiler's output, "
        "of one chip; not run.",
        "python benchmarks/compiled.py --json",
        tables.compiled,
    ),
    "compiled_since": Section(
        "Compiled for TPUs: before and now",
        "What did the compiler's output of release 0.1.0's first programs show, and what does it show now? Counted, of "
        "one chip of v5e; not run.",
        "python benchmarks/compiled_since.py --json",
        tables.compiled_since,
    ),
    "mirror_trees": Section(
        "Trees under Mirror-SD",
        "How often would the likeliest verdicts hold the one that comes, and what would continuing them cost?",
        "python benchmarks/decode.py --suite mirror-trees --json --prompts 6 --new-tokens 96",
        tables.mirror_trees,
    ),
    "late_taps": Section(
        "Hidden states above the exit",
        "EAGLE-3 with published taps under Mirror-SD: its own output in place of late hidden states, or affine maps.",
        "python benchmarks/decode.py --suite late-taps --json --prompts 12 --new-tokens 96",
        tables.late_taps,
    ),
    "mirror_gpu": Section(
        "Mirror-SD on a GPU",
        "A target in bfloat16 on the GPU, the draft on the CPU or on the GPU too; greedy, one sequence.",
        "JAX_PLATFORMS=cuda,cpu python benchmarks/decode.py --suite gpu --json --sizes 7B 1B --drafts 0.4M 6.7M"
        " --prompts 2 --rounds 3 --new-tokens 64 --minutes 1.45",
        tables.mirror_gpu,
    ),
    "mirror_gpu_dear": Section(
        "Mirror-SD on a GPU, a larger draft",
        "The same with a draft of 27 million parameters.",
        "JAX_PLATFORMS=cuda,cpu python benchmarks/decode.py --suite gpu --json --sizes 7B 1B --drafts 27M"
        " --prompts 2 --rounds 3 --new-tokens 64 --minutes 2.6",
        tables.mirror_gpu,
    ),
    "rounds": Section(
        "Rounds",
        "Time of a local step, compared with a minimal torch loop and bare gradients.",
        "python benchmarks/rounds.py --json",
        tables.rounds,
    ),
    "rounds_gpu": Section(
        "Rounds on a GPU",
        "Time of a local step on a GPU, compared with a torch loop, also as a CUDA graph.",
        "XLA_PYTHON_CLIENT_PREALLOCATE=false python benchmarks/rounds.py --device gpu --json"
        " --models mlp resnet18 lenet --cohorts 10 100 --minutes 2.0 --limit 400",
        tables.rounds_gpu,
    ),
    "scaling": Section(
        "Scaling",
        "How do a round's time and memory grow with cohort, population and model?",
        "python benchmarks/scaling.py --json --picture docs/images/scaling.png",
        tables.scaling,
        "scaling.png",
    ),
    "reproduce": Section(
        "The paper's orderings",
        "FedSpeed and ten others on Fashion-MNIST, an MLP; $JAXFED_FASHION_MNIST names the folder.",
        "python benchmarks/reproduce.py --json --rounds 32",
        tables.reproduce,
        "reproduce.png",
    ),
    "reproduce_thousand": Section(
        "A thousand rounds",
        "All 60,000 images, Dirichlet 0.3, 1,000 rounds, as published. Runs are kept in out/thousand.jsonl and go on "
        "where they stopped; seconds are of one core, beside other programs.",
        "python benchmarks/reproduce.py --json --full --rounds 1000 --evaluate-every 10 --partitions 0.3 "
        "--equal samples rounds --repeat fedavg fedspeed scaffold feddyn --out out/thousand.jsonl "
        "--picture docs/images/reproduce_thousand.png",
        tables.reproduce,
        "reproduce_thousand.png",
    ),
    "reproduce_lenet": Section(
        "The same with LeNet",
        "60 rounds, on a GPU.",
        "python benchmarks/reproduce.py --json --suite lenet --rounds 60 --epochs 5 --seeds 3",
        tables.reproduce,
        "reproduce_lenet.png",
    ),
}


def read(name: str, folder: Path = RESULTS) -> tuple[Line, list[Line]] | None:
    """Return facts about the recorded run, and its lines; None if there is no record."""
    path = folder / f"{name}.jsonl"
    if not path.exists():
        return None
    first, *lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return first["run"], lines


def page(folder: Path = RESULTS) -> str:
    """Return the page as Markdown; links are relative to benchmarks/."""
    parts, missing = [HEAD], []
    for name, section in SECTIONS.items():
        record = read(name, folder)
        if record is None:
            missing.append(section)
            continue
        run, lines = record
        about = f"`{run['command']}`, {run['date']}, {machine(run)}\n"
        parts += [f"## {section.title}\n", f"{section.question}\n", about]
        parts += [table.markdown() for table in section.tables(lines)]
        parts += [f"![{section.title}](../docs/images/{section.picture})\n"] if section.picture else []
    if missing:
        parts += [
            "## Not recorded yet\n",
            "No lines are recorded of these; older figures: [notes](README.md).\n",
        ]
        parts += [f"- {section.title}: `{section.command}`" for section in missing] + [""]
    return "\n".join(parts)


def machine(run: Line) -> str:
    """Describe the machine and versions of a run."""
    card = f"{run['card']}, " if "card" in run else ""
    return f"{card}{run['cores']} cores, Python {run['python']}, jax {run['jax']}"


def record(name: str, folder: Path = RESULTS) -> None:
    """Run a section's command and record its lines.

    Raises:
        CalledProcessError: the command failed; the old file is unchanged.
    """
    parts = shlex.split(SECTIONS[name].command)
    at = parts.index("python")  # after environment variables
    settings, arguments = dict(part.split("=", 1) for part in parts[:at]), parts[at + 1 :]
    root = HERE.parent
    environment = {**os.environ, "PYTHONPATH": str(root), **settings}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=root, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    about = {
        "command": SECTIONS[name].command,
        "date": datetime.now(UTC).date().isoformat(),
        "python": platform.python_version(),
        "jax": version("jax"),
        "cores": os.cpu_count(),
    }
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    about |= next(({"card": line["card"]} for line in map(json.loads, lines) if "card" in line), {})
    folder.mkdir(exist_ok=True)
    text = "\n".join([json.dumps({"run": about}), *lines]) + "\n"
    partial = folder / f"{name}.part"
    partial.write_text(text, encoding="utf-8")
    partial.replace(folder / f"{name}.jsonl")


def main() -> None:
    """Run the named sections, then print the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*SECTIONS, []], metavar="NAME", help=", ".join(SECTIONS))
    for name in parser.parse_args().names:
        record(name)
    print(page())


if __name__ == "__main__":
    main()
