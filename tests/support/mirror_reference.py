"""Mirror-SD in one page: a whole decode of one sequence in plain NumPy.

The order is the paper's. There is no cache, no batch, no second device and no compiled program: every pass reads the
whole text. `jaxspec.mirror` must give the same tokens, windows, branches and reuse decisions
(``tests/jaxspec/methods/test_mirror_reference.py``).

Symbols: a target of N layers, exit layer ℓₑ, a window ŷ₁..ŷ_γ of drafted tokens, κ candidates at each of γ+1 positions.

Source: Bhendawade et al., Mirror Speculative Decoding (arXiv 2510.13161), §3.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from tests.support.numpy_decoder import Decoder, embed, head, layers

Tokens = list[int]


class Step(NamedTuple):
    """One step: the window, the branches by root (r, v), A, the next token c, and whether a branch was reused."""

    window: Tokens
    branches: dict[tuple[int, int], Tokens]
    num_accepted: int
    next_token: int
    reused: bool


def mirror_decode(
    target: Decoder,
    draft: Decoder,
    prompt: Tokens,
    max_new_tokens: int,
    sizes: tuple[int, int, int],
    scores: Callable[[np.ndarray, int], np.ndarray],
) -> tuple[Tokens, list[Step]]:
    """Decodes; returns the new tokens and the steps.

    Args:
        target: the model whose text is written.
        draft: a model with the same vocabulary.
        prompt: token ids.
        max_new_tokens: where to stop.
        sizes: (γ, κ, ℓₑ).
        scores: (logits [V], position) → [V]; the token at a position is their argmax. Logits for greedy decoding;
            logits / temperature + Gumbel noise of that position to sample. Target, exit and draft share the noise.
    """
    window, num_candidates, exit_layer = sizes
    text, steps = list(prompt), []
    drafted = rollout(draft, text, window, scores)
    while len(text) < len(prompt) + max_new_tokens:
        positions = range(len(text), len(text) + window + 1)  # of the tokens that this step may write
        rows = slice(len(text) - 1, None)  # the last committed token, and ŷ₁..ŷ_γ

        # 1. Prefix (target mesh): layers 1..ℓₑ over these γ+1 positions.
        hidden = layers(target, embed(target, text + drafted), range(exit_layer))

        # 2. Message (target → draft): the top-κ of the exit head after each position. A correction after ŷᵣ is never
        # ŷᵣ₊₁, so the drafted token is no candidate; after the last position, every token may be the bonus token.
        early = [scores(*each) for each in zip(head(target, hidden)[rows], positions, strict=True)]
        message = [best(each, num_candidates, without=drafted[r : r + 1]) for r, each in enumerate(early)]

        # 3. Rollouts (draft mesh): for every position r and every candidate v, γ tokens after (text, ŷ₁..ŷᵣ, v).
        roots = [(r, v) for r, candidates in enumerate(message) for v in candidates]
        branches = {(r, v): rollout(draft, [*text, *drafted[:r], v], window, scores) for r, v in roots}

        # 3. Suffix (target mesh, at the same time): layers ℓₑ+1..N, and the target's own tokens y₁..y_{γ+1}.
        final = layers(target, hidden, range(exit_layer, target.config.num_layers))
        own = [int(np.argmax(scores(*each))) for each in zip(head(target, final)[rows], positions, strict=True)]

        # 4. Verdict (target → draft): A = the longest prefix in which ŷⱼ = yⱼ; c = y_{A+1}, correction or bonus token.
        accepted = next((j for j in range(window) if drafted[j] != own[j]), window)
        root = accepted, own[accepted]
        text += [*drafted[:accepted], own[accepted]]

        # 5. Select (draft mesh): a branch from (A, c) is the next window (reuse); otherwise a new rollout (fallback).
        steps.append(Step(drafted, branches, *root, root in branches))
        drafted = branches[root] if root in branches else rollout(draft, text, window, scores)
    return text[len(prompt) :][:max_new_tokens], steps


def rollout(draft: Decoder, text: Tokens, count: int, scores: Callable[[np.ndarray, int], np.ndarray]) -> Tokens:
    """The draft's own continuation of a text by ``count`` tokens."""
    extended = list(text)
    for _ in range(count):
        hidden = layers(draft, embed(draft, extended), range(draft.config.num_layers))
        extended.append(int(np.argmax(scores(head(draft, hidden)[-1], len(extended)))))
    return extended[len(text) :]


def best(values: np.ndarray, count: int, without: Tokens) -> Tokens:
    """The ``count`` tokens of the largest values, best first."""
    return [int(token) for token in np.argsort(-values, kind="stable") if token not in without][:count]
