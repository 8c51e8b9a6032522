"""Training of drafts on text that the target generated, from its hidden states."""

from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from tqdm import tqdm

from jaxspec.drafts.base import Draft
from jaxspec.models.base import Model, Params
from jaxspec.text.prompts import Continued
from jaxspec.training._fit import Schedule, fit, within
from jaxspec.training._held_out import Best, accepted_tokens
from jaxspec.training._hidden import Hidden, hidden_within
from jaxspec.training._rows import TextRows
from jaxspec.training._trained import as_float32
from jaxspec.training.eagle3 import Recipe
from jaxspec.training.tasks import draft_task

#: Epochs without a better acceptance on held-out text, after which a fit ends.
PATIENCE = 3
#: Bytes of hidden states that are kept on disk.
MOST_HIDDEN = 16 << 30

Trained = TypeVar("Trained", bound=Model | Draft)


def fit_draft(
    draft: Trained,
    target: Model,
    tokens: np.ndarray | Continued,
    *,
    held_out: np.ndarray | Continued | None = None,
    recipe: Recipe = Recipe(),  # noqa: B008  a frozen default
    schedule: Schedule = Schedule(learning_rate=1e-3),  # noqa: B008  a frozen default
    seed: int = 0,
    directory: str | Path | None = None,
    hidden: str | Path | None = None,
    progress: bool = True,
) -> Trained:
    """Train a draft on a target's hidden states; it computes in float32 and keeps its own types.

    Args:
        draft: from ``init_draft``, ``small_draft`` or ``load_draft``; is not changed. Of a language model whose head is
            not its embedding, the embedding stays as it is.
        target: is not trained.
        tokens: text, best the target's continuations (``federated.continued``): [n, T] int32, −1 after its end, or with
            the length of each prompt, which drafts that read hidden states do not learn.
        held_out: more such text. After every pass over as many rows as ``tokens`` has, ``accepted_tokens`` is measured
            on it; the best parameters are returned, and the fit ends ``PATIENCE`` passes after them.
        recipe: of EAGLE-3.
        schedule: optimiser steps; rows longer than its ``sequence_length`` are cut to a window of so many tokens.
        seed: of the batches.
        directory: where to save, and to resume from.
        hidden: where the target's hidden states along the texts are kept, so that they are computed once and not at
            every step, unless they take more than ``MOST_HIDDEN`` bytes; several drafts can share it. Default: in
            ``directory``.
        progress: show a bar.

    Raises:
        ValueError: a draft of another kind or for another target, or rows too short for it.
        FloatingPointError: the loss is not finite; names the step.
        jaxfed.checkpoint.CheckpointError: as of ``fit``.
    """
    folder = None if directory is None else Path(directory)
    texts = Continued.of(tokens)
    unseen = None if held_out is None else Continued.of(held_out)
    _check_rows(texts, unseen)
    own, rest, loss = draft_task(draft, target, recipe)
    fresh, taps = as_float32(own), () if isinstance(draft, Model) else draft.drafter.reads.taps
    states = Path(hidden) if hidden is not None else folder and folder / "hidden"
    stored = partial(_stored, target, taps, states, progress)
    batch_fn = partial(TextRows(texts, stored(texts), schedule.sequence_length).batch, schedule.batch_size, seed)
    schedule = within(schedule, loss, fresh, batch_fn, folder)
    epoch, best = -(-len(texts.tokens) // schedule.batch_size), None
    if unseen is not None:
        measure = partial(_measure, draft, rest, target, unseen, stored(unseen), progress)
        best = Best(measure, fresh, epoch, PATIENCE, folder and folder / "best")
    options: dict[str, Any] = {"seed": seed, "label": "draft", "progress": progress, "until": best}
    params = fit(loss, fresh, batch_fn, schedule, directory=folder and folder / "steps", **options)
    params = params if best is None else best.of_all(params)
    trained: Any = jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), params, own)
    return draft._replace(params={**trained, **rest})  # type: ignore[return-value]


def _stored(
    target: Model, taps: tuple[int, ...], folder: Path | None, progress: bool, texts: Continued
) -> Hidden | None:
    if folder is None:
        return None
    return hidden_within(target, taps, texts.tokens, MOST_HIDDEN, folder, progress)


def _measure(
    draft: Model | Draft,
    rest: Params,
    target: Model,
    held_out: Continued,
    hidden: Hidden | None,
    progress: bool,
    own: Params,
) -> float:
    value = accepted_tokens(draft._replace(params={**own, **rest}), target, held_out, hidden=hidden)
    if progress:
        tqdm.write(f"draft: {value:.3f} tokens of a window accepted on held-out text")
    return value


def _check_rows(*texts: Continued | None) -> None:
    for each in filter(None, texts):
        least, shape = int(np.max(each.prompt_length)) + 3, each.tokens.shape
        if len(shape) != 2 or not shape[0] or shape[1] < least:
            raise ValueError(f"expected tokens [n, T] with T >= {least} (prompt_length + 3), got shape {shape}")
