"""Where a sequence ends, and its text while it grows: stop tokens, stop strings across tokens, whole characters."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

#: Replacement character: what a decoder returns for an incomplete character.
BROKEN = "\ufffd"
#: Tokens of a prompt, at least, that are decoded together with the first new ones.
CONTEXT = 16

Finish = Literal["stop", "length", "error"]
"""Why a sequence ended: a stop token or string, its length, or logits that are NaN or infinite."""


@dataclass
class Written:
    """One growing sequence.

    Attributes:
        limit: largest number of tokens.
        stop_tokens: ids that end it; the id is kept.
        stop_strings: texts that end it; they are cut off.
        decode: ids → text; None: no text is kept.
        context: the last tokens of the prompt; ``text`` is what follows their text (see ``context_of``).
        tokens: new tokens so far.
        log_probabilities: one for each of them.
        finish: why it ended; None before the end.
        text: the part that cannot change any more: whole characters, no possible beginning of a stop string.
    """

    limit: int
    stop_tokens: frozenset[int] = frozenset()
    stop_strings: tuple[str, ...] = ()
    decode: Callable[[Sequence[int]], str] | None = None
    context: Sequence[int] = ()
    tokens: list[int] = field(default_factory=list)
    log_probabilities: list[float] = field(default_factory=list)
    finish: Finish | None = None
    text: str = ""
    _all: list[int] = field(default_factory=list)
    _start: int = 0
    _read: int = 0
    _held: str = ""

    def __post_init__(self) -> None:
        self._all = [*self.context, *self.tokens]
        self._read = len(self.context)

    def add(self, tokens: Sequence[int], log_probabilities: Sequence[float]) -> int:
        """Add new tokens up to the end of the sequence; return how many were added."""
        before = len(self.tokens)
        for token, value in zip(tokens, log_probabilities, strict=True):
            if self.finish:
                break
            self.tokens.append(token)
            self._all.append(token)
            self.log_probabilities.append(value)
            self._update_finish(token)
        if self.finish and self.decode and self._move(final=True):
            self.finish = "stop"
        return len(self.tokens) - before

    def _update_finish(self, token: int) -> None:
        if (self.stop_strings and self._move()) or token in self.stop_tokens:
            self.finish = "stop"
        elif len(self.tokens) >= self.limit:
            self.finish = "length"

    def _move(self, final: bool = False) -> bool:
        """Move final text from ``_held`` to ``text``; return whether a stop string ended it."""
        self._held += self._new(final)
        ends = [start for start in (self._held.find(stop) for stop in self.stop_strings) if start >= 0]
        if ends:
            self.text, self._held = self.text + self._held[: min(ends)], ""
            self.decode = None
            return True
        keep = 0 if final else max((_overhang(self._held, stop) for stop in self.stop_strings), default=0)
        cut = len(self._held) - keep
        self.text, self._held = self.text + self._held[:cut], self._held[cut:]
        return False

    def show(self) -> str:
        """Return the text that is final by now."""
        if self.decode:
            self._move(final=self.finish is not None)
        return self.text

    def _new(self, final: bool) -> str:
        """Return the text of the tokens not decoded yet; empty while it ends within a character.

        It is the difference of two decodings that begin at the same earlier token, because a decoder treats the
        beginning of a text in another way (it drops a space).
        """
        if self.decode is None or self._read == len(self._all):
            return ""
        before, now = self.decode(self._all[self._start : self._read]), self.decode(self._all[self._start :])
        if not final and now.endswith(BROKEN):
            return ""
        if self.decode(self._all[self._read :]):
            self._start = self._read
        self._read = len(self._all)
        # A prompt may end within a character that the first new tokens complete.
        return now[len(before if now.startswith(before) else before.rstrip(BROKEN)) :]


def context_of(decode: Callable[[Sequence[int]], str], prompt: Sequence[int]) -> list[int]:
    """Return the last tokens of a prompt, enough to have text, so that new tokens are not decoded as a beginning."""
    size = CONTEXT
    while size < len(prompt) and not decode(prompt[-size:]).strip(f"{BROKEN} "):
        size *= 2
    return list(prompt[-size:])


def _overhang(text: str, stop: str) -> int:
    """Return the length of the longest suffix of ``text`` that is a prefix of ``stop``."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
