"""A small decoder-only transformer in plain NumPy, over a whole text at once: `jaxspec.decoder` without any option."""

from typing import Any, NamedTuple

import numpy as np


class Decoder(NamedTuple):
    """A `DecoderConfig` without options, and the parameters of that model as NumPy arrays."""

    config: Any
    params: Any


def embed(model: Decoder, tokens: list[int]) -> np.ndarray:
    """Tokens to x [T, D]."""
    return model.params["embedding"][tokens] * model.config.width**0.5


def head(model: Decoder, x: np.ndarray) -> np.ndarray:
    """Final norm, then W_LM, which is the embedding: logits [T, V]."""
    return norm(x, model.params["final_norm"]) @ model.params["embedding"].T


def layers(model: Decoder, x: np.ndarray, which: range) -> np.ndarray:
    """Layers of a transformer over x [T, D]: x + attention(norm(x)), then x + down(silu(gate·x) · (up·x))."""
    for params in (model.params["layers"][index] for index in which):
        x = x + attention(params["attention"], norm(x, params["attention_norm"]))
        gate, up = np.einsum("gfd,td->gtf", params["mlp"]["gate_up"], norm(x, params["mlp_norm"]))
        x = x + (gate / (1 + np.exp(-np.maximum(gate, -500))) * up) @ params["mlp"]["down"].T
    return x


def norm(x: np.ndarray, params: Any) -> np.ndarray:
    """RMS norm of x [T, D]."""
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-5) * params["scale"]


def attention(params: Any, x: np.ndarray) -> np.ndarray:
    """Causal attention with grouped queries and rotary positions over x [T, D]."""
    heads = np.einsum("gqhd,td->gqth", params["qkv"], x)  # of every group: queries, a key, a value
    length, size = heads.shape[2:]
    angles = np.arange(length)[:, None] * 10_000.0 ** (-np.arange(0, size, 2) / size)
    first, second = np.split(heads[:, :-1], 2, axis=-1)
    cos, sin = np.cos(angles), np.sin(angles)
    turned = np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    products = np.einsum("gqth,gsh->gqts", turned[:, :-1], turned[:, -1]) / size**0.5
    products = np.where(np.tri(length, dtype=bool), products, -np.inf)
    weights = np.exp(products - products.max(axis=-1, keepdims=True))
    context = np.einsum("gqts,gsh->tgqh", weights / weights.sum(axis=-1, keepdims=True), heads[:, -1])
    return context.reshape(length, -1) @ params["out"].T
