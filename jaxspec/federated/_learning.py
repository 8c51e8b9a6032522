"""How a draft learns from the clients' texts and how it is measured: the one place that knows the kinds of drafts."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxspec.drafts import Draft
from jaxspec.federated._examples import Continued, Examples, TopTokens, client_examples, mean_accepted
from jaxspec.models.base import Array, Model, Params
from jaxspec.text.prompts import behind
from jaxspec.training import (
    Hidden,
    LossFn,
    Recipe,
    as_float32,
    draft_loss,
    draft_task,
    hidden_within,
    mean_window,
    window_counts,
)

#: Most bytes of the target's hidden states along all clients' texts, or a set of evaluation texts, that are kept.
MOST_RESIDENT = 1 << 30

#: (a client's texts, their clients, the target's top tokens) → examples of each client.
MakeExamples = Callable[[Continued, Sequence[int], TopTokens | None], list[Examples]]
#: (evaluation texts, parameters of a draft with the rows that it is measured on) → mean accepted tokens.
Accepted = Callable[[Continued, Sequence[tuple[Params, Any]]], float]


class Learning(NamedTuple):
    """How a draft learns and is measured.

    Attributes:
        metric: "accepted_length", mean num_accepted per step of decoding, of language models; "accepted_tokens", mean
            over windows that begin at every token, of drafts that read hidden states.
        own: parameters that are trained.
        rest: the others, by name.
        loss: of ``own``; a batch has an example mask.
        examples: makes the clients' examples.
        accepted: measures drafts on evaluation texts.
        needs: name of an array that only its own examples have.
    """

    metric: str
    own: Params
    rest: Params
    loss: LossFn
    examples: MakeExamples
    accepted: Accepted
    needs: str

    def whole(self, own: Params) -> Params:
        """Return all parameters of the draft."""
        return {**own, **self.rest} if self.rest else own


def learning_of(
    draft: Model | Draft,
    target: Model | None,
    window: int,
    recipe: Recipe = Recipe(),  # noqa: B008  a frozen default
    folder: Path | None = None,
    progress: bool = False,
) -> Learning:
    """Return how a draft learns: from labels; or as by ``fit_draft``, if it reads hidden states or scores few tokens.

    Args:
        draft: a language model, EAGLE, EAGLE-3, Medusa or Hydra.
        target: of the drafts that learn as ``fit_draft`` does; others need none.
        window: γ of acceptance.
        recipe: of EAGLE-3.
        folder: of the target's hidden states; None: they are kept in memory.
        progress: show bars.

    Raises:
        ValueError: no target where one is needed, or a draft of another kind or for another target.
    """
    if isinstance(draft, Model):
        accepted = partial(_accepted_length, draft, window)
        if not draft.network.config.ends.head_tokens:
            loss = draft_loss(draft.network)
            return Learning("accepted_length", draft.params, {}, loss, client_examples, accepted, "labels")
    if target is None:
        raise ValueError("expected a target for a draft that learns from its hidden states, got none; pass target=")
    taps = () if isinstance(draft, Model) else draft.drafter.reads.taps
    task, known = draft_task(draft, target, recipe), _Known(target, taps, folder, progress)
    examples, loss = partial(_text_examples, known), _of_clients(task.loss)
    if isinstance(draft, Model):
        return Learning("accepted_length", task.own, task.rest, loss, examples, accepted, "answers")
    tokens = partial(_accepted_tokens, draft, target, window, known)
    return Learning("accepted_tokens", as_float32(task.own), task.rest, loss, examples, tokens, "answers")


def check_top_k(learning: Learning, top_k: int | None) -> None:
    """Raise ValueError for top tokens of a draft that learns the target's whole distribution."""
    if top_k is not None and learning.needs != "labels":
        raise ValueError(
            f"expected top_k None for a draft that learns the target's whole distribution, got {top_k}; leave it out"
        )


class _Known:
    """The target's hidden states along texts, computed once; None for texts that would take ``MOST_RESIDENT``."""

    def __init__(self, target: Model, taps: tuple[int, ...], folder: Path | None, progress: bool):
        self._read = partial(hidden_within, target, taps, most=MOST_RESIDENT, folder=folder, progress=progress)
        self._sets: dict[bytes, Hidden | None] = {}

    def along(self, texts: Continued) -> Hidden | None:
        """Return those of some texts, and keep them in memory."""
        name = texts.tokens.tobytes()
        if name not in self._sets:
            self._sets[name] = self._read(texts.tokens)
        return self._sets[name]


def _text_examples(known: _Known, data: Continued, owners: Sequence[int], top: TopTokens | None) -> list[Examples]:
    """Return ``tokens`` [n, T], ``answers`` [n, T], those behind the prompts, and ``hidden`` [n, S, T, D] if known."""
    arrays = {"tokens": data.tokens, "answers": behind(data.prompt_length, data.tokens.shape)}
    if (hidden := known.along(data)) is not None:
        arrays["hidden"] = hidden.along(data.tokens.shape[1])
    owner = np.asarray(owners)
    return [{name: array[owner == client] for name, array in arrays.items()} for client in np.unique(owner)]


def _of_clients(loss_fn: LossFn) -> LossFn:
    """Return the loss of a batch of clients' examples: those that the batching's mask leaves out have no token."""

    def loss_of_examples(own: Params, batch: Mapping[str, Array], key: Array) -> tuple[Array, dict[str, Array]]:
        present = batch["mask"][:, None] if "mask" in batch else True
        texts = {"tokens": jnp.where(present, batch["tokens"], -1), "mask": batch["answers"]}
        if "hidden" in batch:
            texts["hidden"] = jnp.moveaxis(batch["hidden"], 1, 0)
        return loss_fn(own, texts, key)

    return loss_of_examples


def _accepted_length(draft: Model, window: int, data: Continued, parts: Sequence[tuple[Params, Any]]) -> float:
    return mean_accepted([(params, data.rows(index)) for params, index in parts], draft.network, window)


def _accepted_tokens(
    draft: Draft, target: Model, window: int, known: _Known, data: Continued, parts: Sequence[tuple[Params, Any]]
) -> float:
    hidden, counts = known.along(data), []
    for params, index in parts:
        own = None if hidden is None else hidden.rows(index)
        each = draft._replace(params=params)
        counts.append(window_counts(each, target, data.rows(index), window=window, hidden=own))
    return mean_window(*np.sum(counts, axis=0))
