"""Collect what the target predicts on the clients' texts, and cache it on disk."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from jaxfed.data.roles import split_text
from jaxspec.core.digests import digest
from jaxspec.core.files import kept
from jaxspec.drafts import Draft
from jaxspec.federated._examples import Continued, TopTokens, client_examples, top_tokens
from jaxspec.federated._learning import Learning, check_top_k, learning_of
from jaxspec.federated._methods import check_counts
from jaxspec.federated._setup import TextProblem
from jaxspec.generation import continued
from jaxspec.models.base import Model
from jaxspec.models.config import described
from jaxspec.text import Text, token_rows

UNSEEN = "unseen"
"""Name of the evaluation set made of the training clients' text that is not used for training."""


@dataclass(frozen=True)
class Distilling:
    """How the target labels the clients' text.

    Attributes:
        client_prompts: windows of each client's text that the target continues for training.
        test_prompts: windows of each client's unseen text, and of each evaluation text.
        prompt_tokens: length of a window.
        new_tokens: length of its continuation.
        window: γ of reported acceptance; continuations for evaluation are longer by γ tokens.
        top_k: train on the target's k most likely tokens and their probabilities, also in prompts; None: greedy tokens.
    """

    client_prompts: int = 12
    test_prompts: int = 4
    prompt_tokens: int = 32
    new_tokens: int = 64
    window: int = 7
    top_k: int | None = None

    def __post_init__(self) -> None:
        check_counts(self)


def gather(
    target: Model,
    tokenizer: Tokenizer | Text,
    clients: Sequence[str],
    evaluation: Mapping[str, Sequence[str]],
    settings: Distilling,
    directory: Path | None = None,
    progress: bool = True,
    draft: Model | Draft | None = None,
) -> TextProblem:
    """Label the clients' and the evaluation texts with the target, or read the labels from ``directory``.

    Args:
        target: the model that labels.
        tokenizer: of the target.
        clients: texts; the first part of each trains, the rest forms the evaluation set ``UNSEEN``.
        evaluation: further evaluation texts, by name of the set.
        settings: number and length of windows.
        directory: of the cache.
        progress: show a bar.
        draft: that the examples are for; a draft that reads hidden states of the target gets texts and these states, in
            place of labels. None: a language model.

    Raises:
        ValueError: a text is too short for a window, or ``top_k`` for a draft that reads hidden states.
    """
    if draft is not None:
        check_top_k(_learning(target, draft, settings, directory, progress), settings.top_k)
    s, halves = settings, [split_text(text) for text in clients]
    texts = {UNSEEN: [rest for _, rest in halves], **evaluation}
    train, owners = token_rows(tokenizer, [seen for seen, _ in halves], s.prompt_tokens, s.client_prompts)
    rows = {name: token_rows(tokenizer, each, s.prompt_tokens, s.test_prompts) for name, each in texts.items()}
    prompts = np.concatenate([train, *(prompts for prompts, _ in rows.values())])
    tokens, top = _labels(target, prompts, len(train), s, directory, progress)
    cuts = np.cumsum([len(train), *(len(prompts) for prompts, _ in rows.values())])[:-1]
    seen, *others = np.split(tokens, cuts)
    sets = {name: Continued(part, s.prompt_tokens) for name, part in zip(rows, others, strict=True)}
    sets[UNSEEN] = sets[UNSEEN]._replace(owners=np.asarray(rows[UNSEEN][1]))
    make = client_examples if draft is None else _learning(target, draft, s, directory, progress).examples
    return TextProblem(make(Continued(seen, s.prompt_tokens), owners, top), sets)


def _learning(target: Model, draft: Model | Draft, s: Distilling, directory: Path | None, progress: bool) -> Learning:
    return learning_of(draft, target, s.window, folder=directory and Path(directory) / "hidden", progress=progress)


def _labels(
    target: Model, prompts: np.ndarray, num_train: int, s: Distilling, directory: Path | None, progress: bool
) -> tuple[np.ndarray, TopTokens | None]:
    """Return the continuations of all prompts, and top tokens along the first ``num_train``; cached."""
    tokens = continued(target, prompts, s.new_tokens + s.window, progress, directory=directory).tokens
    if s.top_k is None:
        return tokens, None
    train = tokens[:num_train]
    name = f"laws-{digest(f'{described(target.network.config)} {train.shape} {s.top_k}', target.params, train)}"
    top = kept(directory, name, lambda: top_tokens(target, train, s.top_k or 1, progress)._asdict())
    return tokens, TopTokens(**top)
