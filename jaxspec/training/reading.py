"""Training of drafts that read hidden states, on text that the target generated."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from jaxspec.drafts.base import Draft
from jaxspec.drafts.eagle import Eagle
from jaxspec.drafts.eagle3 import Eagle3
from jaxspec.drafts.hydra import Hydra
from jaxspec.drafts.medusa import Medusa
from jaxspec.models.base import Model, Params
from jaxspec.text.prompts import Continued, behind
from jaxspec.training._fit import Schedule, fit
from jaxspec.training._held_out import Best, accepted_tokens
from jaxspec.training._hidden import hidden_bytes, stored_hidden
from jaxspec.training._trained import as_float32, network_of, trained_part
from jaxspec.training.eagle3 import Recipe, eagle3_loss
from jaxspec.training.heads import eagle_loss, hydra_loss, medusa_loss
from jaxspec.training.losses import LossFn

#: Epochs without a better acceptance on held-out text, after which a fit ends.
PATIENCE = 3
#: Bytes of hidden states that are kept on disk.
MOST_HIDDEN = 16 << 30
#: The loss of each kind of network.
LOSSES: dict[type, Callable[[Draft, Model], LossFn]] = {Eagle: eagle_loss, Medusa: medusa_loss, Hydra: hydra_loss}


def fit_draft(
    draft: Draft,
    target: Model,
    tokens: np.ndarray | Continued,
    *,
    prompt_length: int = 0,
    held_out: np.ndarray | Continued | None = None,
    recipe: Recipe = Recipe(),  # noqa: B008  a frozen default
    schedule: Schedule = Schedule(learning_rate=1e-3),  # noqa: B008  a frozen default
    seed: int = 0,
    directory: str | Path | None = None,
    progress: bool = True,
) -> Draft:
    """Train a draft that reads hidden states of a target; it computes in float32 and keeps its own types.

    Args:
        draft: from ``init_draft`` or ``load_draft``; is not changed.
        target: is not trained.
        tokens: text, best the target's continuations (``federated.continued``): [n, T] int32, −1 after its end, or with
            the length of each prompt.
        prompt_length: tokens of each row [n, T] that the draft does not learn.
        held_out: more such text. After every pass over as many rows as ``tokens`` has, ``accepted_tokens`` is measured
            on it; the best parameters are returned, and the fit ends ``PATIENCE`` passes after them.
        recipe: of EAGLE-3.
        schedule: optimiser steps; ``sequence_length`` is not used, rows are taken whole.
        seed: of the batches.
        directory: where to save, and to resume from. The target's hidden states along ``tokens`` are kept there too, so
            that they are computed once and not at every step, unless they take more than ``MOST_HIDDEN`` bytes.
        progress: show a bar.

    Raises:
        ValueError: a draft of another kind or for another target, or rows too short for it.
        FloatingPointError: the loss is not finite; names the step.
        jaxfed.checkpoint.CheckpointError: as of ``fit``.
    """
    network, folder = network_of(draft, target), None if directory is None else Path(directory)
    texts = Continued.of(tokens, prompt_length)
    unseen = None if held_out is None else Continued.of(held_out, prompt_length)
    _check_rows(texts, unseen)
    is_eagle3 = isinstance(network, Eagle3)
    loss = eagle3_loss(draft, target, recipe) if is_eagle3 else LOSSES[type(network)](draft, target)
    own, rest = trained_part(draft, recipe.frozen if is_eagle3 else None)
    epoch, fresh, best = -(-len(texts.tokens) // schedule.batch_size), as_float32(own), None
    if unseen is not None:
        measure = partial(_measure, draft, rest, target, unseen, progress)
        best = Best(measure, fresh, epoch, PATIENCE, folder and folder / "best")
    options: dict[str, Any] = {"seed": seed, "label": "draft", "progress": progress, "until": best}
    taps = draft.drafter.reads.taps
    keeps = folder is not None and hidden_bytes(target, taps, texts.tokens) <= MOST_HIDDEN
    streams = stored_hidden(target, taps, texts.tokens, folder / "hidden", progress) if folder and keeps else None
    batch_fn = partial(_batch, texts, streams, schedule.batch_size, seed)
    params = fit(loss, fresh, batch_fn, schedule, directory=folder and folder / "steps", **options)
    params = params if best is None else best.of_all(params)
    return draft._replace(params={**jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), params, own), **rest})


def _batch(texts: Continued, streams: np.ndarray | None, size: int, seed: int, step: int) -> dict[str, np.ndarray]:
    """Draw rows, a function of (seed, step) alone; prompts are masked."""
    index = np.random.default_rng((seed, step)).integers(0, len(texts.tokens), size)
    rows = texts.tokens[index]
    batch = {"tokens": rows, "mask": behind(texts.starts[index], rows.shape)}
    return batch if streams is None else batch | {"hidden": np.moveaxis(streams[index], 1, 0)}


def _measure(draft: Draft, rest: Params, target: Model, held_out: Continued, progress: bool, own: Params) -> float:
    value = accepted_tokens(draft._replace(params={**own, **rest}), target, held_out)
    if progress:
        tqdm.write(f"draft: {value:.3f} tokens of a window accepted on held-out text")
    return value


def _check_rows(*texts: Continued | None) -> None:
    for each in filter(None, texts):
        least, shape = int(np.max(each.prompt_length)) + 3, each.tokens.shape
        if len(shape) != 2 or not shape[0] or shape[1] < least:
            raise ValueError(f"expected tokens [n, T] with T >= {least} (prompt_length + 3), got shape {shape}")
