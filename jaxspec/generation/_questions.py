"""Questions that an instruct model asks itself: training prompts for its drafts where nobody has others."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from jaxspec.generation._continue import continued
from jaxspec.models.base import Model
from jaxspec.text import Text

#: A user's words: what a conversation that begins with these has in common is written before them.
WORDS = ("\u2063", "a", "0")


def own_questions(
    target: Model, count: int, new_tokens: int = 96, progress: bool = False, directory: Path | None = None
) -> list[str]:
    """Let a target write questions: from the beginning of a user's message on, at temperature 1.

    Args:
        target: an instruct model, with a chat template and stop tokens.
        count: questions that are begun; those that do not end within ``new_tokens``, empty and equal ones are left out.
        new_tokens: longest question.
        progress: show a bar.
        directory: where they are kept.

    Raises:
        ValueError: no chat template, no stop tokens, or a template that changes the user's words.

    Source: Xu et al., Magpie (arXiv 2406.08464).
    """
    beginning, decode, stop = _beginning(target.text)
    prompts = np.broadcast_to(beginning, (count, len(beginning)))
    written = continued(target, prompts, new_tokens, progress, temperature=1.0, directory=directory)
    answers = [row[len(beginning) :] for row in written.tokens]
    ended = [row[row >= 0] for row in answers if np.isin(row, stop).any()]
    questions = [decode(row[:-1]).strip() for row in ended]
    return [*dict.fromkeys(question for question in questions if question)]


def _beginning(text: Text | None) -> tuple[np.ndarray, Callable[..., str], tuple[int, ...]]:
    """Return the tokens of a conversation up to the user's words, what makes text of tokens, and the stop tokens."""
    if text is None or text.template is None or text.decode is None or not text.stop:
        raise ValueError(
            "expected an instruct model, with a chat template and stop tokens, to write questions, got none; pass "
            "prompts of your own"
        )
    rows = [text.chat([{"role": "user", "content": words}]) for words in WORDS]
    size = min(map(len, rows))
    differ = np.flatnonzero(np.ptp(np.stack([row[:size] for row in rows]), axis=0))
    if not len(differ) or not differ[0]:
        raise ValueError("expected a chat template that writes the user's words, got one that does not")
    return rows[0][: differ[0]], text.decode, text.stop
