"""How well each exit predicts the target, from one pass over the target's own text, without decoding."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.analysis._reading import check_layers, draft_pass, map_exits, step_ends
from jaxspec.analysis.cost import ProgramTimes, step_time
from jaxspec.models.base import Array, Model, Network, Params
from jaxspec.models.vocabulary import check_language_model, fitted
from jaxspec.text.prompts import Continued, filled, without_prompts
from jaxspec.training import hidden_states
from jaxspec.verify.exits import LogitLens

#: Most logits in one pass, 1 GiB in float32; more texts are read in several passes.
MAX_LOGITS = 2**28


class ExitProbe(NamedTuple):
    """How well the exit after ``layer`` layers predicts the target; every share is by κ.

    Attributes:
        layer: ℓₑ.
        contained: how often its top-κ contain the target's most likely token.
        mass: Ω_κ, the target's probability of its top-κ.
        at_correction: share of corrections in its top-κ without the drafted token. Empty without a draft.
        foreseen: Ω′, how often they contain the token that ends a step, correction or bonus; FF = 1 − Ω′ if all
            (γ+1)·κ branches are rolled out. Empty without a draft.
    """

    layer: int
    contained: dict[int, float]
    mass: dict[int, float]
    at_correction: dict[int, float]
    foreseen: dict[int, float]


class ExitReading(NamedTuple):
    """Both models at every position [n, T] of the texts.

    Attributes:
        agrees: whether the draft's most likely token is the target's.
        ranks: of the target's most likely token in every exit's logits: [layers, n, T].
        masked_ranks: the same without the drafted token.
        mass: Ω_κ: [layers, κ, n, T].
        is_text: whether the position is before the end of the text.
    """

    agrees: Any
    ranks: Any
    masked_ranks: Any
    mass: Any
    is_text: Any


def probe(
    target: Model,
    draft: Model | None,
    tokens: np.ndarray | Continued,
    prompt_length: int = 0,
    *,
    window: int = 7,
    num_candidates: Sequence[int] = (1, 4, 8),
    layers: Sequence[int] | None = None,
    exit: Any = None,
) -> list[ExitProbe]:
    """Measure how well exits predict the target, layer by layer.

    Args:
        target: whose exits are probed.
        draft: determines where steps end; without one, the figures that depend on it are empty.
        tokens: prompts with the target's own greedy continuations: [n, P + L], −1 after the end of a text, or with the
            length of each prompt.
        prompt_length: P of texts [n, P + L].
        window: γ.
        num_candidates: κ.
        layers: ℓₑ, ascending; default: all.
        exit: exit head; default ``LogitLens()``.

    Raises:
        ValueError: no text after the prompts, a layer or a number out of range, another tokenizer or kind of draft.
    """
    count, vocabulary = target.network.config.num_layers, target.network.config.vocab_size
    layers = check_layers(range(1, count + 1) if layers is None else layers, count)
    if window < 1 or not num_candidates or not all(1 <= kappa <= vocabulary for kappa in num_candidates):
        raise ValueError(
            f"expected window >= 1 and num_candidates from 1 to {vocabulary} (the vocabulary), got {window} and "
            f"{tuple(num_candidates)}"
        )
    if draft is not None:
        check_language_model(draft, "to probe with")
    texts = Continued.of(tokens, prompt_length)
    if texts.most <= window:
        raise ValueError(f"expected more than {window} tokens after the prompts, got {texts.most}")
    kappas, head = tuple(num_candidates), LogitLens() if exit is None else exit
    reading = _read(target, draft and fitted(target, draft), texts, layers, kappas, head)
    ends = None if draft is None else _ends(reading, window)
    return [_summary(reading, index, layer, kappas, ends, window) for index, layer in enumerate(layers)]


def _read(
    target: Model,
    draft: Model | None,
    texts: Continued,
    layers: tuple[int, ...],
    kappas: tuple[int, ...],
    head: Any,
) -> ExitReading:
    """Read texts in parts of at most ``MAX_LOGITS``; positions of the prompts are dropped."""
    networks, params = (target.network, draft and draft.network), (target.params, draft and draft.params)
    tokens = texts.tokens
    size = max(1, MAX_LOGITS // (target.network.config.vocab_size * tokens.shape[1]))
    parts = [
        jax.device_get(
            _read_part(networks, layers, kappas, params, head, jnp.asarray(filled(tokens[start : start + size])))
        )
        for start in range(0, len(tokens), size)
    ]
    joined = (np.concatenate(leaves, axis=-2)[..., :-1] for leaves in zip(*parts, strict=True))
    agrees, ranks, masked_ranks, mass = (without_prompts(leaf, texts.starts - 1) for leaf in joined)
    return ExitReading(agrees, ranks, masked_ranks, mass, without_prompts(tokens, texts.starts, -1) >= 0)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _read_part(
    networks: tuple[Network, Network | None],
    layers: tuple[int, ...],
    kappas: tuple[int, ...],
    params: tuple[Params, Params],
    head: Any,
    tokens: Array,
) -> tuple[Array, ...]:
    (target, draft), (target_params, draft_params) = networks, params
    *early, final = hidden_states(target, target_params, tokens, layers)
    logits = target.logits(target_params, final)
    probabilities, choice = jax.nn.softmax(logits, axis=0), jnp.argmax(logits, axis=0)
    drafted = choice if draft is None else draft_pass(draft, draft_params, tokens)[1]
    exits = map_exits(
        target, target_params, head, early, lambda scores: _ranks(scores, probabilities, choice, drafted, kappas)
    )
    return drafted == choice, *exits


def _ranks(
    scores: Array, probabilities: Array, choice: Array, drafted: Array, kappas: tuple[int, ...]
) -> tuple[Array, Array, Array]:
    """Return ranks of the target's choice, with and without the drafted token, [n, T], and Ω_κ, [κ, n, T]."""
    own = jnp.take_along_axis(scores, choice[None], axis=0)
    above = ~(scores <= own)  # every token, where the scores are NaN
    rank = jnp.sum(above, axis=0)
    drafted_above = jnp.take_along_axis(above, jnp.maximum(drafted, 0)[None], axis=0)[0] & (drafted >= 0)
    order = jnp.moveaxis(jax.lax.top_k(jnp.moveaxis(scores, 0, -1), max(kappas))[1], -1, 0)
    summed = jnp.cumsum(jnp.take_along_axis(probabilities, order, axis=0), axis=0)
    mass = jnp.stack([summed[kappa - 1] for kappa in kappas])
    return rank, rank - drafted_above.astype(rank.dtype), mass


def _ends(reading: ExitReading, window: int) -> list[tuple[int, int, int]]:
    lines = [line[mask] for line, mask in zip(reading.agrees, reading.is_text, strict=True)]
    ends = step_ends(lines, window)
    if not ends:
        raise ValueError(f"expected texts of more than {window} tokens, got {max(map(len, lines))}; use other prompts")
    return ends


def _summary(
    reading: ExitReading,
    index: int,
    layer: int,
    kappas: tuple[int, ...],
    ends: list[tuple[int, int, int]] | None,
    window: int,
) -> ExitProbe:
    rank, masked = reading.ranks[index], reading.masked_ranks[index]
    share = lambda ranks: {kappa: float(np.mean(ranks < kappa)) if len(ranks) else 1.0 for kappa in kappas}  # noqa: E731
    mass = {kappa: float(np.mean(reading.mass[index, number][reading.is_text])) for number, kappa in enumerate(kappas)}
    contained = share(rank[reading.is_text])
    if ends is None:
        return ExitProbe(layer, contained, mass, {}, {})
    corrections = np.asarray([masked[row, at] for row, at, accepted in ends if accepted < window])
    last = np.asarray([(rank if accepted == window else masked)[row, at] for row, at, accepted in ends])
    return ExitProbe(layer, contained, mass, share(corrections), share(last))


class ExitProposal(NamedTuple):
    """An exit by the cost model: ``layer`` ℓₑ, ``num_candidates`` κ, and the time of a step in seconds."""

    layer: int
    num_candidates: int
    step: float


def proposals(probes: Sequence[ExitProbe], times: Mapping[int, ProgramTimes], num_layers: int) -> list[ExitProposal]:
    """Rank all exits and κ, the fastest step first, if all (γ+1)·κ branches are rolled out.

    Args:
        probes: from ``probe``.
        times: measured with each κ, at any exit; a prefix takes its share of the target's layers.
        num_layers: N.
    """
    rows = []
    for exit in probes:
        for kappa, measured in times.items():
            prefix = measured.target * exit.layer / num_layers
            moved = replace(measured, prefix=prefix, suffix=measured.target - prefix)
            rows.append(ExitProposal(exit.layer, kappa, step_time(moved, 1 - exit.foreseen[kappa])))
    return sorted(rows, key=lambda proposal: proposal.step)
