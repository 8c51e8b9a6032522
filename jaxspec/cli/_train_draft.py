"""``jaxspec train draft``: a draft for any target, trained on the target's own continuations."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import tyro

from jaxspec.cli._methods import Loaded, load_language_models
from jaxspec.cli.checks import at_least, check_readable, check_writable
from jaxspec.cli.shared import PROMPT, prompts_of, with_tokenizer
from jaxspec.models.base import Model
from jaxspec.text import Text, token_rows
from jaxspec.text.prompts import Continued
from jaxspec.training import Schedule
from jaxspec.zoo import PAIRS

#: γ of reported acceptance.
WINDOW = 7
#: One of so many continuations is held out.
HELD_OUT = 8


@dataclass(frozen=True)
class DraftTraining:
    """What is trained for which target, and on what; of ``train draft`` only.

    Attributes:
        kind: eagle3, eagle, medusa, hydra and hydra++ read hidden states; plain is a language model, streams adds
            lookahead streams to one.
        target: name of an embedded pair, a folder written by train or convert, or a published checkpoint.
        draft: initial draft of plain and streams: a smaller model with the same vocabulary. A pair has its own.
        prompts: what the target answers. .jsonl with "prompt", "question", "messages" or "turns": whole prompts, put
            through the target's chat template if it has one. .txt files, folders of them, or JSON lines with "user" and
            "text": windows of these. Default: the training roles of the embedded pair.
        taps: layers before which eagle3 reads (others: one); default: 2, L//2, L−3 (others: the final hidden state).
        vocabulary: number of tokens that eagle3 drafts, the most frequent ones; default: all.
        heads: of medusa and hydra.
        count: how many prompts the target continues.
        new_tokens: longest continuation.
        schedule: optimiser steps; its sequence_length is not used.
    """

    kind: Literal["eagle3", "eagle", "medusa", "hydra", "hydra++", "plain", "streams"] = "eagle3"
    target: str = PAIRS[0]
    draft: Path | None = None
    prompts: Annotated[tuple[Path, ...], tyro.conf.arg(aliases=("--texts",))] = ()
    taps: tuple[int, ...] | None = None
    vocabulary: int | None = None
    heads: int = 4
    count: int = 512
    new_tokens: int = 96
    schedule: Schedule = field(default_factory=lambda: Schedule(learning_rate=1e-3))

    def check(self) -> None:
        """Check the numbers and paths before models are loaded.

        Raises:
            ValueError: a number below its minimum, a path that cannot be read.
        """
        at_least(1, heads=self.heads, vocabulary=self.vocabulary)
        at_least(0, taps=self.taps)
        at_least(2, count=self.count)
        at_least(WINDOW + 1, new_tokens=self.new_tokens)
        for path in self.prompts:
            check_readable(path)


class _Task(NamedTuple):
    """Models, continuations for training and held-out ones, and where to save."""

    models: Loaded
    texts: Continued
    held_out: Continued
    out: Path


def train_draft(settings: DraftTraining, out: Path) -> dict[str, Any]:
    """Train a draft, write it to ``out/draft``, and return figures; an interrupted run resumes from ``out``.

    Raises:
        ValueError: bad settings, a target without a tokenizer, texts shorter than a prompt, no initial draft for a kind
            that needs one, taps or a vocabulary that do not fit the target.
    """
    from jaxspec.federated import continued

    settings.check()
    check_writable(out)
    needs_draft = settings.kind in ("plain", "streams")
    use, initial = f"jaxspec train draft --kind {settings.kind}", settings.draft if needs_draft else None
    models = load_language_models(settings.target, initial, use, needs_draft)
    make = _MAKERS.get(settings.kind, _reading)
    prompts = _prompts(with_tokenizer(models.target.text), settings)
    texts = continued(models.target, prompts, settings.new_tokens, progress=True, directory=out)
    held = max(1, len(texts.tokens) // HELD_OUT)
    figures = make(settings, _Task(models, texts.rows(slice(held, None)), texts.rows(slice(held)), out))
    return {"kind": settings.kind, **figures, "draft": str(out / "draft")}


def _prompts(text: Text, settings: DraftTraining) -> list[list[int]]:
    """Return the prompts, shuffled."""
    from jaxspec.federated import read_roles, split_roles
    from jaxspec.zoo.recipe import held_out_ids

    if settings.prompts:
        ids = prompts_of(text, settings.count, settings.prompts)
        return [ids[place] for place in np.random.default_rng(0).permutation(len(ids))]
    texts = [role.text for role in split_roles(read_roles(), held_out_ids())[0]]
    rows, _ = token_rows(text, texts, PROMPT, -(-settings.count // len(texts)))
    return np.random.default_rng(0).permutation(rows)[: settings.count].tolist()


def _reading(settings: DraftTraining, task: _Task) -> dict[str, Any]:
    from jaxspec.drafts import frequent_tokens, init_draft
    from jaxspec.loading import save_draft
    from jaxspec.training import accepted_tokens, fit_draft

    target, count = task.models.target, settings.vocabulary
    ids = None if count is None else frequent_tokens(task.texts.tokens, count, target.network.config.vocab_size)
    kind: Any = settings.kind
    draft = init_draft(kind, target, taps=settings.taps, vocabulary=ids, heads=settings.heads)
    options: dict[str, Any] = {"schedule": settings.schedule, "directory": task.out}
    draft = fit_draft(draft, target, task.texts, held_out=task.held_out, **options)
    save_draft(draft, task.out / "draft")
    accepted = accepted_tokens(draft, target, task.held_out, window=WINDOW)
    return {"accepted": round(accepted, 4), "window": min(WINDOW, draft.drafter.max_window or WINDOW)}


def _plain(settings: DraftTraining, task: _Task) -> dict[str, Any]:
    from jaxspec.federated import client_examples
    from jaxspec.training import distillation_loss, fit

    draft, schedule = _initial(task), settings.schedule
    (examples,) = client_examples(task.texts, [0] * len(task.texts.tokens))

    def batch(step: int) -> dict[str, np.ndarray]:
        rows = np.random.default_rng((0, step)).integers(0, len(task.texts.tokens), schedule.batch_size)
        return {name: array[rows] for name, array in examples.items()}

    params = fit(distillation_loss(draft.network), draft.params, batch, schedule, directory=task.out / "steps")
    return _written(draft._replace(params=params), task)


def _streams(settings: DraftTraining, task: _Task) -> dict[str, Any]:
    from jaxspec.drafts import streaming
    from jaxspec.training import fit_streams

    draft = fit_streams(
        streaming(_initial(task)), task.texts.tokens, schedule=settings.schedule, directory=task.out / "steps"
    )
    return _written(draft, task)


def _initial(task: _Task) -> Model:
    assert task.models.language_model is not None  # checked by load_language_models
    return task.models.language_model


def _written(draft: Model, task: _Task) -> dict[str, Any]:
    from jaxspec.federated import accepted_length
    from jaxspec.loading import save_model

    save_model(draft, task.out / "draft")
    accepted = accepted_length(draft.network, draft.params, task.held_out, WINDOW)
    return {"accepted": round(accepted, 4), "window": WINDOW}


#: From a kind that reads no hidden states to its training.
_MAKERS: dict[str, Callable[[DraftTraining, _Task], dict[str, Any]]] = {"plain": _plain, "streams": _streams}
