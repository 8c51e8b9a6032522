"""Windows of text as a decoder sees prompts: each begins with the tokens that the tokenizer puts before a prompt."""

from collections.abc import Sequence

import numpy as np
from tokenizers import Tokenizer

from jaxspec.text._text import Text


def opening(tokenizer: Tokenizer | Text | None) -> np.ndarray:
    """Tokens [k] int32 before every prompt, such as a beginning-of-sequence token; none without a tokenizer."""
    text = None if tokenizer is None else _text(tokenizer)
    return np.asarray([] if text is None or text.encode is None else _frame(text)[0], np.int32)


def tokens_of(tokenizer: Tokenizer | Text, text: str) -> np.ndarray:
    """Token ids [T] int32 of a text that goes on: its opening, and nothing that would end it."""
    own = _text(tokenizer)
    ids = _encode(own, text)
    return ids[: len(ids) - len(_frame(own)[1])]


def opened(rows: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Windows [..., T] with the tokens ``first`` [k] in place of their first k.

    Raises:
        ValueError: windows that hold nothing else.
    """
    count = len(first)
    if not count:
        return rows
    if rows.shape[-1] <= count:
        raise ValueError(
            f"expected windows longer than the {count} tokens before every prompt, got {rows.shape[-1]}; "
            "use longer windows"
        )
    return np.concatenate([np.broadcast_to(first, (*rows.shape[:-1], count)), rows[..., count:]], axis=-1)


def windows(tokens: np.ndarray, length: int, count: int, first: Sequence[int] | np.ndarray = ()) -> np.ndarray:
    """At most ``count`` windows [n, length] of a token array, evenly spread, at most half overlapping.

    Args:
        tokens: of a whole text, [T].
        length: of a window.
        count: of windows at most.
        first: ``opening`` of the tokenizer: begins every window, in place of as many tokens of the text.

    Raises:
        ValueError: fewer tokens than one window, or windows of nothing but an opening.
    """
    if len(tokens) < length:
        raise ValueError(f"expected at least {length} tokens for one prompt, got {len(tokens)}; leave this client out")
    room = len(tokens) - length
    starts = np.linspace(0, room, min(count, 1 + 2 * room // length)).astype(int)
    return opened(tokens[starts[:, None] + np.arange(length)[None]], np.asarray(first, np.int32))


def token_rows(
    tokenizer: Tokenizer | Text, texts: Sequence[str], length: int, count: int
) -> tuple[np.ndarray, list[int]]:
    """Prompts of several texts, [n, length], and the text each belongs to; each begins as prompts do."""
    first = opening(tokenizer)
    rows = [windows(tokens_of(tokenizer, text), length, count, first) for text in texts]
    return np.concatenate(rows), [index for index, part in enumerate(rows) for _ in part]


def lengths(tokens: np.ndarray) -> np.ndarray:
    """Tokens of every row [n] of texts [n, T] that are −1 behind their end."""
    return np.sum(np.asarray(tokens) >= 0, axis=-1)


def filled(tokens: np.ndarray) -> np.ndarray:
    """The same with token 0 behind the end of a text, for passes that do not look there."""
    return np.maximum(tokens, 0)


def _encode(text: Text, words: str) -> np.ndarray:
    """As ``generate`` encodes a prompt.

    Raises:
        ValueError: a text that cannot.
    """
    if text.encode is None:
        raise ValueError("expected a tokenizer, got a Text without one; pass jaxspec.Text.of(tokenizer)")
    return text.encode(words)


def _frame(text: Text) -> tuple[list[int], list[int]]:
    """What encoding puts before and behind a text."""
    if text.encode_marked is None:
        return _encode(text, "").tolist(), []
    own, whole = text.encode_marked("a").tolist(), _encode(text, "a").tolist()
    if not own:  # a tokenizer that cannot spell it
        return whole, []
    places = [place for place in range(len(whole)) if whole[place : place + len(own)] == own]
    return (whole[: places[-1]], whole[places[-1] + len(own) :]) if places else ([], [])


def _text(tokenizer: Tokenizer | Text) -> Text:
    return tokenizer if isinstance(tokenizer, Text) else Text.of(tokenizer)
