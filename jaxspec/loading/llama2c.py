"""Files of llama2.c, version 0: seven integers, then float32 arrays, each stacked over layers."""

import math
from pathlib import Path

import jax
import numpy as np

from jaxspec.core.files import reading
from jaxspec.models import network
from jaxspec.models.base import Model, Params
from jaxspec.models.config import Attention, DecoderConfig, Ends
from jaxspec.text import Text, sentencepiece

#: Stop tokens: the beginning of the next story, and the end of a text.
STOP = (1, 2)


def load_llama2c(path: str | Path, tokenizer: str | Path | None = None) -> Model:
    """Read a model of llama2.c.

    Args:
        path: ``.bin`` file, version 0.
        tokenizer: SentencePiece ``.model`` file, for text.

    Raises:
        ValueError: sizes in the header that make no model, or that do not match the length of the file.
    """
    header = np.fromfile(path, np.int32, 7).tolist()
    sizes = [abs(size) if index == 5 else size for index, size in enumerate(header)]
    if len(sizes) < 7 or not all(0 < size < 2**24 for size in sizes):
        raise ValueError(f"{path}: expected the seven sizes of a llama2.c v0 file, got {header}")
    width, hidden, layers, heads, kv_heads, vocab, length = sizes
    size, ends = width // heads, Ends(tied=header[5] > 0, embedding_scale=1.0)
    with reading(path, "sizes that make a model"):
        config = DecoderConfig(vocab, width, layers, heads, kv_heads, size, hidden, attention=Attention(), ends=ends)
    shapes = _shapes(config)
    tables, head = length * size, 0 if ends.tied else vocab * width
    expected = sum(math.prod(shape) for shape in shapes.values()) + tables + head
    if (on_disk := Path(path).stat().st_size) != 28 + 4 * expected:
        raise ValueError(
            f"{path}: expected {28 + 4 * expected} bytes for these sizes, got {on_disk}; copy it again or export v0"
        )
    values = np.fromfile(path, np.float32, offset=28)
    offsets = np.cumsum([math.prod(shape) for shape in shapes.values()])
    parts = {name: part.reshape(shapes[name]) for name, part in zip(shapes, np.split(values, offsets), strict=False)}
    params = _params(config, parts, values[-head:].reshape(vocab, width) if head else None)
    text = Text(stop=STOP) if tokenizer is None else sentencepiece(tokenizer, stop=STOP)
    return Model(network(config), jax.tree.map(jax.numpy.asarray, params), text)


def _shapes(c: DecoderConfig) -> dict[str, tuple[int, ...]]:
    n, queries, shared = c.num_layers, c.num_heads * c.head_size, c.num_kv_heads * c.head_size
    return {
        "embedding": (c.vocab_size, c.width),
        "attention_norm": (n, c.width),
        "q": (n, queries, c.width),
        "k": (n, shared, c.width),
        "v": (n, shared, c.width),
        "out": (n, c.width, queries),
        "mlp_norm": (n, c.width),
        "gate": (n, c.hidden, c.width),
        "down": (n, c.width, c.hidden),
        "up": (n, c.hidden, c.width),
        "final_norm": (c.width,),
    }


def _params(config: DecoderConfig, parts: dict[str, np.ndarray], head: np.ndarray | None) -> Params:
    queries, keys = (_halves(parts[name], config.head_size) for name in "qk")

    def layer(i: int) -> Params:
        rows = [part[i].reshape(config.num_kv_heads, -1, config.head_size, config.width) for part in (queries, keys)]
        value = parts["v"][i].reshape(config.num_kv_heads, 1, config.head_size, config.width)
        return {
            "attention_norm": {"scale": parts["attention_norm"][i]},
            "mlp_norm": {"scale": parts["mlp_norm"][i]},
            "attention": {"qkv": np.concatenate([*rows, value], axis=1), "out": parts["out"][i]},
            "mlp": {"gate_up": np.stack([parts["gate"][i], parts["up"][i]]), "down": parts["down"][i]},
        }

    ends = {"embedding": parts["embedding"], "final_norm": {"scale": parts["final_norm"]}}
    ends |= {} if head is None else {"head": head}
    return {**ends, "layers": [layer(i) for i in range(config.num_layers)]}


def _halves(weights: np.ndarray, head_size: int) -> np.ndarray:
    """Reorder rows of queries or keys: rotary pairs are neighbours in the file, and halves of the head here."""
    order = np.arange(head_size).reshape(-1, 2).T.reshape(-1)
    heads = weights.reshape(weights.shape[0], -1, head_size, weights.shape[-1])
    return heads[:, :, order].reshape(weights.shape)
