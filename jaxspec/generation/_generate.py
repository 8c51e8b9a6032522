"""The host loop: prompts in; tokens, text and statistics out, whatever the decoding method."""

import time
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import jax
import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm

from jaxspec.core.arguments import whole
from jaxspec.devices.compilations import compiled_programs
from jaxspec.generation.requests import Each, Prompt, Sampling, check, encoded, ends_of, request_of, text_of
from jaxspec.methods.protocol import DecodingMethod, Watch, unwatched
from jaxspec.text import Text
from jaxspec.text.stopping import Finish, Written, context_of
from jaxspec.verify.info import StepInfo

#: Steps enqueued before the oldest one's tokens are read; steps without acceptance that are no accident.
IN_FLIGHT, MANY = 3, 64
NEVER = (
    "no drafted token was accepted in {} steps: plain decoding would be faster; is the draft trained on text like the "
    "target's, with the same tokenizer (ids in the same order), and are its weights the trained ones?"
)
#: What a draft or an exit is warned of, and what to do about it.
INVALID_DRAFT = (
    "the draft's logits were NaN or infinite at {} of its tokens, none of which was accepted: the text is the target's "
    "all the same, but slower; {}"
)
INVALID_EXIT = "the exit's logits were NaN or infinite in {} steps, which rolled out useless branches; {}"
REMEDY = "look for NaN in its weights, or load it in bfloat16 or float32 (float16 overflows above 65504)"


class NonFiniteLogits(FloatingPointError):
    """The target's logits are NaN or infinite, so that there is no next token.

    Attributes:
        output: what was generated before; sequences that did not end have the finish reason "error".
    """

    def __init__(self, words: str, output: "Generation"):
        super().__init__(words)
        self.output = output


@dataclass
class Stats:
    """Counts of one ``generate`` call, summed over its sequences.

    Attributes:
        steps: (sequence, step) pairs that added tokens.
        new_tokens: tokens added.
        accepted: those of ``new_tokens`` that were drafted; the others are the target's own, at most one a step.
        verified: drafted tokens that the target confirmed, those behind the end of a sequence included.
        needed: steps after which the sequence needed another window.
        invalid_drafts: tokens of the windows that were not drafted since the draft's logits were NaN or infinite.
        invalid_exits: (sequence, step) pairs in which the exit's logits were.
        reused: those of ``needed`` whose next window had been rolled out ahead.
        prefill_seconds: prompts, and the first window.
        decode_seconds: everything after that.
        compiled: programs compiled during the call; none from the second call in the same buckets on.
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
        """Mean of ``verified`` per step: what a window is worth, wherever the text ends; comparable over lengths."""
        return self.verified / max(self.steps, 1)

    @property
    def reuse_rate(self) -> float:
        """Share of the steps that need a next window in which it was rolled out before the verdict."""
        return self.reused / max(self.needed, 1)

    @property
    def tokens_per_second(self) -> float:
        """New tokens over the whole time of the call, prefill included."""
        return self.new_tokens / max(self.prefill_seconds + self.decode_seconds, 1e-9)

    def to_dict(self) -> dict[str, float]:
        """Counts and rates."""
        rates = "accepted_length", "reuse_rate", "tokens_per_second"
        return {**vars(self), **{name: getattr(self, name) for name in rates}}


@dataclass
class Generation:
    """Result of ``generate``, one entry a prompt.

    Attributes:
        tokens: new token ids; a stop token is kept.
        text: their text as it follows the prompt's, without special tokens and up to the stop string; None without a
            tokenizer.
        stats: counts over all sequences.
        finish_reason: "stop" at a stop token or string, "length" at ``max_new_tokens``; "error" only in the output
            that ``NonFiniteLogits`` carries.
        log_probabilities: of every new token under the target's own law (nats; no filter, temperature 1).
    """

    tokens: list[list[int]]
    text: list[str] | None
    stats: Stats = field(default_factory=Stats)
    finish_reason: list[Finish] = field(default_factory=list)
    log_probabilities: list[list[float]] = field(default_factory=list)


def generate(
    method: DecodingMethod,
    prompts: Sequence[Prompt],
    max_new_tokens: Each[int] = 128,
    *,
    temperature: Each[float] = 0.0,
    top_k: Each[int] = 0,
    top_p: Each[float] = 1.0,
    min_p: Each[float] = 0.0,
    repetition_penalty: Each[float] = 1.0,
    seed: Each[int] = 0,
    stop: Sequence[int | str] | int | str | None = None,
    tokenizer: Tokenizer | Text | None = None,
    max_length: int = 4096,
    progress: bool = False,
    watch: Watch = unwatched,
) -> Generation:
    """Decodes all prompts as one batch.

    Args:
        method: from ``jaxspec.autoregressive``, ``speculative`` or ``mirror``.
        prompts: texts or conversations (with a tokenizer), or token ids.
        max_new_tokens: tokens to add; this and the next six are one number, or one for each prompt.
        temperature: 0, the most likely token; else a token is drawn from logits / temperature.
        top_k: draw from the k most likely tokens; 0: from all.
        top_p: draw from the fewest tokens that hold this probability.
        min_p: draw from tokens of at least this share of the most likely one's probability.
        repetition_penalty: logits of tokens said before are divided by it, or multiplied if negative.
        seed: of the noise; a single one is counted up over the prompts.
        stop: ids and texts, one or several, after which a sequence ends, the text of a special token among them;
            default: the stop tokens that the target came with.
        tokenizer: encodes text prompts and decodes the result; default: the one the target came with. Stop tokens and
            chat template stay the target's, unless it is a ``Text`` with its own.
        max_length: capacity of the cache, prompt and new tokens together.
        progress: show a bar.
        watch: sees every program that a step enqueues (``jaxspec.generation.trace.Timeline``).

    Raises:
        ValueError: no or an empty prompt, a token outside the vocabulary or no whole number, a prompt too long for the
            cache, text or stop strings without a tokenizer, an option out of its range.
        NonFiniteLogits: the target's logits are NaN or infinite; names sequence and position, and has what was
            generated before as ``output``. A ``FloatingPointError``.
    """
    options = Sampling(max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty, seed)
    run = _Run(method, prompts, options, stop, text_of(method, tokenizer), max_length, watch)
    total = int(sum(row.limit for row in run.rows))
    with tqdm(total=total, desc="decode", unit="token", disable=not progress) as bar:
        for added in run:
            bar.update(added)
    return run.output()


def stream(
    method: DecodingMethod,
    prompt: Prompt,
    max_new_tokens: int = 128,
    *,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    stop: Sequence[int | str] | int | str | None = None,
    tokenizer: Tokenizer | Text | None = None,
    max_length: int = 4096,
) -> Iterator[str]:
    """The text of one sequence, piece by piece as it is decoded: whole characters, and nothing of a stop string.

    The arguments are those of ``generate``; all pieces together are its text.

    Raises:
        ValueError: as ``generate``.
        NonFiniteLogits: as ``generate``, once the text before has been yielded.
    """
    options = Sampling(max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty, seed)
    text = text_of(method, tokenizer)
    if text is None or text.decode is None:
        raise ValueError("expected a tokenizer to write text with, got none; pass tokenizer=")
    run, shown = _Run(method, [prompt], options, stop, text, max_length, unwatched), 0
    for _ in run:
        written = run.rows[0].show()
        if len(written) > shown:
            yield written[shown:]
            shown = len(written)


class _Run:
    """One batch from its prompts to its last token; iterating decodes, and says how many tokens each step added."""

    def __init__(
        self,
        method: DecodingMethod,
        prompts: Sequence[Prompt],
        options: Sampling,
        stop: Sequence[int | str] | int | str | None,
        text: Text | None,
        max_length: int,
        watch: Watch,
    ):
        if not len(prompts):
            raise ValueError("expected at least one prompt, got none")
        self.method, self.watch, self.text, self.stats = method, watch, text, Stats()
        ids, arrays = encoded(prompts, text), options.arrays(len(prompts))
        check(ids, method, arrays["max_new_tokens"], whole("max_length", max_length, 1, 2**30))
        self.request, self.capacity = request_of(ids, arrays, method)
        tokens, strings = ends_of(stop, text, method.vocab_size)
        self.ends = sorted(tokens), strings
        decode = text.decode if text else None
        self.rows = [
            Written(int(new), tokens, strings, decode, context_of(decode, row.tolist()) if decode else ())
            for row, new in zip(ids, arrays["max_new_tokens"], strict=True)
        ]
        #: Sequences whose next logits are no numbers.
        self.failed: list[int] = []

    def __iter__(self) -> Iterator[int]:
        start, programs = time.perf_counter(), compiled_programs()
        self.method.agree((self.capacity, self.ends, [leaf.tolist() for leaf in jax.tree.leaves(self.request)]))
        state = jax.block_until_ready(self.method.init(self.request, self.capacity))
        self.stats.prefill_seconds = time.perf_counter() - start
        flying, ahead = deque[StepInfo](), self.method.window + 1
        while active := [row for row in self.rows if row.finish is None]:
            most = max(row.limit - len(row.tokens) for row in active)
            while not flying or (len(flying) < IN_FLIGHT and len(flying) * ahead < most):
                state, info = self.method.step(state, self.watch)
                flying.append(info)
            yield self._collect(flying.popleft().read())
            self.stats.decode_seconds = time.perf_counter() - start - self.stats.prefill_seconds
            self.stats.compiled = compiled_programs() - programs
            if self.failed:
                raise NonFiniteLogits(self._words(), self.output())
        stats = self.stats
        if stats.invalid_drafts:
            warnings.warn(INVALID_DRAFT.format(stats.invalid_drafts, REMEDY), RuntimeWarning, stacklevel=3)
        elif self.method.window and stats.steps >= MANY and not stats.verified:
            warnings.warn(NEVER.format(stats.steps), RuntimeWarning, stacklevel=3)
        if stats.invalid_exits:
            warnings.warn(INVALID_EXIT.format(stats.invalid_exits, REMEDY), RuntimeWarning, stacklevel=3)

    def _collect(self, info: StepInfo) -> int:
        """Adds what one step emitted to every sequence that goes on."""
        stats, before = self.stats, self.stats.new_tokens
        likely = info.log_probabilities
        tokens, values = info.tokens.tolist(), likely.tolist()
        emitted, verified = info.num_emitted.tolist(), info.num_verified.tolist()
        invalid, exits, sound = info.num_invalid.tolist(), info.invalid_exit.tolist(), _leading(np.isfinite(likely))
        reused = [False] * len(emitted) if info.reused is None else info.reused.tolist()
        for index, row in enumerate(self.rows):
            if row.finish is not None:
                continue
            count = min(emitted[index], sound[index])
            added = row.add(tokens[index][:count], values[index][:count])
            stats.new_tokens += added
            stats.steps += added > 0
            stats.accepted += min(verified[index], added)
            stats.verified += min(verified[index], sound[index])
            stats.invalid_drafts += invalid[index]
            stats.invalid_exits += exits[index]
            if row.finish is None and count < emitted[index]:
                self.failed.append(index)
            else:
                stats.needed += row.finish is None
                stats.reused += reused[index] and row.finish is None
        if self.failed:
            for row in self.rows:
                row.finish = row.finish or "error"
        return stats.new_tokens - before

    def output(self) -> Generation:
        """What has been decoded so far."""
        return Generation(
            [row.tokens for row in self.rows],
            None if self.text is None or self.text.decode is None else [row.show() for row in self.rows],
            self.stats,
            [row.finish or "length" for row in self.rows],
            [row.log_probabilities for row in self.rows],
        )

    def _words(self) -> str:
        """Where there is no next token, and why."""
        places = [f"{i} (position {int(self.request.lengths[i]) + len(self.rows[i].tokens)})" for i in self.failed]
        more = f" and {len(places) - 8} more" * (len(places) > 8)
        arrays = self.method.not_numbers()
        remedy = (
            f"NaN or infinity in the target's parameters: {', '.join(arrays[:4])}{', …' * (len(arrays) > 4)}; load or "
            "train them again"
            if arrays
            else "its parameters are numbers, so its activations overflow: load it in bfloat16 or float32 (float16 "
            "overflows above 65504)"
        )
        return (
            f"expected the target's logits to be numbers, got NaN or infinity in sequence {', '.join(places[:8])}{more}"
            f"; {remedy}. What was generated before is in the error's output"
        )


def _leading(good: np.ndarray) -> list[int]:
    """How many places of each row [B, T] are good before the first that is not."""
    if good.all():
        return [good.shape[1]] * len(good)
    return np.cumprod(good, axis=1).sum(axis=1).tolist()
