"""When a sequence ends, and its text as it grows: stop tokens, stop strings across borders, whole characters."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

#: What a decoder says for bytes that are not yet a character.
BROKEN = "\ufffd"
#: Tokens of a prompt that are decoded together with the first new ones, at least.
CONTEXT = 16

Finish = Literal["stop", "length", "error"]
"""Why a sequence ended: at a stop token or string, at its length, or since the logits were not numbers."""


@dataclass
class Written:
    """One sequence as it grows.

    Attributes:
        limit: most tokens.
        stop_tokens: ids that end it; the id is kept.
        stop_strings: texts that end it; they are cut off.
        decode: ids → text; None: no text is kept.
        context: the last tokens of the prompt; the text is what follows theirs (see ``context_of``).
        tokens: what it has so far.
        log_probabilities: one for each of them.
        finish: why it ended: "stop", or "length" at the limit, "error" without a next token; None while it goes on.
        text: what is safe to show: whole characters, nothing that may yet become a stop string.
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
        """Takes new tokens, up to where the sequence ends; how many."""
        before = len(self.tokens)
        for token, value in zip(tokens, log_probabilities, strict=True):
            if self.finish:
                break
            self.tokens.append(token)
            self._all.append(token)
            self.log_probabilities.append(value)
            self._judge(token)
        if self.finish and self.decode and self._show(final=True):
            self.finish = "stop"
        return len(self.tokens) - before

    def _judge(self, token: int) -> None:
        if (self.stop_strings and self._show()) or token in self.stop_tokens:
            self.finish = "stop"
        elif len(self.tokens) >= self.limit:
            self.finish = "length"

    def _show(self, final: bool = False) -> bool:
        """Moves what is safe into ``text``; whether a stop string came up, at which the text is cut."""
        self._held += self._new(final)
        ends = [place for place in (self._held.find(stop) for stop in self.stop_strings) if place >= 0]
        if ends:
            self.text, self._held = self.text + self._held[: min(ends)], ""
            self.decode = None
            return True
        keep = 0 if final else max((_overhang(self._held, stop) for stop in self.stop_strings), default=0)
        cut = len(self._held) - keep
        self.text, self._held = self.text + self._held[:cut], self._held[cut:]
        return False

    def show(self) -> str:
        """All text that is safe by now."""
        if self.decode:
            self._show(final=self.finish is not None)
        return self.text

    def _new(self, final: bool) -> str:
        """Text of the tokens not read yet; nothing while it ends within a character.

        They are decoded behind those read last: whole characters, and something of a text, so that what a decoder does
        to the beginning of one (it leaves out a space) happens to neither or both.
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
    """As many of a prompt's last tokens as have text, so that the decoder takes what follows for no beginning."""
    size = CONTEXT
    while size < len(prompt) and not decode(prompt[-size:]).strip(f"{BROKEN} "):
        size *= 2
    return list(prompt[-size:])


def _overhang(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that begins ``stop``."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
