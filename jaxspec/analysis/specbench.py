"""Spec-Bench: its questions of six tasks, every method on the same prompts with the same number of tokens.

The file is the published ``question.jsonl``: one object a line with ``question_id``, ``category`` and ``turns``. The
eight categories of MT-Bench are one task, conversation in several turns.

Source: Xia et al., Unlocking Efficiency in LLM Inference (arXiv 2401.07851), Spec-Bench.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from tqdm import tqdm

from jaxspec.generation import Sampling, generate
from jaxspec.methods.protocol import DecodingMethod
from jaxspec.text import Text

CONVERSATION = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
#: From the categories of the file to the six tasks.
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
    """A question: its ``task`` and the user's messages."""

    id: int
    task: str
    turns: list[str]


class TaskResult(NamedTuple):
    """The result of one method on one task, or on all.

    Attributes:
        task: name.
        method: name.
        tokens_per_second: new tokens over seconds, prefill included; median over runs.
        ratio: over the first method's.
        accepted_length: accepted drafted tokens, mean over steps; those that the end of a text cuts off do not count.
        tokens: new tokens in one run.
        identical: whether the tokens equal the first method's.
    """

    task: str
    method: str
    tokens_per_second: float
    ratio: float
    accepted_length: float
    tokens: int
    identical: bool


class Answer(NamedTuple):
    """A method's answer to one question.

    Attributes:
        seconds: of all turns, prompts included.
        steps: of decoding.
        accepted: drafted tokens that the text has.
        tokens: of each turn.
        prompt_seconds: those of ``seconds`` in which prompts were read.
        compiled: programs that were compiled meanwhile.
    """

    seconds: float
    steps: int
    accepted: int
    tokens: list[list[int]]
    prompt_seconds: float = 0.0
    compiled: int = 0


def read_questions(path: str | Path, per_task: int | None = None) -> list[Question]:
    """Read the questions of a file, in its order; at most ``per_task`` per task.

    Raises:
        ValueError: a line that is not a question, or of an unknown category; names the line.
    """
    questions: list[Question] = []
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
        if per_task is None or sum(other.task == question.task for other in questions) < per_task:
            questions.append(question)
    if not questions:
        raise ValueError(f"{path}: expected a question on every line, got none")
    return questions


def run(
    methods: Mapping[str, DecodingMethod],
    questions: Sequence[Question],
    max_new_tokens: int = 256,
    runs: int = 3,
    progress: bool = True,
) -> list[TaskResult]:
    """Run all methods on all questions in turns (A B A B), after one run that compiles; the first is the baseline.

    Each question is a batch of one. A second turn follows the method's own first answer.

    Raises:
        ValueError: no method, no question, or fewer than one run.
    """
    if not methods or runs < 1:
        raise ValueError(f"expected at least one method and one run, got {len(methods)} and {runs}")
    if not questions:
        raise ValueError("expected at least one question, got none")
    with tqdm(total=len(questions) * len(methods) * (runs + 1), desc="questions", disable=not progress) as bar:
        answers = [_answers(methods, question, max_new_tokens, runs, bar.update) for question in questions]
    groups: dict[str, list[dict[str, list[Answer]]]] = {}
    for question, each in zip(questions, answers, strict=True):
        groups.setdefault(question.task, []).append(each)
    groups["all"] = answers
    return [row for task, group in groups.items() for row in _results(task, group)]


def fastest(
    methods: Mapping[Key, DecodingMethod], questions: Sequence[Question], max_new_tokens: int, runs: int
) -> Key:
    """Return the method that answers questions fastest, median over runs in turns after one that compiles."""
    if len(methods) == 1:
        return next(iter(methods))
    answers = [_answers(methods, question, max_new_tokens, runs, lambda: None) for question in questions]
    seconds = lambda name: sum(float(np.median([run.seconds for run in each[name]])) for each in answers)  # noqa: E731
    return min(methods, key=seconds)


def _answers(
    methods: Mapping[Key, DecodingMethod], question: Question, max_new_tokens: int, runs: int, done: Callable[[], Any]
) -> dict[Key, list[Answer]]:
    """Answer a question with all methods in turns; return each one's answers but the first, which compiles."""
    answers: dict[Key, list[Answer]] = {name: [] for name in methods}
    for _ in range(runs + 1):
        for name, method in methods.items():
            answers[name].append(answer(method, question, max_new_tokens))
            done()
    return {name: every[1:] for name, every in answers.items()}


def answer(method: DecodingMethod, question: Question, max_new_tokens: int, temperature: float = 0.0) -> Answer:
    """Answer all turns of a question with one method; with a temperature, by the seed that is the question's number."""
    said: list[str] = []
    sampling = Sampling(temperature=temperature, seed=question.id)
    result = Answer(0.0, 0, 0, [])
    for turn in question.turns:
        said.append(turn)
        start = time.perf_counter()
        one = generate(method, [prompt_of(method.text, said)], max_new_tokens, sampling=sampling)
        seconds, stats = time.perf_counter() - start, one.stats
        counts = seconds, stats.steps, stats.accepted, one.tokens[:1], stats.prefill_seconds, stats.compiled
        result = Answer(*(old + new for old, new in zip(result, counts, strict=True)))  # type: ignore[operator]
        said.append((one.text or [""])[0])
    return result


def prompt_of(text: Text | None, said: Sequence[str]) -> Any:
    """Return the user's and the model's texts, in turns, as a conversation; without a chat template as plain text."""
    if text is None or text.template is None:
        return "\n".join(said)
    return [{"role": role, "content": text} for role, text in zip(cycle(("user", "assistant")), said, strict=False)]


def _results(task: str, answers: Sequence[Mapping[str, list[Answer]]]) -> list[TaskResult]:
    """Summarise every method on some questions."""
    first, speeds, results = next(iter(answers[0])), {}, []
    for name in answers[0]:
        runs = list(zip(*(each[name] for each in answers), strict=True))
        tokens = sum(len(row) for each in runs[0] for row in each.tokens)
        speeds[name] = float(np.median([tokens / sum(each.seconds for each in run) for run in runs]))
        accepted = sum(each.accepted for each in runs[0]) / max(sum(each.steps for each in runs[0]), 1)
        same = all(each[name][0].tokens == each[first][0].tokens for each in answers)
        ratio = speeds[name] / speeds[first]
        results.append(TaskResult(task, name, speeds[name], ratio, accepted, tokens, same))
    return results
