"""How tokens are drawn, in the user's arguments: one number for the batch, or one for each prompt."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeAlias, TypeVar

import jax.numpy as jnp
import numpy as np

from jaxspec.core.arguments import whole_numbers

Number = TypeVar("Number")
#: One number for all prompts, or one for each.
Each: TypeAlias = Number | Sequence[Number]

#: Lowest and highest value of each setting, and its range in words for errors.
RANGES: dict[str, tuple[float, float, str]] = {
    "max_new_tokens": (1, float("inf"), ">= 1"),
    "temperature": (0, 1e6, ">= 0"),
    "top_k": (0, 2**31 - 1, ">= 0 (0: all tokens) and < 2^31"),
    "top_p": (1e-300, 1, "in (0, 1]"),
    "min_p": (0, 1, "in [0, 1]"),
    "repetition_penalty": (1e-6, 1e6, "> 0 (1e-6 at least, 1e6 at most)"),
    "seed": (0, 2**32 - 1, "in [0, 2^32)"),
}
#: Settings that are whole numbers.
WHOLE = ("max_new_tokens", "top_k", "seed")


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn; each field is one number, or a sequence with one number for each prompt.

    Logits are first penalised, then divided by the temperature, then filtered by top-k, top-p and min-p, in this order.

    Attributes:
        temperature: 0: the most likely token; otherwise a token is drawn from softmax(logits / temperature).
        top_k: keep the k most likely tokens; 0: all.
        top_p: keep the fewest tokens whose probabilities add up to this; 1: all.
        min_p: keep tokens with at least this share of the highest probability; 0: all.
        repetition_penalty: logits of tokens in the sequence are divided by it (multiplied if negative); 1: unchanged.
        seed: of the noise, below 2³². A single seed grows by 1 per prompt, so that equal prompts get different noise.

    Raises:
        ValueError: a number outside its range, a fraction for a whole number, or no number.
    """

    temperature: Each[float] = 0.0
    top_k: Each[int] = 0
    top_p: Each[float] = 1.0
    min_p: Each[float] = 0.0
    repetition_penalty: Each[float] = 1.0
    seed: Each[int] = 0

    def __post_init__(self) -> None:
        for name, value in self._items():
            object.__setattr__(self, name, _plain(checked(name, value)))
        if any(0 < value < 1e-6 for value in np.ravel(self.temperature)):
            raise ValueError(f"expected temperature 0 or >= 1e-6, got {self.temperature}")

    def arrays(self, batch: int) -> dict[str, np.ndarray]:
        """Return every field as an array [B].

        Raises:
            ValueError: a sequence whose length is not the batch.
        """
        arrays = {name: per_prompt(name, value, batch) for name, value in self._items()}
        arrays["top_p"] = np.maximum(arrays["top_p"], 1e-9)  # in float32 a smaller one would keep no token
        if np.ndim(self.seed) == 0:
            arrays["seed"] = (arrays["seed"].astype(np.int64) + np.arange(batch)) % 2**32
        return arrays

    def _items(self) -> list[tuple[str, Any]]:
        return [(each.name, getattr(self, each.name)) for each in fields(self)]


def checked(name: str, value: Any) -> np.ndarray:
    """Return a setting as an array of no or one axis, every number within ``RANGES``.

    Raises:
        ValueError: a number outside its range, a fraction for a whole number, no number, or a table of numbers.
    """
    values = whole_numbers(name, value) if name in WHOLE else _reals(name, value)
    if values.ndim > 1:
        raise ValueError(f"expected one {name}, or one for each prompt, got shape {values.shape}")
    low, high, range_text = RANGES[name]
    if not np.all((values >= low) & (values <= high)):
        raise ValueError(f"expected {name} {range_text}, got {_plain(values, list)}")
    return values


def per_prompt(name: str, value: Any, batch: int) -> np.ndarray:
    """Return a setting as an array [B].

    Raises:
        ValueError: as ``checked``, or another number of values than prompts.
    """
    values = checked(name, value)
    if values.shape not in ((), (batch,)):
        raise ValueError(f"expected one {name} or {batch}, one for each prompt, got shape {values.shape}")
    return np.broadcast_to(values, (batch,))


def _reals(name: str, value: Any) -> np.ndarray:
    """Convert to float64, of any shape; bools, text and None are rejected."""
    values = np.asarray(value)
    if values.dtype.kind not in "iuf" and not jnp.issubdtype(values.dtype, jnp.floating):
        raise ValueError(f"expected {name} to be numbers, got {value!r:.80}")
    return values.astype(np.float64)


def _plain(values: np.ndarray, sequence: type = tuple) -> Any:
    """Convert to a Python number, or to a sequence of them."""
    return sequence(values.tolist()) if values.ndim else values.item()
