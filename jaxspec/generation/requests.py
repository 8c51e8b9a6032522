"""From what a user asks for to arrays: prompts encoded and padded, options checked and spread over the batch."""

import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer

from jaxspec.core.arguments import whole_numbers
from jaxspec.methods.protocol import DecodingMethod
from jaxspec.text import Text
from jaxspec.verify.sampling import SamplingArrays
from jaxspec.verify.seen import Seen
from jaxspec.verify.target import Request

Number = TypeVar("Number")
#: One for all sequences, or one for each.
Each: TypeAlias = Number | Sequence[Number]
#: Text, token ids, or messages of a conversation.
Prompt = str | Sequence[int] | Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; each one number for all sequences, or one for each.

    Attributes:
        max_new_tokens: tokens to add.
        temperature: 0, the most likely token; else logits are divided by it and a token is drawn.
        top_k: draw from the k most likely tokens; 0: from all.
        top_p: draw from the fewest tokens that hold this probability; 1: from all.
        min_p: draw from tokens of at least this share of the most likely one's probability; 0: from all.
        repetition_penalty: logits of tokens that were said before are divided by it, or multiplied if negative; 1: no.
        seed: of the noise. A single one is counted up over the sequences, so that equal prompts differ.
    """

    max_new_tokens: Each[int] = 128
    temperature: Each[float] = 0.0
    top_k: Each[int] = 0
    top_p: Each[float] = 1.0
    min_p: Each[float] = 0.0
    repetition_penalty: Each[float] = 1.0
    seed: Each[int] = 0

    def arrays(self, batch: int) -> dict[str, np.ndarray]:
        """Every option as an array [B].

        Raises:
            ValueError: a number out of its range, a fraction or a flag for a count, or another number of them than of
                sequences.
        """
        found = {name: _spread(name, getattr(self, name), batch) for name in RANGES}
        for name, (low, high, words) in RANGES.items():
            values = found[name]
            if not np.all((values >= low) & (values <= high)):
                raise ValueError(f"expected {name} {words}, got {getattr(self, name)}")
        if np.any((found["temperature"] > 0) & (found["temperature"] < 1e-6)):
            raise ValueError(f"expected temperature 0 or >= 1e-6, got {self.temperature}")
        if np.any(found["repetition_penalty"] < 1e-6):
            raise ValueError(f"expected repetition_penalty > 0 (1e-6 at least), got {self.repetition_penalty}")
        found["top_p"] = np.maximum(found["top_p"], 1e-9)  # below float32 nothing would be kept
        if np.ndim(self.seed) == 0:
            found["seed"] = (found["seed"].astype(np.int64) + np.arange(batch)) % 2**32
        return found


_INF = float("inf")
#: Sampling that count something.
WHOLE = ("max_new_tokens", "top_k", "seed")
#: Lowest and highest value of every option, and both in words.
RANGES: dict[str, tuple[float, float, str]] = {
    "max_new_tokens": (1, _INF, ">= 1"),
    "temperature": (0, 1e6, ">= 0"),
    "top_k": (0, 2**31 - 1, ">= 0 (0: all tokens) and < 2^31"),
    "top_p": (1e-300, 1, "in (0, 1]"),
    "min_p": (0, 1, "in [0, 1]"),
    "repetition_penalty": (0, 1e6, "> 0"),
    "seed": (0, 2**32 - 1, "in [0, 2^32)"),
}


def _spread(name: str, value: Any, batch: int) -> np.ndarray:
    values = whole_numbers(name, value) if name in WHOLE else _reals(name, value)
    if values.ndim > 1 or (values.ndim == 1 and len(values) != batch):
        raise ValueError(f"expected one {name} or {batch}, one for each prompt, got shape {values.shape}")
    return np.broadcast_to(values, (batch,))


def _reals(name: str, value: Any) -> np.ndarray:
    """Numbers as they are, of any shape; flags, text and None are none."""
    values = np.asarray(value)
    if values.dtype.kind not in "iuf" and not jnp.issubdtype(values.dtype, jnp.floating):
        raise ValueError(f"expected {name} to be numbers, got {value!r:.80}")
    return values.astype(np.float64)


def encoded(prompts: Sequence[Prompt], text: Text | None) -> list[np.ndarray]:
    """Token ids of every prompt.

    Raises:
        ValueError: a single prompt instead of a list of them; text or messages without a tokenizer; ids that are not
            whole numbers.
    """
    if isinstance(prompts, str) or any(isinstance(prompt, dict) or _single(prompt) for prompt in prompts):
        raise ValueError("expected a list of prompts, got a single one; pass [prompt]")
    return [_encoded(prompt, text, index) for index, prompt in enumerate(prompts)]


def _single(value: Any) -> bool:
    """Whether a value is one number, of Python or an array's."""
    return isinstance(value, numbers.Number) or getattr(value, "shape", None) == ()


def _encoded(prompt: Prompt, text: Text | None, index: int) -> np.ndarray:
    is_chat = not isinstance(prompt, str) and len(prompt) and isinstance(prompt[0], dict)
    if not isinstance(prompt, str) and not is_chat:
        return whole_numbers(f"token ids of prompt {index}", prompt)
    if text is None or text.encode is None:
        raise ValueError("expected token ids, got text; pass tokenizer= or encode the prompts")
    return text.encode(prompt) if isinstance(prompt, str) else text.chat(prompt)  # type: ignore[arg-type]


def text_of(method: DecodingMethod, tokenizer: Tokenizer | Text | None) -> Text | None:
    """How to read and write: the tokenizer passed, with the target's stop tokens and chat template unless it has own.

    Without one: what the target came with.
    """
    if tokenizer is None:
        return method.text
    text = tokenizer if isinstance(tokenizer, Text) else Text.of(tokenizer)
    return text if method.text is None else text.completed(method.text)


def ends_of(stop: Any, text: Text | None, vocabulary: int) -> tuple[frozenset[int], tuple[str, ...]]:
    """Ids and texts that end a sequence; the text of a special token, which decoding leaves out, ends it by its id.

    Args:
        stop: an id, a text, or several of either; None: the stop tokens of ``text``.
        text: tokenizer and stop tokens.
        vocabulary: tokens that ids are taken from.

    Raises:
        ValueError: an id that is not a whole number or outside the vocabulary; an empty text, one without a tokenizer,
            or one that holds a special token beside other characters.
    """
    if stop is None:
        return frozenset(text.stop if text else ()), ()
    tokens, strings = stops(stop, vocabulary)
    if strings and (text is None or text.decode is None) or "" in strings:
        raise ValueError(f"expected stop strings that are not empty, with a tokenizer, got {strings}")
    special = text.special_ids if text else {}
    for end in strings:
        if end not in special and (inside := [name for name in special if name and name in end]):
            raise ValueError(
                f"expected stop strings without special tokens, which the text leaves out, got {end!r}; pass "
                f"{inside[0]!r} alone"
            )
    return tokens | {special[end] for end in strings if end in special}, strings


def check(ids: list[np.ndarray], method: DecodingMethod, max_new_tokens: np.ndarray, max_length: int) -> None:
    """Checks prompts before any work starts.

    Raises:
        ValueError: no or an empty prompt, a token outside the vocabulary, a prompt too long.
    """
    limit = min(max_length, method.max_length or max_length)
    for index, (row, new) in enumerate(zip(ids, max_new_tokens, strict=True)):
        if row.ndim != 1 or not len(row):
            raise ValueError(f"prompt {index}: expected at least one token, got shape {row.shape}")
        check_ids(row, method.vocab_size, f"prompt {index}: ")
        if len(row) + new > limit:
            raise ValueError(
                f"prompt {index}: expected prompt and new tokens to fit the cache of {limit}, got {len(row)} + "
                f"{new}; shorten the prompt or raise max_length"
            )


def check_ids(ids: np.ndarray, vocabulary: int, where: str = "") -> None:
    """Token ids [T], in whatever type they came, of a vocabulary.

    Raises:
        ValueError: one outside it; names the first.
    """
    outside = np.flatnonzero((ids < 0) | (ids >= vocabulary))
    if len(outside):
        raise ValueError(
            f"{where}expected token ids in [0, {vocabulary}), got {ids[outside[0]]} at place {outside[0]}; use the "
            "target's own tokenizer"
        )


def stops(ends: Any, vocabulary: int) -> tuple[frozenset[int], tuple[str, ...]]:
    """Stop tokens and stop strings of what a user asked for: one of either, or several.

    Raises:
        ValueError: an id that is not a whole number, or outside the vocabulary.
    """
    ends = [ends] if isinstance(ends, str) or _single(ends) else list(ends)
    ids = whole_numbers("stop tokens", [end for end in ends if not isinstance(end, str)])
    check_ids(ids, vocabulary, "stop: ")
    return frozenset(int(end) for end in ids), tuple(end for end in ends if isinstance(end, str))


def bucket(length: int) -> int:
    """A length that prompts of like length share, and with it one compiled program: multiples of 32, then of 256."""
    step = 32 if length <= 256 else 256
    return -(-length // step) * step


def request_of(ids: list[np.ndarray], options: dict[str, np.ndarray], method: DecodingMethod) -> tuple[Request, int]:
    """The batch as arrays, padded to a bucket and the method's groups, and the cache rows that decoding can touch."""
    rows = ids + [ids[-1]] * (-len(ids) % method.groups)
    spread = {name: np.pad(values, (0, len(rows) - len(ids)), "edge") for name, values in options.items()}
    lengths = np.asarray([len(row) for row in rows], np.int32)
    size = bucket(int(lengths.max()))
    tokens = np.stack([np.pad(row, (0, size - len(row))) for row in rows])
    new = spread["max_new_tokens"].astype(np.int32)
    capacity = bucket(size + int(new.max()) + 2 * (method.window + 1))
    sampling, seen = _sampling(spread), None
    if np.any(spread["repetition_penalty"] != 1):
        seen = np.zeros((len(rows), method.vocab_size), bool)
        for index, row in enumerate(rows):
            seen[index, row] = True
    return Request(tokens.astype(np.int32), lengths, new, sampling, Seen(seen)), capacity


def _sampling(options: dict[str, np.ndarray]) -> SamplingArrays | None:
    """How tokens are drawn, traced; None for a batch that draws nothing, which has smaller programs of its own."""
    if not np.any(options["temperature"]) and np.all(options["repetition_penalty"] == 1):
        return None
    kinds: dict[str, Any] = dict.fromkeys(SamplingArrays._fields, np.float32) | {"seed": np.uint32, "top_k": np.int32}
    fields: list[Any] = [options[name].astype(kind) for name, kind in kinds.items()]
    return SamplingArrays(*fields)
