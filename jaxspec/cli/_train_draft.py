"""``jaxspec train draft``: a draft for any target, trained on the target's own continuations."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import tyro

from jaxspec.cli._methods import Loaded, load_language_models
from jaxspec.cli.checks import at_least, check_readable, check_writable
from jaxspec.cli.shared import PROMPT, prompts_of, with_tokenizer
from jaxspec.drafts import Draft
from jaxspec.models.base import Model
from jaxspec.text import token_rows
from jaxspec.text.prompt_files import conversation_of
from jaxspec.text.prompts import Continued
from jaxspec.training import Recipe, Schedule
from jaxspec.zoo import PAIRS

#: γ of reported acceptance.
WINDOW = 7
#: One of so many continuations is held out.
HELD_OUT = 8
#: Most continuations that are held out.
MOST_HELD_OUT = 64
#: Tokens of a vocabulary from which on a head scores the most frequent ones alone, and how many.
LARGE, FREQUENT = 16_384, 8_192


@dataclass(frozen=True)
class DraftTraining:
    """What is trained for which target, and on what; of ``train draft`` and, but for the draft, ``train lens``.

    Attributes:
        kind: eagle3, eagle, medusa, hydra and hydra++ read hidden states; plain is a language model, streams adds
            lookahead streams to one.
        target: name of an embedded pair, a folder written by train or convert, or a published checkpoint.
        draft: initial draft of plain and streams: a smaller model with the same vocabulary. A pair has its own; plain
            without one is made of the target: its embedding, its head, few layers.
        layers: how many such a plain draft has, one number; default: as many as cost a tenth of the target's pass. Of
            train lens: layers before the exits, which are all trained in the same steps; the first exit is used by
            default. Default: half of the target's.
        from_layers: the target's layers that a plain draft starts from; default: random numbers.
        prompts: what the target answers. .jsonl with "prompt", "question", "messages" or "turns": whole prompts, put
            through the target's chat template if it has one. .txt files, folders of them, or JSON lines with "user" and
            "text": windows of these. Default: questions that an instruct model asks itself; for others, the training
            roles of the embedded pair.
        taps: layers before which eagle3 reads (others: one); default: 2, L//2, L−3 (others: the final hidden state).
        vocabulary: number of tokens that a draft or an exit knows, the most frequent ones; default: 8,192 of more than
            16,384, otherwise all.
        heads: of medusa and hydra.
        exclude: files of whole prompts that are not trained on, such as those of a benchmark.
        count: how many prompts the target continues.
        new_tokens: longest continuation.
        minutes: of optimiser steps, in place of the schedule's number of steps; the answers are written before. Of
            train lens: of it all, answers too, unless these have a folder of their own; default: 30.
        answers: folder where the target's answers and hidden states are kept, which several drafts and exits can share;
            default: OUT.
        recipe: of eagle3; the first of its fields is how often it runs on its own output.
        schedule: optimiser steps; longer answers are cut to windows of its sequence_length.
    """

    kind: Literal["eagle3", "eagle", "medusa", "hydra", "hydra++", "plain", "streams"] = "eagle3"
    target: str = PAIRS[0]
    draft: Path | None = None
    layers: tuple[int, ...] = ()
    from_layers: tuple[int, ...] | None = None
    prompts: Annotated[tuple[Path, ...], tyro.conf.arg(aliases=("--texts",))] = ()
    taps: tuple[int, ...] | None = None
    vocabulary: int | None = None
    heads: int = 4
    exclude: tuple[Path, ...] = ()
    count: int = 512
    new_tokens: int = 96
    minutes: float | None = None
    answers: Path | None = None
    recipe: Recipe = Recipe()
    schedule: Schedule = field(default_factory=lambda: Schedule(learning_rate=1e-3))

    def check(self) -> None:
        """Check the numbers and paths before models are loaded.

        Raises:
            ValueError: a number below its minimum, a path that cannot be read.
        """
        at_least(1, heads=self.heads, vocabulary=self.vocabulary, layers=self.layers or None)
        at_least(0, from_layers=self.from_layers)
        _number(self.layers)
        if self.minutes is not None and self.minutes <= 0:
            raise ValueError(f"expected minutes > 0, got {self.minutes}")
        at_least(0, taps=self.taps)
        at_least(2, count=self.count)
        at_least(WINDOW + 1, new_tokens=self.new_tokens)
        for path in (*self.prompts, *self.exclude):
            check_readable(path)

    @property
    def timed(self) -> Schedule:
        """The schedule, for so many minutes."""
        return self.schedule if self.minutes is None else replace(self.schedule, minutes=self.minutes)


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
    use = f"jaxspec train draft --kind {settings.kind}"
    initial = settings.draft if settings.kind in ("plain", "streams") else None
    models = load_language_models(settings.target, initial, use, settings.kind == "streams")
    make = _streams if settings.kind == "streams" else _fitted
    folder = settings.answers or out
    prompts = training_prompts(models.target, settings, folder)
    texts = continued(models.target, prompts, settings.new_tokens, progress=True, directory=folder)
    held = min(MOST_HELD_OUT, max(1, len(texts.tokens) // HELD_OUT))
    figures = make(settings, _Task(models, texts.rows(slice(held, None)), texts.rows(slice(held)), out))
    return {"kind": settings.kind, **figures, "draft": str(out / "draft")}


def training_prompts(target: Model, settings: DraftTraining, out: Path) -> list[list[int]]:
    """Return the prompts, shuffled."""
    from jaxspec.federated import read_roles, split_roles
    from jaxspec.generation import own_questions
    from jaxspec.generation.requests import encoded
    from jaxspec.zoo.recipe import held_out_ids

    text = with_tokenizer(target.text)
    if settings.prompts:
        ids = prompts_of(text, settings.count, settings.prompts, settings.exclude)
        return [ids[place] for place in np.random.default_rng(0).permutation(len(ids))]
    if text.template is not None and text.stop:
        questions = own_questions(target, settings.count, progress=True, directory=out)
        return [row.tolist() for row in encoded([conversation_of(each) for each in questions], text)]
    texts = [role.text for role in split_roles(read_roles(), held_out_ids())[0]]
    rows, _ = token_rows(text, texts, PROMPT, -(-settings.count // len(texts)))
    return np.random.default_rng(0).permutation(rows)[: settings.count].tolist()


def _fitted(settings: DraftTraining, task: _Task) -> dict[str, Any]:
    """Train a draft on the target's hidden states."""
    from jaxspec.loading import save_draft, save_model
    from jaxspec.training import accepted_tokens, fit_draft

    options: dict[str, Any] = {"recipe": settings.recipe, "schedule": settings.timed}
    options |= {"directory": task.out, "hidden": (settings.answers or task.out) / "hidden"}
    draft = fit_draft(_fresh(settings, task), task.models.target, task.texts, held_out=task.held_out, **options)
    if isinstance(draft, Model):
        save_model(draft, task.out / "draft")
        return {"accepted": _accepted(draft, task), "window": WINDOW}
    save_draft(draft, task.out / "draft")
    accepted = accepted_tokens(draft, task.models.target, task.held_out, window=WINDOW)
    return {"accepted": round(accepted, 4), "window": min(WINDOW, draft.drafter.max_window or WINDOW)}


def _fresh(settings: DraftTraining, task: _Task) -> Model | Draft:
    """Return the draft that training starts from."""
    from jaxspec.drafts import frequent_tokens, init_draft, small_draft

    target, kind, given = task.models.target, settings.kind, task.models.language_model
    if kind == "plain" and given is not None:
        return given
    size = target.network.config.vocab_size
    count = settings.vocabulary or (FREQUENT if size > LARGE else size)
    ids = None if count >= size else frequent_tokens(task.texts.tokens, count, size)
    if kind == "plain":
        return small_draft(
            target, num_layers=_number(settings.layers), from_layers=settings.from_layers, vocabulary=ids
        )
    assert kind != "streams"
    return init_draft(kind, target, taps=settings.taps, vocabulary=ids, heads=settings.heads)


def _number(layers: tuple[int, ...]) -> int | None:
    if len(layers) > 1:
        raise ValueError(f"expected one number of layers for a draft, got {layers}; pass --from-layers to choose some")
    return layers[0] if layers else None


def _streams(settings: DraftTraining, task: _Task) -> dict[str, Any]:
    from jaxspec.drafts import streaming
    from jaxspec.loading import save_model
    from jaxspec.training import fit_streams

    assert task.models.language_model is not None  # checked by load_language_models
    draft = fit_streams(
        streaming(task.models.language_model),
        task.texts.tokens,
        schedule=settings.schedule,
        directory=task.out / "steps",
    )
    save_model(draft, task.out / "draft")
    return {"accepted": _accepted(draft, task), "window": WINDOW}


def _accepted(draft: Model, task: _Task) -> float:
    from jaxspec.federated import accepted_length

    return round(accepted_length(draft.network, draft.params, task.held_out, WINDOW), 4)
