"""Spec-Bench: the benchmark's own questions, six tasks, every method on the same prompts with the same count of tokens.

The file is the published ``question.jsonl``: one object a line with ``question_id``, ``category`` and ``turns``. The
eight categories of MT-Bench are one task, conversation in several turns.

Source: Xia et al., Unlocking Efficiency in LLM Inference (arXiv 2401.07851), Spec-Bench.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from tqdm import tqdm

from jaxspec.generation import generate
from jaxspec.methods.protocol import DecodingMethod

#: From the categories of the file to the six tasks.
CONVERSATION = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
TASKS = {
    **dict.fromkeys(CONVERSATION, "conversation"),
    "translation": "translation",
    "summarization": "summarization",
    "qa": "question answering",
    "math_reasoning": "mathematical reasoning",
    "rag": "retrieval-augmented generation",
}


Key = TypeVar("Key")


class Question(NamedTuple):
    """One question: its ``task``, and what the user says, turn by turn."""

    id: int
    task: str
    turns: list[str]


class Row(NamedTuple):
    """One method on one task, or on all of them.

    Attributes:
        task: name.
        method: name.
        tokens_per_second: new tokens over seconds, prefill included; median over runs.
        ratio: over the first method's.
        accepted_length: drafted tokens that are confirmed, mean over steps (``Stats.accepted_length``).
        tokens: new tokens in one run.
        identical: whether they are the first method's.
    """

    task: str
    method: str
    tokens_per_second: float
    ratio: float
    accepted_length: float
    tokens: int
    identical: bool


class Played(NamedTuple):
    """One question answered by one method: seconds, steps, verified drafted tokens, and the tokens themselves."""

    seconds: float
    steps: int
    verified: int
    tokens: list[list[int]]


def read_questions(path: str | Path, per_task: int | None = None) -> list[Question]:
    """Questions of the file, in its order; at most ``per_task`` of each.

    Raises:
        ValueError: a line that is no question, or of an unknown category; names the line.
    """
    found: list[Question] = []
    for number, line in enumerate(Path(path).read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            read = json.loads(line)
            question = Question(
                int(read["question_id"]), TASKS[read["category"]], [str(turn) for turn in read["turns"]]
            )
        except (ValueError, TypeError, KeyError) as error:
            wanted = f"question_id, turns and a category out of {', '.join(TASKS)}"
            raise ValueError(f"{path}, line {number}: expected {wanted}, got {error}") from error
        if per_task is None or sum(other.task == question.task for other in found) < per_task:
            found.append(question)
    if not found:
        raise ValueError(f"{path}: expected a question on every line, got none")
    return found


def run(
    methods: Mapping[str, DecodingMethod],
    questions: Sequence[Question],
    max_new_tokens: int = 256,
    runs: int = 3,
    progress: bool = True,
) -> list[Row]:
    """All methods on all questions in turns (A B A B), after one run that compiles; the first is the baseline.

    Each question is a batch of one. A second turn follows the method's own first answer.

    Raises:
        ValueError: no method, or fewer than one run.
    """
    if not methods or runs < 1:
        raise ValueError(f"expected at least one method and one run, got {len(methods)} and {runs}")
    played: dict[tuple[str, int], list[Played]] = {}
    with tqdm(total=len(questions) * len(methods) * (runs + 1), desc="questions", disable=not progress) as bar:
        for number, question in enumerate(questions):
            for turn in range(runs + 1):
                for name, method in methods.items():
                    answer = play(method, question, max_new_tokens)
                    if turn:
                        played.setdefault((name, number), []).append(answer)
                    bar.update()
    tasks = dict.fromkeys(question.task for question in questions)
    groups = {task: [n for n, question in enumerate(questions) if question.task == task] for task in tasks}
    groups["all"] = list(range(len(questions)))
    return [row for task, numbers in groups.items() for row in _rows(task, numbers, list(methods), played)]


def fastest(methods: Mapping[Key, DecodingMethod], question: Question, max_new_tokens: int, runs: int) -> Key:
    """The method that answers a question in the least time, median over runs in turns after one that compiles."""
    if len(methods) == 1:
        return next(iter(methods))
    seconds: dict[Key, list[float]] = {name: [] for name in methods}
    for turn in range(runs + 1):
        for name, method in methods.items():
            answer = play(method, question, max_new_tokens)
            if turn:
                seconds[name].append(answer.seconds)
    return min(methods, key=lambda name: float(np.median(seconds[name])))


def play(method: DecodingMethod, question: Question, max_new_tokens: int) -> Played:
    """One method answers all turns of a question."""
    talk = _talk(method)
    said: list[str] = []
    seconds, steps, verified, tokens = 0.0, 0, 0, []
    for turn in question.turns:
        start = time.perf_counter()
        result = generate(method, [talk(question.turns, said, turn)], max_new_tokens)
        seconds += time.perf_counter() - start
        steps, verified = steps + result.stats.steps, verified + result.stats.verified
        tokens.append(result.tokens[0])
        said.append((result.text or [""])[0])
    return Played(seconds, steps, verified, tokens)


def _talk(method: DecodingMethod) -> Callable[[Sequence[str], Sequence[str], str], Any]:
    """How a turn is put to the target: by its chat template, or as plain text where it has none."""
    templated = method.text is not None and method.text.template is not None

    def prompt(turns: Sequence[str], said: Sequence[str], turn: str) -> Any:
        if not templated:
            return "\n".join([text for pair in zip(turns, said, strict=False) for text in pair] + [turn])
        before = [
            message
            for asked, answered in zip(turns, said, strict=False)
            for message in ({"role": "user", "content": asked}, {"role": "assistant", "content": answered})
        ]
        return [*before, {"role": "user", "content": turn}]

    return prompt


def _rows(task: str, numbers: list[int], names: list[str], played: Mapping[tuple[str, int], list[Played]]) -> list[Row]:
    """Every method on some questions."""
    speeds, rows = {}, []
    for name in names:
        runs = list(zip(*(played[name, number] for number in numbers), strict=True))
        tokens = sum(len(row) for answer in runs[0] for row in answer.tokens)
        speeds[name] = float(np.median([tokens / sum(answer.seconds for answer in each) for each in runs]))
        accepted = sum(answer.verified for answer in runs[0]) / max(sum(answer.steps for answer in runs[0]), 1)
        same = all(played[name, number][0].tokens == played[names[0], number][0].tokens for number in numbers)
        rows.append(Row(task, name, speeds[name], speeds[name] / speeds[names[0]], accepted, tokens, same))
    return rows
