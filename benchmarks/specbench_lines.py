"""The lines of specbench.py: each method's answers beside those of plain decoding, by temperature and task."""

from collections.abc import Callable, Iterator, Sequence

from ledger import Ledger, Row
from specbench_methods import PLAIN

from jaxspec.analysis.specbench import Question

#: Name of all tasks together.
ALL = "all"
#: Begins the names of programs that return text, so that their tokens are not known.
TEXT_ALONE = "llama.cpp"


def rows(
    ledger: Ledger,
    questions: Sequence[Question],
    temperatures: Sequence[float],
    decode: Callable[[Sequence[int]], str],
) -> Iterator[Row]:
    """Return the lines: by temperature, task and method, over questions that plain decoding and the method answered."""
    tasks = [*dict.fromkeys(question.task for question in questions), ALL]
    names = list(dict.fromkeys(row["method"] for row in ledger.rows if "method" in row))
    for temperature in temperatures:
        for task in tasks:
            ids = [each.id for each in questions if task in (each.task, ALL)]
            for name in names:
                pairs = [answers(ledger, id, temperature, name) for id in ids]
                if both := [pair for pair in pairs if pair is not None]:
                    said = decode if name.startswith(TEXT_ALONE) else list
                    yield {"task": task, "method": name, "temperature": temperature} | summary(both, said)


def answers(ledger: Ledger, id: int, temperature: float, name: str) -> tuple[Row, Row] | None:
    """Return plain decoding's answer to a question and a method's, if there are both."""
    plain, own = (ledger.find(question=id, temperature=temperature, method=each) for each in (PLAIN, name))
    return None if plain is None or own is None else (plain, own)


def summary(pairs: list[tuple[Row, Row]], said: Callable[[Sequence[int]], object]) -> Row:
    """Summarise a method's answers beside those of plain decoding; ``said`` are what has to be equal of tokens."""
    total = lambda side, entry: sum(pair[side][entry] for pair in pairs)  # noqa: E731
    counts = [sum(len(pair[side]["tokens"]) for pair in pairs) for side in (0, 1)]
    plain, own = (counts[side] / total(side, "seconds") for side in (0, 1))
    decoding = [counts[side] / (total(side, "seconds") - total(side, "prompt_seconds")) for side in (0, 1)]
    return {
        "tau": round(1 + total(1, "accepted") / max(total(1, "steps"), 1), 3),
        "tokens_per_second": round(own, 2),
        "ratio_to_autoregressive": round(own / plain, 3),
        "ratio_without_prompts": round(decoding[1] / decoding[0], 3),
        "identical": all(said(first["tokens"]) == said(second["tokens"]) for first, second in pairs),
        "tokens_compared": counts[0],
        "questions": len(pairs),
    }
