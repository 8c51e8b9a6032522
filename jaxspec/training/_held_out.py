"""Acceptance on held-out text during training, and the best parameters by it."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxfed import checkpoint
from jaxspec.drafts.base import Draft
from jaxspec.models.base import Array, Model, Network, Params
from jaxspec.text.prompts import Continued, behind
from jaxspec.training._hidden import Hidden
from jaxspec.training._rows import TextRows, batches
from jaxspec.training._trained import as_float32, network_of
from jaxspec.training._unroll import fused, lesson, shifted, unroll
from jaxspec.training.losses import hidden_states, texts_at_once


def accepted_tokens(
    draft: Model | Draft,
    target: Model,
    tokens: np.ndarray | Continued,
    *,
    prompt_length: int = 0,
    window: int = 7,
    batch_size: int | None = None,
    hidden: Hidden | None = None,
) -> float:
    """Return how many tokens of a window a target accepts on average of a draft, by greedy decoding along texts.

    A window begins at every token, so that the mean is over places, not over steps of a decoder. No text is generated.

    Args:
        draft: a language model, or one that reads hidden states of the target.
        target: what the draft's tokens are compared with.
        tokens: best the target's greedy continuations: [n, T], −1 behind the end of a text, or with the length of each
            prompt.
        prompt_length: tokens of each text [n, T] at which no window begins.
        window: tokens drafted, at most as many as the draft has heads.
        batch_size: texts at a time; default: ``texts_at_once``, at most 8.
        hidden: the target's streams along the texts, if they are known: those that the draft reads, and the last.

    Raises:
        ValueError: a draft of another kind or for another target, a window below 1, or texts too short for a window.
    """
    texts = Continued.of(tokens, prompt_length)
    return mean_window(*window_counts(draft, target, texts, window=window, batch_size=batch_size, hidden=hidden))


def mean_window(right: np.ndarray, places: np.ndarray) -> float:
    """Return Σ_depth right / places, the mean number of accepted tokens, from counts [γ]."""
    return float(np.sum(right / np.maximum(places, 1)))


def window_counts(
    draft: Model | Draft,
    target: Model,
    texts: Continued,
    *,
    window: int = 7,
    batch_size: int | None = None,
    hidden: Hidden | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return at how many places all tokens of a window up to each depth are right, and how many there are: [γ] each.

    The arguments are those of ``accepted_tokens``, which is ``mean_window`` of the counts. Counts of several texts, or
    of several drafts, can be added.

    Raises:
        ValueError: as of ``accepted_tokens``.
    """
    network: Any = draft.network if isinstance(draft, Model) else network_of(draft, target)
    depth = None if isinstance(draft, Model) else network.depth
    rows, most, size = texts.tokens, int(np.max(texts.prompt_length)), min(window, depth or window)
    if size < 1 or rows.ndim != 2 or rows.shape[1] < most + size + 1:
        raise ValueError(
            f"expected a window >= 1 and texts [n, T] with T > prompt_length + window, got window {window}, "
            f"prompt_length {most} and shape {rows.shape}"
        )
    count = partial(_counts, network, target.network, size, draft.params, target.params)
    mask = behind(texts.prompt_length, rows.shape)
    most = texts_at_once(target.network.config.vocab_size, rows.shape[1], 8)
    read = TextRows(texts, hidden, rows.shape[1]).hidden
    parts = [
        count(rows[index], mask[index], read(index))
        for (index,) in batches((np.arange(len(rows)),), batch_size or most)
    ]
    right, places = np.sum(jax.device_get(parts), axis=0)
    return right, places


@partial(jax.jit, static_argnums=(0, 1, 2))
def _counts(
    network: Any, of: Network, window: int, params: Params, of_params: Params, tokens: Array, mask: Array, hidden: Any
) -> tuple[Array, Array]:
    """Return where all tokens of a window up to each depth are right, and where there is such a token: [γ] each."""
    if isinstance(network, Network):
        return _chained(network, of, window, params, of_params, tokens, mask, hidden)
    batch = {"tokens": tokens, "mask": mask} | hidden
    taught = lesson(Model(of, of_params), network.reads, batch)
    taught, params = taught._replace(features=as_float32(taught.features)), as_float32(params)
    best = jnp.argmax(of.logits(of_params, taught.last), axis=0)
    hit, counts = jnp.ones(tokens.shape, bool), []
    for depth, x in enumerate(unroll(network, params, fused(network, params, taught), taught, window)):
        hit &= jnp.argmax(network.logits(params, x, depth), axis=0) == shifted(best, depth + 1)
        counted = shifted(taught.counted, 2) & shifted(taught.present, depth + 2)
        counts.append((jnp.sum(hit & counted), jnp.sum(counted)))
    right, places = zip(*counts, strict=True)
    return jnp.stack(right), jnp.stack(places)


def _chained(
    network: Network,
    of: Network,
    window: int,
    params: Params,
    of_params: Params,
    tokens: Array,
    mask: Array,
    hidden: Any,
) -> tuple[Array, Array]:
    """Return the same of a language model: drafted tokens are right as long as those before them are the text's."""
    text, present = jnp.maximum(tokens, 0), tokens >= 0
    x = jnp.moveaxis(hidden["hidden"][-1], -1, 0) if hidden else hidden_states(of, of_params, text)[-1]
    best, params = jnp.argmax(of.logits(of_params, x), axis=0), as_float32(params)
    own = jnp.argmax(network.logits(params, hidden_states(network, params, text)[-1]), axis=0)
    hit, counts = jnp.ones(tokens.shape, bool), []
    for depth in range(window):
        hit &= shifted(own == best, depth)
        counted = shifted(mask & present, 1) & shifted(present, depth + 1)
        counts.append((jnp.sum(hit & counted), jnp.sum(counted)))
    right, places = zip(*counts, strict=True)
    return jnp.stack(right), jnp.stack(places)


class Best:
    """The best parameters so far by a measure that is taken every so many steps; on disk too, with a directory.

    Attributes:
        params: the best.
        value: of the measure.
        step: after which they were found.
    """

    def __init__(
        self, measure: Callable[[Params], float], params: Params, every: int, patience: int, directory: Path | None
    ):
        self.params, self.value, self.step = params, -np.inf, 0
        self._measure, self._every, self._patience, self._directory = measure, every, patience, directory
        if directory is not None and (last := checkpoint.latest(directory)) is not None:
            self.params, self.step = checkpoint.load(directory, like=params, step=last), last
            self.value = float(checkpoint.manifest(directory, last).metadata["value"])

    def __call__(self, step: int, params: Params) -> bool:
        """Measure, if it is time to; return whether the last ``patience`` measures found nothing better."""
        if step % self._every:
            return False
        value = self._measure(params)
        if value > self.value:
            self.params, self.value, self.step = params, value, step
            if self._directory is not None:
                with checkpoint.Writer(self._directory, kind="training", keep=1) as writer:
                    writer.save(step, params, {"value": value})
        return step - self.step >= self._patience * self._every

    def of_all(self, last: Params) -> Params:
        """Measure the last parameters too, and return the best of all."""
        return last if self._measure(last) > self.value else self.params
