"""From a user's arguments to arrays: prompts encoded and padded, settings checked and repeated over the batch."""

import numbers
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from tokenizers import Tokenizer

from jaxspec.core.arguments import whole_numbers
from jaxspec.generation.sampling import Each, Sampling, per_prompt
from jaxspec.methods.protocol import DecodingMethod
from jaxspec.text import Text
from jaxspec.verify.sampling import SamplingArrays
from jaxspec.verify.seen import Seen
from jaxspec.verify.target import Request

#: Text, token ids, or messages of a conversation.
Prompt = str | Sequence[int] | Sequence[dict[str, Any]]
#: Token ids and texts that end a sequence.
Stop: TypeAlias = Sequence[int | str] | int | str

#: Rows by which a large cache grows; smaller ones double.
LARGE = 2048


def encoded(prompts: Sequence[Prompt], text: Text | None) -> list[np.ndarray]:
    """Return the token ids of every prompt.

    Raises:
        ValueError: a single prompt instead of a list; text or messages without a tokenizer; ids not whole numbers.
    """
    if isinstance(prompts, str) or any(isinstance(prompt, dict) or _single(prompt) for prompt in prompts):
        raise ValueError("expected a list of prompts, got a single one; pass [prompt]")
    return [_encoded(prompt, text, index) for index, prompt in enumerate(prompts)]


def _single(value: Any) -> bool:
    """Return whether a value is one number: Python's, or an array without axes."""
    return isinstance(value, numbers.Number) or getattr(value, "shape", None) == ()


def _encoded(prompt: Prompt, text: Text | None, index: int) -> np.ndarray:
    is_chat = not isinstance(prompt, str) and len(prompt) and isinstance(prompt[0], dict)
    if not isinstance(prompt, str) and not is_chat:
        return whole_numbers(f"token ids of prompt {index}", prompt)
    if text is None or text.encode is None:
        raise ValueError("expected token ids, got text; pass tokenizer= or encode the prompts")
    return text.encode(prompt) if isinstance(prompt, str) else text.chat(prompt)  # type: ignore[arg-type]


def text_of(method: DecodingMethod, tokenizer: Tokenizer | Text | None) -> Text | None:
    """Return the tokenizer to use: the one passed, otherwise the target's.

    One passed without stop tokens or chat template of its own gets the target's.
    """
    if tokenizer is None:
        return method.text
    text = tokenizer if isinstance(tokenizer, Text) else Text.of(tokenizer)
    return text if method.text is None else text.completed(method.text)


def ends_of(stop: Stop | None, text: Text | None, vocabulary: int) -> tuple[frozenset[int], tuple[str, ...]]:
    """Return the ids and texts that end a sequence; the text of a special token, which decoding omits, becomes its id.

    Args:
        stop: an id, a text, or several of either; None: the stop tokens of ``text``.
        text: tokenizer and stop tokens.
        vocabulary: number of token ids.

    Raises:
        ValueError: an id that is not a whole number or outside the vocabulary; an empty text, one without a tokenizer,
            or one with a special token among other characters.
    """
    if stop is None:
        return frozenset(text.stop if text else ()), ()
    ends: list[Any] = [stop] if isinstance(stop, str) or _single(stop) else list(stop)  # type: ignore[arg-type]
    ids = whole_numbers("stop tokens", [end for end in ends if not isinstance(end, str)])
    check_ids(ids, vocabulary, "stop: ")
    strings = tuple(end for end in ends if isinstance(end, str))
    if strings and (text is None or text.decode is None) or "" in strings:
        raise ValueError(f"expected stop strings that are not empty, with a tokenizer, got {strings}")
    special = text.special_ids if text else {}
    for end in strings:
        if end not in special and (inside := [name for name in special if name and name in end]):
            raise ValueError(
                f"expected stop strings without special tokens, which the text omits, got {end!r}; pass "
                f"{inside[0]!r} alone"
            )
    return frozenset([*map(int, ids), *(special[end] for end in strings if end in special)]), strings


def check_ids(ids: np.ndarray, vocabulary: int, where: str = "") -> None:
    """Check token ids [T] of any integer type.

    Raises:
        ValueError: an id outside the vocabulary; names the first.
    """
    outside = np.flatnonzero((ids < 0) | (ids >= vocabulary))
    if len(outside):
        raise ValueError(
            f"{where}expected token ids in [0, {vocabulary}), got {ids[outside[0]]} at position {outside[0]}; use the "
            "target's own tokenizer"
        )


def bucket(length: int) -> int:
    """Return the padded length, a multiple of 32, or of 256 above 256; prompts of one bucket share a program."""
    step = 32 if length <= 256 else 256
    return -(-length // step) * step


def cache_rows(needed: int) -> int:
    """Return the rows of a cache: a power of two from 64 on, or a multiple of 2,048, so that texts share programs.

    A step reads only rows in use (``models.attention``): those to spare cost memory and no time.
    """
    return max(64, 1 << (needed - 1).bit_length()) if needed <= LARGE else -(-needed // LARGE) * LARGE


def request_of(
    ids: Sequence[np.ndarray],
    method: DecodingMethod,
    max_new_tokens: Each[int],
    sampling: Sampling = Sampling(),
    max_length: int = 2**30,
) -> tuple[Request, int]:
    """Return the batch as arrays, and the number of cache rows that decoding can use.

    Prompts are padded to a bucket; the last one is repeated until the batch fills whole groups of the method.

    Raises:
        ValueError: no or an empty prompt, an unknown token, a prompt too long for the cache, too few or many settings.
    """
    count = len(ids)
    new, settings = per_prompt("max_new_tokens", max_new_tokens, count), sampling.arrays(count)
    _check_prompts(ids, method, new, max_length)
    filling = -count % method.groups
    rows = [*ids, *[ids[-1]] * filling]
    new = np.pad(new, (0, filling), "edge").astype(np.int32)
    settings = {name: np.pad(values, (0, filling), "edge") for name, values in settings.items()}
    lengths = np.asarray([len(row) for row in rows], np.int32)
    size = bucket(int(lengths.max()))
    tokens = np.stack([np.pad(row, (0, size - len(row))) for row in rows]).astype(np.int32)
    capacity = cache_rows(size + int(new.max()) + 2 * (method.window + 1))
    return Request(tokens, lengths, new, _traced(settings), _seen(rows, settings, method.vocab_size)), capacity


NO_MORE = "the target has no more positions (jaxspec.models.for_long_texts has, of a model with LongRoPE)"


def _check_prompts(ids: Sequence[np.ndarray], method: DecodingMethod, new: np.ndarray, max_length: int) -> None:
    if not len(ids):
        raise ValueError("expected at least one prompt, got none")
    limit = min(max_length, method.max_length or max_length)
    for index, (row, more) in enumerate(zip(ids, new, strict=True)):
        if row.ndim != 1 or not len(row):
            raise ValueError(f"prompt {index}: expected at least one token, got shape {row.shape}")
        check_ids(row, method.vocab_size, f"prompt {index}: ")
        if len(row) + more > limit:
            other = " or raise max_length" if limit == max_length else f": {NO_MORE}"
            raise ValueError(
                f"prompt {index}: expected prompt and new tokens to fit the cache of {limit}, got {len(row)} + "
                f"{more}; shorten the prompt{other}"
            )


def _traced(settings: dict[str, np.ndarray]) -> SamplingArrays | None:
    """Return the settings as traced types; None for a greedy batch, which has smaller programs of its own."""
    if not np.any(settings["temperature"]) and np.all(settings["repetition_penalty"] == 1):
        return None
    dtypes: dict[str, Any] = dict.fromkeys(SamplingArrays._fields, np.float32) | {"seed": np.uint32, "top_k": np.int32}
    fields: dict[str, Any] = {name: settings[name].astype(dtype) for name, dtype in dtypes.items()}
    return SamplingArrays(**fields)


def _seen(rows: list[np.ndarray], settings: dict[str, np.ndarray], vocabulary: int) -> Seen:
    """Return which tokens each prompt holds: marks [B, V]; none where no repetition is penalised."""
    if np.all(settings["repetition_penalty"] == 1):
        return Seen()
    seen = np.zeros((len(rows), vocabulary), bool)
    for index, row in enumerate(rows):
        seen[index, row] = True
    return Seen(seen)
