"""Spec-Bench on a published model: every method with drafts that our trainer made, and other programs.

    python benchmarks/specbench.py --questions FILE --drafts DIR [--target models/smollm2] [--per-task 10]
        [--temperatures 0 1] [--minutes 60] [--others] [--others-per-task 3] [--gguf FILE] [--json] [--picture FILE]
        [--out out/specbench]

DIR holds a folder for each draft, ngram, plain, eagle3, eagle, medusa, hydra, as ``python -m jaxspec train draft``
writes them (OUT/draft); methods without theirs are left out. All methods answer a question in turns; an answer during
which a program was compiled is given again. Answers and compiled programs are kept in OUT: the same command continues,
with ``--minutes`` piece by piece. Settings (windows, trees, devices) are chosen once, on questions of two tasks that
are not measured. A draft that is trained anew, or a method added later, needs another OUT. Other programs, several
times slower, answer the first ``--others-per-task`` questions of a task.

A line is of a task, or of all: ``tau``, tokens a step; ``ratio_to_autoregressive``, of tokens a second, prompts
included, on the same questions; ``identical``, whether all tokens are those of plain decoding (of llama.cpp, which
returns text, the text; with a temperature of the same seed, other programs draw other numbers).
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
from ledger import Ledger, Row
from specbench_lines import rows
from specbench_methods import METHODS, available, best_setting, built
from specbench_others import Side, float32_gguf, llama_cpp_sides, transformers_sides
from specbench_picture import draw
from tqdm import tqdm

import jaxspec
from jaxspec.analysis.specbench import Answer, Question, answer, read_questions
from jaxspec.loading import is_draft, load_draft, open_model
from jaxspec.methods.protocol import DecodingMethod

#: Questions on which settings are chosen, of different tasks.
SPARE = 2


def main() -> None:
    """Measure what is missing, and print the lines."""
    options = parsed()
    if hasattr(os, "SCHED_BATCH"):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    jax.config.update("jax_num_cpu_devices", 2)
    jax.config.update("jax_compilation_cache_dir", str(options.out / "programs"))
    target = open_model(options.target)
    drafts = {path.parent.name: opened(path, target) for path in sorted(options.drafts.glob("*/draft"))}
    questions, spare = chosen(read_questions(options.questions), options.per_task)
    ledger = Ledger(options.out / "answers.jsonl", {"new_tokens": options.new_tokens})
    sides = own_sides(options, target, drafts, spare, ledger)
    others = other_sides(options, target, drafts.get("plain")) if options.others else {}
    measure(sides, others, questions, options, ledger)
    assert target.text is not None
    assert target.text.decode is not None
    lines = list(rows(ledger, questions, options.temperatures, target.text.decode))
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
    parser.add_argument("--others-per-task", type=int, default=3)
    parser.add_argument("--gguf", type=Path, help="the target's file, from which float32 weights are written")
    parser.add_argument("--out", type=Path, default=Path("out/specbench"))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--picture", type=Path, help="file to draw")
    return parser.parse_args()


def opened(path: Path, target: jaxspec.Model) -> Any:
    """Return a draft of either kind."""
    reads = (path / "config.json").is_file() and is_draft(path)
    return load_draft(path, target, report=lambda line: None) if reads else open_model(path)


def chosen(questions: list[Question], per_task: int) -> tuple[list[Question], list[Question]]:
    """Return the first questions of each task, task by task in turns, and some that are not among them."""
    by_task: dict[str, list[Question]] = {}
    for question in questions:
        by_task.setdefault(question.task, []).append(question)
    picked = [group[place] for place in range(per_task) for group in by_task.values() if place < len(group)]
    spare = [group[-1]._replace(turns=group[-1].turns[:1]) for group in by_task.values() if len(group) > per_task]
    return picked, spare[:SPARE] or questions[-1:]


def own_sides(
    options: argparse.Namespace, target: jaxspec.Model, drafts: dict[str, Any], spare: list[Question], ledger: Ledger
) -> dict[str, Side]:
    """Return our methods that answer questions, by name; settings that were chosen before are taken again."""
    sides: dict[str, Side] = {}
    measured = {"questions": spare, "max_new_tokens": options.new_tokens // 2}
    for name in available(drafts, options.methods):
        row = ledger.find(chosen=name)
        setting = row["setting"] if row else best_setting(target, drafts, name, **measured)
        if row is None:
            ledger.add({"chosen": name, "setting": setting})
        print(f"{name}: {setting}", flush=True)
        sides[name] = partial(own_answer, built(target, drafts, name, setting), options.new_tokens)
    return sides


def own_answer(method: DecodingMethod, new_tokens: int, question: Question, temperature: float) -> Answer:
    """Answer with one of our methods."""
    return answer(method, question, new_tokens, temperature)


def other_sides(options: argparse.Namespace, target: jaxspec.Model, draft: jaxspec.Model | None) -> dict[str, Side]:
    """Return the other programs that are installed."""
    sides = transformers_sides(target, options.new_tokens, draft)
    if not options.gguf:
        return sides
    path = options.out / "float32.gguf"
    return sides | llama_cpp_sides(
        target, path if path.exists() else float32_gguf(options.gguf, path), options.new_tokens
    )


def measure(
    sides: dict[str, Side],
    others: dict[str, Side],
    questions: list[Question],
    options: argparse.Namespace,
    ledger: Ledger,
) -> None:
    """Let all sides answer all questions in turns, until the time is over."""
    end, tasks = time.monotonic() + 60 * options.minutes, len({question.task for question in questions})
    work = [(temperature, place) for place in range(len(questions)) for temperature in options.temperatures]
    for temperature, place in tqdm(work, "questions", disable=options.json):
        forget_programs()
        both = sides | (others if place < options.others_per_task * tasks else {})
        for name, side in both.items():
            key = {"question": questions[place].id, "temperature": temperature, "method": name}
            if ledger.find(**key) is None and time.monotonic() < end:
                ledger.add(key | recorded(warm(partial(side, questions[place], temperature))))


def forget_programs(most: int = 40_000) -> None:
    """Drop compiled programs, which are kept on disk, before they take all areas of memory that Linux grants."""
    areas = Path("/proc/self/maps")
    if areas.exists() and areas.read_bytes().count(b"\n") > most:
        jax.clear_caches()


def warm(run: Callable[[], Answer]) -> Answer:
    """Answer until nothing is compiled meanwhile."""
    result = run()
    return warm(run) if result.compiled else result


def recorded(result: Answer) -> Row:
    """Return the entries of an answer."""
    tokens = [token for turn in result.tokens for token in turn]
    times = {"seconds": result.seconds, "prompt_seconds": result.prompt_seconds}
    return times | {"steps": result.steps, "accepted": result.accepted, "tokens": tokens}


def shown(row: Row) -> str:
    """Return a line to read."""
    head = f"{row['temperature']:g} {row['task']:32}{row['method']:28} τ {row['tau']:5.2f}"
    speed = f"{row['tokens_per_second']:7.1f} tokens/s {row['ratio_to_autoregressive']:5.2f}×"
    return f"{head} {speed} {'' if row['identical'] else 'other tokens'}"


if __name__ == "__main__":
    main()
