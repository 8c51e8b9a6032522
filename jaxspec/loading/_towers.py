"""Checkpoints that also read images: their text part, read as the text model that it is; the rest is named and left."""

import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np

from jaxspec.loading._rope import Config
from jaxspec.loading._weights import Arrays

#: Architectures with a text part that is read, and that part's own architecture and type.
WITH_TOWERS = {"Gemma3ForConditionalGeneration": ("Gemma3ForCausalLM", "gemma3_text")}
#: Values of keys that the text part of such a file may omit.
DEFAULTS: Config = {
    "vocab_size": 262_208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131_072,
}
#: Names of the text part's arrays, of newer and of older files, and what the text model calls them.
TEXT_NAMES = (
    (r"^(language_model\.model|model\.language_model)\.", "model."),
    (r"^language_model\.lm_head\.", "lm_head."),
)
#: Names of arrays that turn images into what the text part reads.
TOWER = re.compile(r"^(?:model\.)?(vision_tower|multi_modal_projector)\.")


def text_part(config: Config) -> Config:
    """Return the ``config.json`` of the text part, with all keys of the whole; other configurations are unchanged."""
    named, inner = config.get("architectures") or (), config.get("text_config")
    found = [WITH_TOWERS[name] for name in named if name in WITH_TOWERS]
    if not found or not isinstance(inner, dict) or inner.get("model_type", found[0][1]) != found[0][1]:
        return config
    whole = {key: value for key, value in config.items() if key != "text_config"}
    tied = config.get("tie_word_embeddings", inner.get("tie_word_embeddings", True))
    names = {"architectures": [found[0][0]], "model_type": found[0][1], "tie_word_embeddings": tied}
    return DEFAULTS | whole | {key: value for key, value in inner.items() if value is not None} | names


def has_tower(config: Config) -> bool:
    """Return whether a ``text_part`` came with a tower for images."""
    return "vision_config" in config and config.get("model_type") in [kind for _, kind in WITH_TOWERS.values()]


class TextWeights:
    """The text part's arrays, by the names of the text model; what is left out is told on standard error, by name.

    Args:
        arrays: of the whole checkpoint.
        folder: of the checkpoint, for the message.
    """

    def __init__(self, arrays: Arrays, folder: Path):
        self._arrays = arrays
        left = Counter(found[1] for name in arrays.entries if (found := TOWER.match(name)))
        self._own = {_renamed(name): name for name in arrays.entries if not TOWER.match(name)}
        self.entries = {name: arrays.entries[own] for name, own in self._own.items()}
        parts = ", ".join(f"{name} ({count} arrays)" for name, count in sorted(left.items()))
        print(f"{folder}: only the text part is read; ignored: {parts or 'nothing'}", file=sys.stderr)

    def equal(self, name: str, other: str) -> bool:
        """Return whether two arrays are equal."""
        return self._arrays.equal(self._own[name], self._own[other])

    def __getitem__(self, name: str) -> np.ndarray:
        """Return the array of that name."""
        return self._arrays[self._own[name]]


def _renamed(name: str) -> str:
    for pattern, text in TEXT_NAMES:
        name = re.sub(pattern, text, name)
    return name
