"""The host loop: steps are enqueued ahead, and their tokens are added to the unfinished sequences."""

import time
import warnings
from collections import deque
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from jaxspec.core.arguments import whole
from jaxspec.devices.compilations import compiled_programs
from jaxspec.generation._results import Generation, NonFiniteLogits, Stats
from jaxspec.generation.requests import Prompt, Stop, encoded, ends_of, request_of
from jaxspec.generation.sampling import Each, Sampling
from jaxspec.methods.protocol import DecodingMethod, Watch, unwatched
from jaxspec.text import Text
from jaxspec.text.stopping import Written, context_of
from jaxspec.verify.info import StepInfo, unpack_record

IN_FLIGHT = 3
"""Steps that are enqueued before the tokens of the oldest are read."""
#: Steps without an accepted token after which a warning is due.
MANY = 64
NEVER = (
    "no drafted token was accepted in {} steps: plain decoding would be faster; is the draft trained on text like the "
    "target's, with the same tokenizer (ids in the same order), and are its weights the trained ones?"
)
INVALID_DRAFT = (
    "the draft's logits were NaN or infinite at {} of its tokens, none of which was accepted: the text is the target's "
    "all the same, but slower; {}"
)
INVALID_EXIT = "the exit's logits were NaN or infinite in {} steps, which rolled out useless branches; {}"
RELOAD = "load it in bfloat16 or float32 (float16 overflows above 65504)"
REMEDY = f"look for NaN in its weights, or {RELOAD}"


class DecodingRun:
    """One batch from its prompts to its last token.

    Attributes:
        rows: the sequences of the prompts.
        stats: counts so far.
    """

    def __init__(
        self,
        method: DecodingMethod,
        prompts: Sequence[Prompt],
        max_new_tokens: Each[int],
        sampling: Sampling,
        stop: Stop | None,
        text: Text | None,
        max_length: int,
    ):
        self.method, self.text, self.stats = method, text, Stats()
        ids, limit = encoded(prompts, text), whole("max_length", max_length, 1, 2**30)
        self._request, self._capacity = request_of(ids, method, max_new_tokens, sampling, limit)
        self._stop_tokens, self._stop_strings = ends_of(stop, text, method.vocab_size)
        self.rows = [self._row(*each) for each in zip(ids, self._request.max_new_tokens[: len(ids)], strict=True)]
        self._failed: list[int] = []

    def _row(self, ids: np.ndarray, limit: int) -> Written:
        decode = self.text.decode if self.text else None
        context = context_of(decode, ids.tolist()) if decode else ()
        return Written(int(limit), self._stop_tokens, self._stop_strings, decode, context)

    def steps(self, watch: Watch = unwatched) -> Iterator[int]:
        """Decode to the end; yield the number of tokens that each step added.

        Raises:
            NonFiniteLogits: the target's logits are NaN or infinite.
        """
        start, programs = time.perf_counter(), compiled_programs()
        settings = [leaf.tolist() for leaf in jax.tree.leaves(self._request)]
        self.method.check_peers((self._capacity, (sorted(self._stop_tokens), self._stop_strings), settings))
        state = jax.block_until_ready(self.method.init(self._request, self._capacity))
        self.stats.prefill_seconds = time.perf_counter() - start
        enqueued, step_tokens = deque[StepInfo](), self.method.window + 1
        while active := [row for row in self.rows if row.finish is None]:
            missing = max(row.limit - len(row.tokens) for row in active)
            while not enqueued or (len(enqueued) < IN_FLIGHT and len(enqueued) * step_tokens < missing):
                state, info = self.method.step(state, watch)
                enqueued.append(info)
            yield self._collect(enqueued.popleft().read())
            self.stats.decode_seconds = time.perf_counter() - start - self.stats.prefill_seconds
            self.stats.compiled = compiled_programs() - programs
            if self._failed:
                raise NonFiniteLogits(self._failure(), self.output())
        self._warn()

    def _warn(self) -> None:
        """Warn at the line that called ``generate``."""
        stats = self.stats
        if stats.invalid_drafts:
            warnings.warn(INVALID_DRAFT.format(stats.invalid_drafts, REMEDY), RuntimeWarning, stacklevel=4)
        elif self.method.window and self.method.trained and stats.steps >= MANY and not stats.verified:
            warnings.warn(NEVER.format(stats.steps), RuntimeWarning, stacklevel=4)
        if stats.invalid_exits:
            warnings.warn(INVALID_EXIT.format(stats.invalid_exits, REMEDY), RuntimeWarning, stacklevel=4)

    def _collect(self, info: StepInfo) -> int:
        """Add the tokens of one step to every unfinished sequence; return how many were added."""
        stats, before = self.stats, self.stats.new_tokens
        record = unpack_record(np.asarray(info.packed))
        tokens, log_probabilities, emitted, verified, invalid, exits = (field.tolist() for field in record)
        # Tokens of every row before the first that is not finite.
        valid = np.cumprod(np.isfinite(record.log_probabilities), axis=1).sum(axis=1).tolist()
        reused = [False] * len(emitted) if info.reused is None else info.reused.tolist()
        for index, row in enumerate(self.rows):
            if row.finish is not None:
                continue
            count = min(emitted[index], valid[index])
            added = row.add(tokens[index][:count], log_probabilities[index][:count])
            stats.new_tokens += added
            stats.steps += added > 0
            stats.accepted += min(verified[index], added)
            stats.verified += min(verified[index], valid[index])
            stats.invalid_drafts += invalid[index]
            stats.invalid_exits += exits[index]
            if row.finish is None and count < emitted[index]:
                self._failed.append(index)
            else:
                stats.needed += row.finish is None
                stats.reused += reused[index] and row.finish is None
        if self._failed:
            for row in self.rows:
                row.finish = row.finish or "error"
        return stats.new_tokens - before

    def output(self) -> Generation:
        """Return the result so far."""
        return Generation(
            [row.tokens for row in self.rows],
            None if self.text is None or self.text.decode is None else [row.show() for row in self.rows],
            self.stats,
            [row.finish or "length" for row in self.rows],
            [row.log_probabilities for row in self.rows],
        )

    def _failure(self) -> str:
        """Return the message of ``NonFiniteLogits``: sequences, positions, and the likely cause."""
        positions = [int(self._request.lengths[i]) + len(self.rows[i].tokens) for i in self._failed]
        failed = [f"{index} (position {position})" for index, position in zip(self._failed, positions, strict=True)]
        more = f" and {len(failed) - 8} more" * (len(failed) > 8)
        arrays = self.method.not_numbers()
        remedy = (
            f"NaN or infinity in the target's parameters: {', '.join(arrays[:4])}{', …' * (len(arrays) > 4)}; load or "
            "train them again"
            if arrays
            else f"its parameters are numbers, so its activations overflow: {RELOAD}"
        )
        return (
            f"expected the target's logits to be numbers, got NaN or infinity in sequence {', '.join(failed[:8])}{more}"
            f"; {remedy}. The result so far is in the error's output"
        )
