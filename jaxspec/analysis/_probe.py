"""What an exit knows at every layer, found without decoding: one teacher-forced pass over the target's own text.

Along text that the target wrote itself, a drafted token is accepted where the draft would say what stands there, so
every step of greedy speculative decoding can be read off: where it ends, and whether the exit holds the token that
comes next. Nothing here looks at a run's own count of reused windows.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.analysis.cost import Parts, step_time
from jaxspec.models.base import Array, Model, Network, Params
from jaxspec.models.vocabulary import fitted
from jaxspec.text import filled
from jaxspec.training import hidden_states
from jaxspec.verify.exits import LogitLens
from jaxspec.verify.sampling import guess

#: Most logits of one pass, a gigabyte of each kind at float32: texts are read in as large parts.
LARGEST = 2**28


class Knowledge(NamedTuple):
    """What the exit after ``layer`` layers knows; every share is by κ. The last two are empty without a draft.

    Attributes:
        layer: ℓₑ.
        contained: how often its top-κ hold the target's most likely token.
        mass: Ω_κ, the target's probability of its top-κ.
        at_correction: how often its top-κ but for the drafted token hold the correction, where one is needed.
        foreseen: Ω′, how often they hold the token that ends a step, correction or bonus; FF = 1 − Ω′ if all (γ+1)·κ
            branches are rolled out.
    """

    layer: int
    contained: dict[int, float]
    mass: dict[int, float]
    at_correction: dict[int, float]
    foreseen: dict[int, float]


class Read(NamedTuple):
    """Of every place [n, T]: the target's and the draft's choice, and of each exit the choice's ranks and its mass.

    Attributes:
        agrees: whether the draft's choice is the target's.
        ranks: of the target's choice under every exit: [layers, n, T].
        masked_ranks: the same without the drafted token.
        mass: Ω_κ: [layers, κ, n, T].
        is_text: whether the target wrote something there.
    """

    agrees: Any
    ranks: Any
    masked_ranks: Any
    mass: Any
    is_text: Any


def probe(
    target: Model,
    draft: Model | None,
    tokens: np.ndarray,
    prompt_length: int,
    *,
    window: int = 7,
    num_candidates: Sequence[int] = (1, 4, 8),
    layers: Sequence[int] | None = None,
    exit: Any = None,
) -> list[Knowledge]:
    """What exits know, layer by layer.

    Args:
        target: whose exits are probed.
        draft: decides where windows end; None: what depends on it is left out.
        tokens: prompts and the target's own greedy continuation of them: [n, P + L]; −1 behind the end of a text.
        prompt_length: P.
        window: γ.
        num_candidates: κ.
        layers: ℓₑ; default: all.
        exit: exit head; default ``LogitLens()``.

    Raises:
        ValueError: no text behind the prompts, a layer that is none, a number out of range, or a draft of another
            tokenizer.
    """
    count = target.network.config.num_layers
    chosen = tuple(range(1, count + 1)) if layers is None else tuple(layers)
    if any(not 1 <= layer <= count for layer in chosen):
        raise ValueError(f"expected layers from 1 to {count}, got {chosen}")
    vocabulary = target.network.config.vocab_size
    if window < 1 or not num_candidates or not all(1 <= kappa <= vocabulary for kappa in num_candidates):
        raise ValueError(
            f"expected window >= 1 and num_candidates from 1 to {vocabulary} (the vocabulary), got {window} and "
            f"{tuple(num_candidates)}"
        )
    if tokens.shape[1] - prompt_length <= window:
        raise ValueError(
            f"expected more than {window} tokens behind the prompts, got {tokens.shape[1] - prompt_length}"
        )
    draft = draft and fitted(target, draft)
    head = LogitLens() if exit is None else exit
    nets, kappas = (target.network, draft and draft.network), tuple(num_candidates)
    params = target.params, draft and draft.params
    size = max(1, LARGEST // (vocabulary * tokens.shape[1]))
    parts = [
        jax.device_get(_read(nets, chosen, kappas, params, head, jnp.asarray(filled(tokens[start : start + size]))))
        for start in range(0, len(tokens), size)
    ]
    outputs = (np.concatenate(leaves, axis=-2) for leaves in zip(*parts, strict=True))
    agrees, ranks, masked, mass = (leaf[..., prompt_length - 1 : -1] for leaf in outputs)
    read = Read(agrees, ranks, masked, mass, np.asarray(tokens)[:, prompt_length:] >= 0)
    lines = [line[mask] for line, mask in zip(read.agrees, read.is_text, strict=True)]
    ends = None if draft is None else step_ends(lines, window)
    if draft is not None and not ends:
        raise ValueError(f"expected texts of more than {window} tokens, got {max(map(len, lines))}; use other prompts")
    return [_knowledge(read, index, layer, kappas, ends, window) for index, layer in enumerate(chosen)]


@partial(jax.jit, static_argnums=(0, 1, 2))
def _read(
    nets: tuple[Network, Network | None],
    layers: tuple[int, ...],
    kappas: tuple[int, ...],
    params: tuple[Params, Params],
    head: Any,
    tokens: Array,
) -> tuple[Array, ...]:
    (target, draft), (target_params, draft_params) = nets, params
    *early, final = hidden_states(target, target_params, tokens, layers)
    logits = target.logits(target_params, final)
    law, choice = jax.nn.softmax(logits, axis=0), jnp.argmax(logits, axis=0)
    drafted = choice  # without a draft nothing that depends on it is looked at
    if draft is not None:
        drafted = guess(draft.logits(draft_params, hidden_states(draft, draft_params, tokens)[-1]))
    found = [_exit(head(target, target_params, x), law, choice, drafted, kappas) for x in early]
    ranks, masked, mass = (jnp.stack(leaves) for leaves in zip(*found, strict=True))
    return drafted == choice, ranks, masked, mass


def _exit(
    scores: Array, law: Array, choice: Array, drafted: Array, kappas: tuple[int, ...]
) -> tuple[Array, Array, Array]:
    """Rank of the target's choice under the exit, with and without the drafted token, [n, T]; Ω_κ, [κ, n, T]."""
    own = jnp.take_along_axis(scores, choice[None], axis=0)
    above = ~(scores <= own)  # every token, where the scores are NaN
    rank = jnp.sum(above, axis=0)
    drafted_above = jnp.take_along_axis(above, jnp.maximum(drafted, 0)[None], axis=0)[0] & (drafted >= 0)
    order = jnp.moveaxis(jax.lax.top_k(jnp.moveaxis(scores, 0, -1), max(kappas))[1], -1, 0)
    summed = jnp.cumsum(jnp.take_along_axis(law, order, axis=0), axis=0)
    mass = jnp.stack([summed[kappa - 1] for kappa in kappas])
    return rank, rank - drafted_above.astype(rank.dtype), mass


def step_ends(agrees: Iterable[np.ndarray], window: int) -> list[tuple[int, int, int]]:
    """(sequence, place, A) of every step of greedy speculative decoding: the place of the token that ends it.

    Args:
        agrees: for every sequence, whether the draft would say what stands at each place: [T].
        window: γ.
    """
    ends = []
    for row, line in enumerate(agrees):
        place = 0
        while place + window < len(line):
            wrong = np.flatnonzero(~line[place : place + window])
            accepted = int(wrong[0]) if len(wrong) else window
            ends.append((row, place + accepted, accepted))
            place += accepted + 1
    return ends


def _knowledge(
    read: Read, index: int, layer: int, kappas: tuple[int, ...], ends: list[tuple[int, int, int]] | None, window: int
) -> Knowledge:
    rank, masked = read.ranks[index], read.masked_ranks[index]
    share = lambda ranks: {kappa: float(np.mean(ranks < kappa)) if len(ranks) else 1.0 for kappa in kappas}  # noqa: E731
    mass = {kappa: float(np.mean(read.mass[index, number][read.is_text])) for number, kappa in enumerate(kappas)}
    contained = share(rank[read.is_text])
    if ends is None:
        return Knowledge(layer, contained, mass, {}, {})
    corrections = np.asarray([masked[row, place] for row, place, accepted in ends if accepted < window])
    last = np.asarray([(rank if accepted == window else masked)[row, place] for row, place, accepted in ends])
    return Knowledge(layer, contained, mass, share(corrections), share(last))


class Proposal(NamedTuple):
    """What the law makes of an exit: ``layer`` ℓₑ, ``num_candidates`` κ, and the time of a step in seconds."""

    layer: int
    num_candidates: int
    step: float


def proposals(found: Sequence[Knowledge], parts: Mapping[int, Parts], num_layers: int) -> list[Proposal]:
    """All exits and κ, the fastest step first, if all (γ+1)·κ branches are rolled out.

    Args:
        found: by ``probe``.
        parts: what was measured with each κ, at any exit; a prefix takes the share of the target that its layers are.
        num_layers: N.
    """
    tried = []
    for knowledge in found:
        for kappa, measured in parts.items():
            prefix = measured.target * knowledge.layer / num_layers
            moved = replace(measured, prefix=prefix, suffix=measured.target - prefix)
            tried.append(Proposal(knowledge.layer, kappa, step_time(moved, 1 - knowledge.foreseen[kappa])))
    return sorted(tried, key=lambda proposal: proposal.step)
