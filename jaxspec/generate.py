"""The host loop: prompts in, tokens and statistics out, whatever the decoding method."""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm

from jaxspec.decoding import DecodingMethod, StepInfo, Watch, unwatched
from jaxspec.tokenizer import encode

#: Prompts are padded to a multiple of this many tokens, so that prompts of like length share one compiled program.
BUCKET = 32
#: Steps enqueued before the oldest one's tokens are read.
IN_FLIGHT = 3


@dataclass
class Stats:
    """Counts of one ``generate`` call, summed over its sequences.

    Attributes:
        steps: (sequence, step) pairs that added tokens.
        new_tokens: tokens added.
        accepted: drafted tokens confirmed, the extra token of a step excluded.
        needed: steps after which the sequence needed another window.
        reused: those of ``needed`` whose next window had been rolled out ahead.
        prefill_seconds: prompts, and the first window.
        decode_seconds: everything after that.
    """

    steps: int = 0
    new_tokens: int = 0
    accepted: int = 0
    needed: int = 0
    reused: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0

    @property
    def accepted_length(self) -> float:
        """Mean num_accepted per step."""
        return self.accepted / max(self.steps, 1)

    @property
    def reuse_rate(self) -> float:
        """Share of the steps that need a next window in which it was rolled out before the verdict."""
        return self.reused / max(self.needed, 1)

    @property
    def tokens_per_second(self) -> float:
        """New tokens over the whole time of the call, prefill included."""
        return self.new_tokens / max(self.prefill_seconds + self.decode_seconds, 1e-9)


@dataclass
class Generation:
    """Result of ``generate``: per prompt the new token ids, their text (with a tokenizer), and the statistics."""

    tokens: list[list[int]]
    text: list[str] | None
    stats: Stats = field(default_factory=Stats)


def generate(
    method: DecodingMethod,
    prompts: Sequence[str] | Sequence[Sequence[int]],
    max_new_tokens: int = 128,
    *,
    temperature: float = 0.0,
    stop: Sequence[int] = (),
    tokenizer: Tokenizer | None = None,
    max_length: int = 4096,
    progress: bool = False,
    watch: Watch = unwatched,
) -> Generation:
    """Decodes all prompts as one batch.

    Args:
        method: from ``jaxspec.autoregressive``, ``speculative`` or ``mirror``.
        prompts: texts (with a ``tokenizer``) or token ids.
        max_new_tokens: tokens to add to each.
        temperature: 0, the target's most likely token.
        stop: token ids after which a sequence ends; the stop token is kept.
        tokenizer: encodes text prompts and decodes the result.
        max_length: capacity of the cache, prompt and new tokens together.
        progress: show a bar.
        watch: sees every program that a step enqueues (``jaxspec.trace.Timeline``).

    Raises:
        ValueError: no or an empty prompt, a token outside the vocabulary, a prompt too long for the cache, text without
            a tokenizer, a temperature other than 0.
    """
    if temperature != 0:
        raise ValueError(f"expected temperature 0 (greedy decoding), got {temperature}")
    ids = _encode(prompts, tokenizer)
    _check(ids, method, max_new_tokens, max_length)
    tokens, lengths, capacity = _padded(ids, max_new_tokens, method.window)
    stats, start = Stats(), time.perf_counter()
    state = jax.block_until_ready(method.init(tokens, lengths, max_new_tokens, capacity))
    stats.prefill_seconds = time.perf_counter() - start
    new = _decode(method, state, len(ids), max_new_tokens, frozenset(stop), stats, progress, watch)
    stats.decode_seconds = time.perf_counter() - start - stats.prefill_seconds
    return Generation(new, None if tokenizer is None else [tokenizer.decode(row) for row in new], stats)


def _decode(
    method: DecodingMethod,
    state: Any,
    batch: int,
    limit: int,
    stop: frozenset,
    stats: Stats,
    progress: bool,
    watch: Watch,
) -> list[list[int]]:
    new: list[list[int]] = [[] for _ in range(batch)]
    done, flying = [False] * batch, deque[StepInfo]()
    with tqdm(total=batch * limit, desc="decode", unit="token", disable=not progress) as bar:
        while not all(done):
            slowest = min(len(row) for row, ended in zip(new, done, strict=True) if not ended)
            while not flying or (len(flying) < IN_FLIGHT and slowest + len(flying) * (method.window + 1) < limit):
                state, info = method.step(state, watch)
                flying.append(info)
            before = stats.new_tokens
            _collect(jax.device_get(flying.popleft()), new, done, limit, stop, stats)
            bar.update(stats.new_tokens - before)
    return new


def _collect(info: StepInfo, new: list[list[int]], done: list[bool], limit: int, stop: frozenset, stats: Stats) -> None:
    """Adds what one step emitted; ends sequences at the limit or after a stop token."""
    for index, row in enumerate(new):
        if done[index]:
            continue
        emitted = info.tokens[index, : info.num_emitted[index]].tolist()
        if stop and (ends := [place for place, token in enumerate(emitted) if token in stop]):
            emitted, done[index] = emitted[: ends[0] + 1], True
        row.extend(emitted)
        done[index] |= len(row) >= limit
        stats.steps += 1
        stats.new_tokens += len(emitted)
        stats.accepted += int(info.num_accepted[index])
        stats.needed += not done[index]
        stats.reused += bool(info.reused[index]) and not done[index]


def _encode(prompts: Sequence[Any], tokenizer: Tokenizer | None) -> list[np.ndarray]:
    if any(isinstance(prompt, str) for prompt in prompts) and tokenizer is None:
        raise ValueError("expected token ids, got text; pass tokenizer= or encode the prompts")
    return [encode(tokenizer, p) if tokenizer and isinstance(p, str) else np.asarray(p, np.int32) for p in prompts]


def _check(ids: list[np.ndarray], method: DecodingMethod, max_new_tokens: int, max_length: int) -> None:
    if not ids:
        raise ValueError("expected at least one prompt, got none")
    if max_new_tokens < 1:
        raise ValueError(f"expected max_new_tokens >= 1, got {max_new_tokens}")
    for index, row in enumerate(ids):
        if row.ndim != 1 or not len(row):
            raise ValueError(f"prompt {index}: expected at least one token, got shape {row.shape}")
        if row.min() < 0 or row.max() >= method.vocab_size:
            raise ValueError(
                f"prompt {index}: expected token ids in [0, {method.vocab_size}), got {row.min()}..{row.max()}"
            )
        if len(row) + max_new_tokens > max_length:
            raise ValueError(
                f"prompt {index}: expected prompt and new tokens to fit the cache of {max_length}, got {len(row)} + "
                f"{max_new_tokens}; shorten the prompt or raise max_length"
            )


def _padded(ids: list[np.ndarray], max_new_tokens: int, window: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Prompts [B, P] padded on the right to a bucket, their lengths, and the cache rows that decoding can touch."""
    lengths = np.asarray([len(row) for row in ids], np.int32)
    size = -(-int(lengths.max()) // BUCKET) * BUCKET
    tokens = np.stack([np.pad(row, (0, size - len(row))) for row in ids])
    capacity = -(-(size + max_new_tokens + 2 * (window + 1)) // BUCKET) * BUCKET
    return tokens, lengths, capacity
