"""From what a user asks for to arrays: prompts encoded and padded, options checked and spread over the batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import numpy as np
from tokenizers import Tokenizer

from jaxspec.decoding import DecodingMethod, Request
from jaxspec.sampling import Sampling
from jaxspec.text import Text

Number = TypeVar("Number")
#: One for all sequences, or one for each.
Each: TypeAlias = Number | Sequence[Number]
#: Text, token ids, or messages of a conversation.
Prompt = str | Sequence[int] | Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Options:
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
            ValueError: a number out of its range, or as many of them as there are no sequences.
        """
        found = {name: _spread(name, getattr(self, name), batch) for name in RANGES}
        for name, (low, high, words) in RANGES.items():
            values = found[name]
            if not np.all((values >= low) & (values <= high)):
                raise ValueError(f"expected {name} {words}, got {getattr(self, name)}")
        if np.any((found["temperature"] > 0) & (found["temperature"] < 1e-6)):
            raise ValueError(f"expected temperature 0 or >= 1e-6, got {self.temperature}")
        if np.any(found["repetition_penalty"] <= 0):
            raise ValueError(f"expected repetition_penalty > 0, got {self.repetition_penalty}")
        if np.ndim(self.seed) == 0:
            found["seed"] = (found["seed"] + np.arange(batch)) % 2**32
        return found


_INF = float("inf")
#: Options that count something.
WHOLE = ("max_new_tokens", "top_k", "seed")
#: Lowest and highest value of every option, and both in words.
RANGES: dict[str, tuple[float, float, str]] = {
    "max_new_tokens": (1, _INF, ">= 1"),
    "temperature": (0, 1e6, ">= 0"),
    "top_k": (0, _INF, ">= 0 (0: all tokens)"),
    "top_p": (1e-9, 1, "in (0, 1]"),
    "min_p": (0, 1, "in [0, 1]"),
    "repetition_penalty": (0, 1e6, "> 0"),
    "seed": (0, 2**32 - 1, "in [0, 2^32)"),
}


def _spread(name: str, value: Any, batch: int) -> np.ndarray:
    values = np.asarray(value)
    if values.ndim > 1 or (values.ndim == 1 and len(values) != batch):
        raise ValueError(f"expected one {name} or {batch}, one for each prompt, got shape {values.shape}")
    if name in WHOLE and np.any(values != np.floor(values)):
        raise ValueError(f"expected {name} to be whole numbers, got {value}")
    return np.broadcast_to(values, (batch,))


def encoded(prompts: Sequence[Prompt], text: Text | None) -> list[np.ndarray]:
    """Token ids of every prompt.

    Raises:
        ValueError: a single prompt instead of a list of them; text or messages without a tokenizer.
    """
    if isinstance(prompts, str) or any(isinstance(prompt, dict) for prompt in prompts):
        raise ValueError("expected a list of prompts, got a single one; pass [prompt]")
    return [_encoded(prompt, text) for prompt in prompts]


def _encoded(prompt: Prompt, text: Text | None) -> np.ndarray:
    is_chat = not isinstance(prompt, str) and len(prompt) and isinstance(prompt[0], dict)
    if not isinstance(prompt, str) and not is_chat:
        return np.asarray(prompt, np.int32)
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


def ends_of(stop: Sequence[int | str] | str | None, text: Text | None) -> tuple[frozenset[int], tuple[str, ...]]:
    """Ids and texts that end a sequence; the text of a special token, which decoding leaves out, ends it by its id.

    Raises:
        ValueError: an empty text, one without a tokenizer, or one that holds a special token beside other characters.
    """
    default = text.stop if text else ()
    ends = default if stop is None else [stop] if isinstance(stop, str) else stop
    strings = tuple(end for end in ends if isinstance(end, str))
    if strings and (text is None or text.decode is None) or "" in strings:
        raise ValueError(f"expected stop strings that are not empty, with a tokenizer, got {strings}")
    special = text.special_ids if text else {}
    for end in strings:
        if end not in special and (inside := [name for name in special if name and name in end]):
            raise ValueError(
                f"expected stop strings without special tokens, which the text leaves out, got {end!r}; pass "
                f"{inside[0]!r} alone"
            )
    tokens = [int(end) for end in ends if not isinstance(end, str)]
    return frozenset([*tokens, *(special[end] for end in strings if end in special)]), strings


def check(ids: list[np.ndarray], method: DecodingMethod, max_new_tokens: np.ndarray, max_length: int) -> None:
    """Checks prompts before any work starts.

    Raises:
        ValueError: no or an empty prompt, a token outside the vocabulary, a prompt too long.
    """
    limit = min(max_length, method.max_length or max_length)
    for index, (row, new) in enumerate(zip(ids, max_new_tokens, strict=True)):
        if row.ndim != 1 or not len(row):
            raise ValueError(f"prompt {index}: expected at least one token, got shape {row.shape}")
        if row.min() < 0 or row.max() >= method.vocab_size:
            raise ValueError(
                f"prompt {index}: expected token ids in [0, {method.vocab_size}), got {row.min()}..{row.max()}"
            )
        if len(row) + new > limit:
            raise ValueError(
                f"prompt {index}: expected prompt and new tokens to fit the cache of {limit}, got {len(row)} + "
                f"{new}; shorten the prompt or raise max_length"
            )


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
    return Request(tokens.astype(np.int32), lengths, new, sampling, seen), capacity


def _sampling(options: dict[str, np.ndarray]) -> Sampling | None:
    """How tokens are drawn, traced; None for a batch that draws nothing, which has smaller programs of its own."""
    if not np.any(options["temperature"]) and np.all(options["repetition_penalty"] == 1):
        return None
    kinds: dict[str, Any] = dict.fromkeys(Sampling._fields, np.float32) | {"seed": np.uint32, "top_k": np.int32}
    fields: list[Any] = [options[name].astype(kind) for name, kind in kinds.items()]
    return Sampling(*fields)
