"""The drafts of specbench.py: trained by ``jaxspec train draft`` on answers that the target writes itself.

    python benchmarks/specbench_recipe.py --data DIR [--target models/smollm2] [--out out/specbench] [--kinds plain]

DIR holds gsm8k_test.jsonl, HumanEval.jsonl.gz, tinystories_2MiB.txt and spec_bench_question.jsonl, whose questions are
left out. The first prompts are questions that the target asks itself; stories are to be summarised or continued.
Answers and hidden states are made once for all drafts; the same command continues after an interruption. ``MINUTES``
are of optimiser steps on two cores; a table of n-grams needs none.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxspec.cli._train_draft import DraftTraining, train_draft
from jaxspec.cli.answers import Answers
from jaxspec.generation import own_questions
from jaxspec.loading import open_model
from jaxspec.training import Recipe, Schedule

MINUTES = {"ngram": None, "plain": 30, "eagle3": 45, "eagle": 45, "medusa": 15, "hydra": 15}
OWN, PROMPTS, NEW_TOKENS = 384, 960, 128
#: What is asked of a story, in turns, and how many there are.
ASKED, STORIES = ("Summarize: ", "Continue this story: "), 256


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
    own, stories, answers = options.out / "own.jsonl", options.out / "stories.jsonl", options.out / "answers"
    if not own.exists():
        _write(own, own_questions(open_model(options.target), OWN, progress=True, directory=answers))
    _write(stories, about_stories(options.data / "tinystories_2MiB.txt"))
    asked = Answers(
        options.target,
        (own, options.data / "gsm8k_test.jsonl", options.data / "HumanEval.jsonl.gz", stories),
        (options.data / "spec_bench_question.jsonl",),
        PROMPTS,
        NEW_TOKENS,
        answers,
        options.minutes or MINUTES[kind],
    )
    schedule = Schedule(learning_rate=1e-3, sequence_length=192)
    settings = DraftTraining(kind, tune=False, recipe=Recipe(steps=3), schedule=schedule)  # type: ignore[arg-type]
    return train_draft(asked, settings, options.out / "drafts" / kind)


def about_stories(path: Path) -> list[str]:
    """Return prompts about the first stories of a file."""
    stories = path.read_text(encoding="utf-8").split("<|endoftext|>")[:STORIES]
    return [ASKED[number % len(ASKED)] + story.strip() for number, story in enumerate(stories)]


def _write(path: Path, prompts: Sequence[str]) -> None:
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))


if __name__ == "__main__":
    main()
