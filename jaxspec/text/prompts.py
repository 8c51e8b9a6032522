"""Windows of text that begin as prompts do: with the tokens that the tokenizer puts before every prompt."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from jaxspec.text._text import Text


def prompt_prefix(tokenizer: Tokenizer | Text | None) -> np.ndarray:
    """Return the tokens [k] int32 that encoding puts before a prompt, such as ``<bos>``; none without a tokenizer."""
    text = None if tokenizer is None else _text(tokenizer)
    return np.asarray([] if text is None or text.encode is None else _frame(text)[0], np.int32)


def tokens_of(tokenizer: Tokenizer | Text, text: str) -> np.ndarray:
    """Encode a text to ids [T] int32 with its prefix, but without the tokens that encoding puts after it."""
    own = _text(tokenizer)
    ids = _encode(own, text)
    return ids[: len(ids) - len(_frame(own)[1])]


def with_prefix(rows: np.ndarray, prefix: np.ndarray) -> np.ndarray:
    """Replace the first k tokens of windows [..., T] by ``prefix`` [k].

    Raises:
        ValueError: windows not longer than the prefix.
    """
    count = len(prefix)
    if not count:
        return rows
    if rows.shape[-1] <= count:
        raise ValueError(
            f"expected windows longer than the {count} tokens before every prompt, got {rows.shape[-1]}; "
            "use longer windows"
        )
    return np.concatenate([np.broadcast_to(prefix, (*rows.shape[:-1], count)), rows[..., count:]], axis=-1)


def windows(tokens: np.ndarray, length: int, count: int, prefix: Sequence[int] | np.ndarray = ()) -> np.ndarray:
    """Cut at most ``count`` windows [n, length] from tokens, evenly spaced; neighbours overlap by half at most.

    Args:
        tokens: of a whole text, [T].
        length: tokens of a window.
        count: largest number of windows.
        prefix: ``prompt_prefix`` of the tokenizer; replaces the first tokens of every window.

    Raises:
        ValueError: fewer tokens than one window, or windows not longer than the prefix.
    """
    if len(tokens) < length:
        raise ValueError(f"expected at least {length} tokens for one prompt, got {len(tokens)}; leave this client out")
    last = len(tokens) - length
    starts = np.linspace(0, last, min(count, 1 + 2 * last // length)).astype(int)
    return with_prefix(tokens[starts[:, None] + np.arange(length)[None]], np.asarray(prefix, np.int32))


def token_rows(
    tokenizer: Tokenizer | Text, texts: Sequence[str], length: int, count: int
) -> tuple[np.ndarray, list[int]]:
    """Return windows [n, length] of several texts, each with the prompt prefix, and the index of each one's text."""
    prefix = prompt_prefix(tokenizer)
    rows = [windows(tokens_of(tokenizer, text), length, count, prefix) for text in texts]
    return np.concatenate(rows), [index for index, part in enumerate(rows) for _ in part]


class Continued(NamedTuple):
    """Prompts, each followed by the tokens of a target.

    Attributes:
        tokens: [n, P + L]; −1 after a stop token of the target, which is the last token of its row, and after L tokens.
        prompt_length: P of all rows, or of each: [n].
        owners: client of each row, ascending; None if rows do not belong to training clients.
    """

    tokens: np.ndarray
    prompt_length: int | np.ndarray
    owners: np.ndarray | None = None

    @property
    def starts(self) -> np.ndarray:
        """P of each row."""
        return np.broadcast_to(self.prompt_length, len(self.tokens))

    @property
    def answers(self) -> np.ndarray:
        """The tokens without the prompts, −1 in their place: [n, P + L]."""
        return np.where(behind(self.prompt_length, self.tokens.shape), self.tokens, -1)

    @property
    def most(self) -> int:
        """L."""
        return self.tokens.shape[1] - int(np.max(self.prompt_length))

    def rows(self, index: np.ndarray | slice) -> "Continued":
        """Return some of the rows."""
        starts = self.starts[index]
        ends = starts if np.ndim(self.prompt_length) else self.prompt_length
        owners = None if self.owners is None else self.owners[index]
        return Continued(self.tokens[index, : int(starts.max()) + self.most], ends, owners)

    @classmethod
    def of(cls, tokens: "np.ndarray | Continued", prompt_length: int = 0) -> "Continued":
        """Return texts with their prompts as they are, or texts [n, T] behind prompts of one length."""
        return tokens if isinstance(tokens, Continued) else cls(np.asarray(tokens), prompt_length)


def behind(prompt_length: int | np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return which places of texts [n, T] are behind their prompts, for one length or one of each text: [n, T] bool."""
    ends = np.broadcast_to(np.asarray(prompt_length), shape[:1])
    return np.arange(shape[1])[None] >= ends[:, None]


def without_prompts(values: np.ndarray, prompt_length: int | np.ndarray, fill: float = 0) -> np.ndarray:
    """Move what lies behind every prompt to the front: values [..., n, T] to [..., n, T − shortest], padded at the end.

    Args:
        values: by text and place.
        prompt_length: one length, or one of each text.
        fill: padding.
    """
    count, length = values.shape[-2:]
    starts = np.broadcast_to(np.asarray(prompt_length), (count,))
    places = starts[:, None] + np.arange(length - starts.min())[None]
    picked = np.take_along_axis(
        values, np.broadcast_to(np.minimum(places, length - 1), (*values.shape[:-2], *places.shape)), axis=-1
    )
    return np.where(places < length, picked, np.asarray(fill, values.dtype))


def lengths(tokens: np.ndarray) -> np.ndarray:
    """Return the number of tokens [n] of every row of texts [n, T] padded with −1."""
    return np.sum(np.asarray(tokens) >= 0, axis=-1)


def filled(tokens: np.ndarray) -> np.ndarray:
    """Replace padding of −1 by token 0, which a model can embed."""
    return np.maximum(tokens, 0)


def _encode(text: Text, string: str) -> np.ndarray:
    """Encode as ``generate`` encodes a prompt.

    Raises:
        ValueError: a ``Text`` without a tokenizer.
    """
    if text.encode is None:
        raise ValueError("expected a tokenizer, got a Text without one; pass jaxspec.Text.of(tokenizer)")
    return text.encode(string)


def _frame(text: Text) -> tuple[list[int], list[int]]:
    """Return the tokens that encoding puts before and after a text."""
    if text.encode_marked is None:
        return _encode(text, "").tolist(), []
    own, whole = text.encode_marked("a").tolist(), _encode(text, "a").tolist()
    if not own:  # the vocabulary lacks this letter
        return whole, []
    starts = [start for start in range(len(whole)) if whole[start : start + len(own)] == own]
    return (whole[: starts[-1]], whole[starts[-1] + len(own) :]) if starts else ([], [])


def _text(tokenizer: Tokenizer | Text) -> Text:
    return tokenizer if isinstance(tokenizer, Text) else Text.of(tokenizer)
