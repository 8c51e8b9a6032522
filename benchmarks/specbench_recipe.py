"""The drafts of specbench.py: trained by ``jaxspec train draft`` on answers that the target writes itself.

    python benchmarks/specbench_recipe.py --data DIR [--target models/smollm2] [--out out/specbench] [--kinds plain]

DIR holds gsm8k_test.jsonl, HumanEval.jsonl.gz, tinystories_2MiB.txt and spec_bench_question.jsonl, whose questions are
left out. The first prompts are questions that the target asks itself. Answers and hidden states are made once for all
drafts; the same command continues after an interruption. ``MINUTES`` are of optimiser steps on two cores.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from jaxspec.cli._train_draft import DraftTraining, train_draft
from jaxspec.cli.answers import Answers
from jaxspec.generation import own_questions
from jaxspec.loading import open_model
from jaxspec.training import Recipe, Schedule

MINUTES = {"plain": 30, "eagle3": 45, "eagle": 45, "medusa": 15, "hydra": 15}
OWN, PROMPTS, NEW_TOKENS = 384, 960, 128


def main() -> None:
    """Train the drafts that are missing, and print their figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--target", default="models/smollm2")
    parser.add_argument("--out", type=Path, default=Path("out/specbench"))
    parser.add_argument("--kinds", nargs="+", choices=list(MINUTES), default=list(MINUTES))
    parser.add_argument("--minutes", type=float, help="of every draft, in place of the table's")
    options = parser.parse_args()
    for kind in options.kinds:
        print(json.dumps(trained(kind, options)), flush=True)


def trained(kind: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train one draft."""
    own, answers = options.out / "own.jsonl", options.out / "answers"
    if not own.exists():
        questions = own_questions(open_model(options.target), OWN, progress=True, directory=answers)
        own.write_text("".join(json.dumps({"prompt": question}) + "\n" for question in questions))
    files = "gsm8k_test.jsonl", "HumanEval.jsonl.gz", "tinystories_2MiB.txt"
    asked = Answers(
        options.target,
        (own, *(options.data / name for name in files)),
        (options.data / "spec_bench_question.jsonl",),
        PROMPTS,
        NEW_TOKENS,
        answers,
        options.minutes or MINUTES[kind],
    )
    schedule = Schedule(learning_rate=1e-3, sequence_length=192)
    settings = DraftTraining(kind, recipe=Recipe(steps=3), schedule=schedule)  # type: ignore[arg-type]
    return train_draft(asked, settings, options.out / "drafts" / kind)


if __name__ == "__main__":
    main()
