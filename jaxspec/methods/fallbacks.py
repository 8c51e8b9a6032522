"""What a sequence drafts when no branch was right: a full window, a short one, or one that is looked up in its text.

Every sequence of a batch falls back on its own; the others keep the windows that were ready. A window of fewer than γ
tokens is filled up with −1, which is never a target's choice.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from jaxspec.core.arguments import whole
from jaxspec.drafts.base import Drafter
from jaxspec.drafts.ngram import CommittedText, continuation, sizes_of
from jaxspec.drafts.proposer import Proposer
from jaxspec.drafts.records import Drafted, Pending, filled
from jaxspec.models.base import Params


class Need(NamedTuple):
    """Where a window is to be drafted.

    Attributes:
        root: the last committed token, after which it starts.
        proposer: how tokens are drawn.
        text: the committed text, for a fallback that reads it.
    """

    root: Pending
    proposer: Proposer
    text: CommittedText | None


class Fallback(Protocol):
    """Drafts a window after the committed text; static in the programs of the draft's side."""

    @property
    def reads_text(self) -> bool:
        """Whether it needs the committed text, which then is kept on the draft's mesh."""

    def __call__(self, drafter: Drafter, params: Params, state: Any, window: int, need: Need) -> tuple[Drafted, Any]:
        """Return a window [B, γ] after the root, and the draft's state."""


@dataclass(frozen=True)
class Full:
    """γ tokens, one after the other: T_draft(γ)."""

    reads_text = False

    def __call__(self, drafter: Drafter, params: Params, state: Any, window: int, need: Need) -> tuple[Drafted, Any]:
        """Draft as vanilla speculative decoding does."""
        return drafter.propose(params, state, need.root, window, need.proposer)


@dataclass(frozen=True)
class Short:
    """Only ``length`` tokens: T_draft(length), and no more than these are accepted.

    Raises:
        ValueError: a length below 1.
    """

    length: int
    reads_text = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "length", whole("length of a short window", self.length, 1))

    def __call__(self, drafter: Drafter, params: Params, state: Any, window: int, need: Need) -> tuple[Drafted, Any]:
        """Draft ``length`` tokens, at most γ, and fill up the window."""
        length = min(self.length, window)
        drafted, state = drafter.propose(params, state, need.root, length, need.proposer)
        return filled(drafted, window), state


@dataclass(frozen=True)
class NGram:
    """What followed the latest earlier occurrence of the last ``size`` tokens: one pass of the draft, whatever γ.

    Of several sizes the first that occurs is taken. Where none does, one token of the draft's own.

    Raises:
        ValueError: a size below 1.

    Source: prompt lookup decoding (Saxena, 2023).
    """

    size: int | tuple[int, ...] = 3
    reads_text = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", sizes_of(self.size))

    def __call__(self, drafter: Drafter, params: Params, state: Any, window: int, need: Need) -> tuple[Drafted, Any]:
        """Look the window up and run the draft over it once, for its rows and for its first token."""
        assert need.text is not None
        looked_up = continuation(need.text, sizes_of(self.size), window)
        return drafter.follow(params, state, need.root, looked_up, need.proposer)
