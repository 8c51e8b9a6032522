"""How well each exit predicts the target, from one pass over the target's own text, without decoding."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from jaxspec.analysis._exit_reading import ExitReading, read_exits
from jaxspec.analysis._reading import check_layers, step_ends
from jaxspec.analysis.cost import ProgramTimes, step_time
from jaxspec.models.base import Model
from jaxspec.models.vocabulary import check_language_model, fitted
from jaxspec.text.prompts import Continued
from jaxspec.verify.exits import LogitLens


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
    progress: bool = False,
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
        progress: show a bar.

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
    reading = read_exits(target, draft and fitted(target, draft), texts, layers, kappas, head, progress)
    ends = None if draft is None else _ends(reading, window)
    return [_summary(reading, index, layer, kappas, ends, window) for index, layer in enumerate(layers)]


def _ends(reading: ExitReading, window: int) -> list[tuple[int, int, int]]:
    ends = step_ends(reading.lines, window)
    if not ends:
        raise ValueError(f"expected texts of more than {window} tokens, got {reading.counts.max()}; use other prompts")
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
    mass = {kappa: float(np.mean(reading.mass[index, number])) for number, kappa in enumerate(kappas)}
    if ends is None:
        return ExitProbe(layer, share(rank), mass, {}, {})
    rows, positions, accepted = np.asarray(ends).T
    places, is_whole = reading.places(rows, positions), accepted == window
    last = np.where(is_whole, rank[places], masked[places])
    return ExitProbe(layer, share(rank), mass, share(masked[places[~is_whole]]), share(last))


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
