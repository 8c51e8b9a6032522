"""Spec-Bench on a published model: every method with drafts that our trainer made, and other programs.

    python benchmarks/specbench.py --questions FILE --drafts DIR [--target models/smollm2] [--per-task 10]
        [--temperatures 0 1] [--minutes 60] [--others] [--gguf FILE] [--json] [--picture FILE] [--out out/specbench]

DIR holds a folder for each draft, plain, eagle3, eagle, medusa, hydra, as ``python -m jaxspec train draft`` writes them
(OUT/draft); methods without theirs are left out, and said. All methods answer a question in turns; an answer during
which a program was compiled is given again. Answers are kept in OUT: the same command continues, with ``--minutes``
piece by piece. Settings (windows, trees, devices) are chosen on a question that is not measured.

A line is of a task, or of all: ``tau``, tokens a step; ``ratio_to_autoregressive``, of tokens a second, prompts
included, on the same questions; ``identical``, whether all tokens are those of plain decoding (with a temperature of
the same seed; other programs draw other numbers).
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
from ledger import Ledger, Row
from specbench_methods import METHODS, PLAIN, tried
from specbench_others import Side, float32_gguf, llama_cpp_sides, transformers_sides
from specbench_picture import draw
from tqdm import tqdm

import jaxspec
from jaxspec.analysis.specbench import Answer, Question, answer, read_questions
from jaxspec.loading import is_draft, load_draft, open_model

TASKS = "all"


def main() -> None:
    """Measure what is missing, and print the lines."""
    options = parsed()
    if hasattr(os, "SCHED_BATCH"):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    jax.config.update("jax_num_cpu_devices", 2)
    target = open_model(options.target)
    drafts = {path.parent.name: opened(path, target) for path in sorted(options.drafts.glob("*/draft"))}
    questions, spare = chosen(read_questions(options.questions), options.per_task)
    settings = {"new_tokens": options.new_tokens, "drafts": sorted(drafts), "per_task": options.per_task}
    ledger = Ledger(options.out / "answers.jsonl", settings)
    sides = sides_of(options, target, drafts, spare, ledger)
    measure(sides, questions, options, ledger)
    lines = list(rows(ledger, questions, options.temperatures))
    for row in lines:
        print(json.dumps(row) if options.json else shown(row))
    if options.picture:
        draw(lines, options.picture)


def parsed() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=Path, required=True)
    parser.add_argument("--drafts", type=Path, required=True)
    parser.add_argument("--target", type=Path, default=Path("models/smollm2"))
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--per-task", type=int, default=10)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.0, 1.0])
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--others", action="store_true", help="transformers, and with --gguf llama.cpp")
    parser.add_argument("--gguf", type=Path, help="the target's file, from which float32 weights are written")
    parser.add_argument("--out", type=Path, default=Path("out/specbench"))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--picture", type=Path, help="file to draw")
    return parser.parse_args()


def opened(path: Path, target: jaxspec.Model) -> Any:
    """Return a draft of either kind."""
    reads = (path / "config.json").is_file() and is_draft(path)
    return load_draft(path, target, report=lambda line: None) if reads else open_model(path)


def chosen(questions: list[Question], per_task: int) -> tuple[list[Question], Question]:
    """Return the first questions of each task, task by task in turns, and one that is not among them."""
    by_task: dict[str, list[Question]] = {}
    for question in questions:
        by_task.setdefault(question.task, []).append(question)
    picked = [group[place] for place in range(per_task) for group in by_task.values() if place < len(group)]
    spare = next((group[-1] for group in by_task.values() if len(group) > per_task), questions[-1])
    return picked, spare._replace(turns=spare.turns[:1])


def sides_of(
    options: argparse.Namespace, target: jaxspec.Model, drafts: dict[str, Any], spare: Question, ledger: Ledger
) -> dict[str, Side]:
    """Return what answers questions, by name; settings that were chosen before are taken again."""
    found = tried(target, drafts, tuple(options.methods), spare, options.new_tokens // 2)
    for name, (setting, _) in found.items():
        print(f"{name}: {setting}", flush=True)
    sides: dict[str, Side] = {
        name: lambda question, temperature, method=method: answer(method, question, options.new_tokens, temperature)
        for name, (_, method) in found.items()
    }
    if options.others:
        sides |= transformers_sides(target, options.new_tokens, drafts.get("plain"))
    if options.others and options.gguf:
        path = options.out / "float32.gguf"
        sides |= llama_cpp_sides(
            target, path if path.exists() else float32_gguf(options.gguf, path), options.new_tokens
        )
    return sides


def measure(sides: dict[str, Side], questions: list[Question], options: argparse.Namespace, ledger: Ledger) -> None:
    """Let all sides answer all questions in turns, until the time is over."""
    end = time.monotonic() + 60 * options.minutes
    work = [(temperature, question) for question in questions for temperature in options.temperatures]
    for temperature, question in tqdm(work, "questions", disable=options.json):
        for name, side in sides.items():
            key = {"question": question.id, "temperature": temperature, "method": name}
            if ledger.find(**key) is None and time.monotonic() < end:
                ledger.add(key | recorded(warm(partial(side, question, temperature))))


def warm(run: Callable[[], Answer]) -> Answer:
    """Answer until nothing is compiled meanwhile."""
    result = run()
    return warm(run) if result.compiled else result


def recorded(result: Answer) -> Row:
    """Return the entries of an answer."""
    tokens = [token for turn in result.tokens for token in turn]
    times = {"seconds": result.seconds, "prompt_seconds": result.prompt_seconds}
    return times | {"steps": result.steps, "accepted": result.accepted, "tokens": tokens}


def rows(ledger: Ledger, questions: list[Question], temperatures: list[float]) -> Iterator[Row]:
    """Return the lines: by temperature, task and method, over questions that plain decoding and the method answered."""
    tasks = [*dict.fromkeys(question.task for question in questions), TASKS]
    names = list(dict.fromkeys(row["method"] for row in ledger.rows))
    for temperature in temperatures:
        for task in tasks:
            ids = [each.id for each in questions if task in (each.task, TASKS)]
            for name in names:
                pairs = [answers(ledger, id, temperature, name) for id in ids]
                if both := [pair for pair in pairs if pair is not None]:
                    yield {"task": task, "method": name, "temperature": temperature} | summary(both)


def answers(ledger: Ledger, id: int, temperature: float, name: str) -> tuple[Row, Row] | None:
    """Return plain decoding's answer to a question and a method's, if there are both."""
    plain, own = (ledger.find(question=id, temperature=temperature, method=each) for each in (PLAIN, name))
    return None if plain is None or own is None else (plain, own)


def summary(pairs: list[tuple[Row, Row]]) -> Row:
    """Summarise a method's answers beside those of plain decoding."""
    total = lambda side, entry: sum(pair[side][entry] for pair in pairs)  # noqa: E731
    counts = [sum(len(pair[side]["tokens"]) for pair in pairs) for side in (0, 1)]
    plain, own = (counts[side] / total(side, "seconds") for side in (0, 1))
    decoding = [counts[side] / (total(side, "seconds") - total(side, "prompt_seconds")) for side in (0, 1)]
    return {
        "tau": round(1 + total(1, "accepted") / max(total(1, "steps"), 1), 3),
        "tokens_per_second": round(own, 2),
        "ratio_to_autoregressive": round(own / plain, 3),
        "ratio_without_prompts": round(decoding[1] / decoding[0], 3),
        "identical": all(first["tokens"] == second["tokens"] for first, second in pairs),
        "tokens_compared": counts[0],
        "questions": len(pairs),
    }


def shown(row: Row) -> str:
    """Return a line to read."""
    head = f"{row['temperature']:g} {row['task']:32}{row['method']:28} τ {row['tau']:5.2f}"
    speed = f"{row['tokens_per_second']:7.1f} tokens/s {row['ratio_to_autoregressive']:5.2f}×"
    return f"{head} {speed} {'' if row['identical'] else 'other tokens'}"


if __name__ == "__main__":
    main()
