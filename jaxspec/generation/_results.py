"""Results of one ``generate`` call."""

from dataclasses import dataclass, field

from jaxspec.text.stopping import Finish


class NonFiniteLogits(FloatingPointError):
    """The target's logits are NaN or infinite, so there is no next token.

    Attributes:
        output: the ``Generation`` up to the error; unfinished sequences have the finish reason "error".
    """

    def __init__(self, message: str, output: "Generation"):
        super().__init__(message)
        self.output = output


@dataclass
class Stats:
    """Counts of one ``generate`` call, summed over its sequences.

    Attributes:
        steps: (sequence, step) pairs that added tokens.
        new_tokens: tokens added.
        accepted: drafted tokens among ``new_tokens``; the others are the target's own, at most one a step.
        verified: drafted tokens that the target accepted, including those after the end of a sequence.
        needed: (sequence, step) pairs after which the sequence needed another window.
        reused: those of ``needed`` whose next window had been rolled out before the verdict.
        invalid_drafts: positions of windows without a drafted token, because the draft's logits were NaN or infinite.
        invalid_exits: (sequence, step) pairs in which the exit's logits were NaN or infinite.
        prefill_seconds: time of the prompts and the first window.
        decode_seconds: time of everything after that.
        compiled: programs compiled during the call; 0 from the second call in the same buckets on.
    """

    steps: int = 0
    new_tokens: int = 0
    accepted: int = 0
    verified: int = 0
    needed: int = 0
    reused: int = 0
    invalid_drafts: int = 0
    invalid_exits: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    compiled: int = 0

    @property
    def accepted_length(self) -> float:
        """Mean of ``verified`` per step; it does not depend on where the text ends."""
        return self.verified / max(self.steps, 1)

    @property
    def reuse_rate(self) -> float:
        """``reused`` / ``needed``."""
        return self.reused / max(self.needed, 1)

    @property
    def tokens_per_second(self) -> float:
        """New tokens over the time of the call, prefill included."""
        return self.new_tokens / max(self.prefill_seconds + self.decode_seconds, 1e-9)

    def to_dict(self) -> dict[str, float]:
        """Return counts and rates by name."""
        rates = "accepted_length", "reuse_rate", "tokens_per_second"
        return {**vars(self), **{name: getattr(self, name) for name in rates}}


@dataclass
class Generation:
    """Result of ``generate``: lists with one entry for each prompt.

    Attributes:
        tokens: new token ids; a stop token is kept.
        text: text of the new tokens, without special tokens and up to the stop string; None without a tokenizer.
        stats: counts over all sequences.
        finish_reason: "stop" at a stop token or string, "length" at ``max_new_tokens``, "error" in ``NonFiniteLogits``.
        log_probabilities: of every new token under the target (nats; unfiltered, temperature 1).
    """

    tokens: list[list[int]]
    text: list[str] | None
    stats: Stats = field(default_factory=Stats)
    finish_reason: list[Finish] = field(default_factory=list)
    log_probabilities: list[list[float]] = field(default_factory=list)
