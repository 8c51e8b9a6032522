"""NumPy oracles of jaxspec: a decoder's forward pass and a loss, written from the equations, in float64."""

from collections.abc import Sequence

import numpy as np


def decoder_hidden(params: dict, config: object, tokens: Sequence[int], num_layers: int | None = None) -> np.ndarray:
    """Hidden states [T, D] of a decoder after its first layers, token by token and head by head, in float64."""
    embedding = np.asarray(params["embedding"], np.float64)
    x = embedding[np.asarray(tokens)] * np.sqrt(config.width)
    for layer in params["layers"][:num_layers]:
        p = {name: np.asarray(leaf, np.float64) for part in ("attention", "mlp") for name, leaf in layer[part].items()}
        x = x + attention_block(p, config, rms_norm(x, layer["attention_norm"]["scale"], config.block.epsilon))
        gate, up = (rms_norm(x, layer["mlp_norm"]["scale"], config.block.epsilon) @ w.T for w in p["gate_up"])
        x = x + (gate / (1 + np.exp(-gate)) * up) @ p["down"].T
    return x


def decoder_logits(params: dict, config: object, tokens: Sequence[int], num_layers: int | None = None) -> np.ndarray:
    """Logits [T, V]: final norm and tied head over ``decoder_hidden``."""
    x = decoder_hidden(params, config, tokens, num_layers)
    return rms_norm(x, params["final_norm"]["scale"], config.block.epsilon) @ np.asarray(params["embedding"], float).T


def rms_norm(x: np.ndarray, scale: object, epsilon: float) -> np.ndarray:
    """x / √(mean x² + ε) · scale over the last axis."""
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + epsilon) * np.asarray(scale, np.float64)


def attention_block(p: dict, config: object, x: np.ndarray) -> np.ndarray:
    """Grouped-query attention over x [T, D]: softmax(q·k/√h) of each head over all positions up to its own."""
    shared, heads = config.num_heads // config.num_kv_heads, []
    for head in range(config.num_heads):
        weights = p["qkv"][head // shared]
        query = [turned(weights[head % shared] @ row, t, config.attention.rotary.theta) for t, row in enumerate(x)]
        key = [turned(weights[shared] @ row, t, config.attention.rotary.theta) for t, row in enumerate(x)]
        value = x @ weights[shared + 1].T
        context = []
        for t in range(len(x)):
            scores = np.array([query[t] @ key[s] for s in range(t + 1)]) / np.sqrt(config.head_size)
            odds = np.exp(scores - scores.max())
            context.append(odds / odds.sum() @ value[: t + 1])
        heads.append(np.stack(context))
    return np.concatenate(heads, axis=1) @ p["out"].T


def turned(head: np.ndarray, position: int, theta: float) -> np.ndarray:
    """Rotary position: component i and component i + h/2 are one complex number, turned by position·θ^(−2i/h)."""
    half = len(head) // 2
    complex_pairs = (head[:half] + 1j * head[half:]) * np.exp(1j * position * theta ** (-np.arange(half) / half))
    return np.concatenate([complex_pairs.real, complex_pairs.imag])


def cross_entropy(logits: np.ndarray, labels: Sequence[int]) -> np.ndarray:
    """−log softmax(logits)[label] of each row, nats."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return np.log(np.exp(shifted).sum(axis=-1)) - shifted[np.arange(len(labels)), np.asarray(labels)]
