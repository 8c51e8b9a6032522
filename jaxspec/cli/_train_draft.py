"""``jaxspec train draft``: a draft for any target, trained on the target's own continuations."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jaxspec.cli._methods import Loaded, load_language_models, two_devices
from jaxspec.cli._tuned import fastest, write_tuned
from jaxspec.cli.answers import Answers, divided
from jaxspec.cli.checks import at_least, check_writable
from jaxspec.drafts import Draft, DraftSizes, fresh_draft, known_tokens
from jaxspec.models.base import Model
from jaxspec.text.prompts import Continued
from jaxspec.training import Recipe, Schedule

#: γ of reported acceptance.
WINDOW = 7
#: Held-out prompts on which settings are compared.
TUNED_ON = 8


@dataclass(frozen=True)
class DraftTraining:
    """What is trained; of ``train draft`` and, but for the draft, ``train lens``.

    Attributes:
        kind: eagle3, eagle, medusa, hydra and hydra++ read hidden states; plain is a language model, streams adds
            lookahead streams to one; ngram counts what the target wrote and trains nothing.
        draft: initial draft of plain and streams: a smaller model with the same vocabulary. A pair has its own; plain
            without one is made of the target: its embedding, its head, few layers.
        layers: how many such a plain draft has, one number; default: as many as cost a tenth of the target's pass. Of
            train lens: layers before the exits, which are all trained in the same steps; the first exit is used by
            default. Default: half of the target's.
        from_layers: the target's layers that a plain draft starts from; default: random numbers.
        taps: layers before which eagle3 reads (others: one); default: 2, L//2, L−3 (others: the final hidden state).
        vocabulary: number of tokens that a draft or an exit knows, the most frequent ones; default: 8,192 of more than
            16,384, otherwise all.
        heads: of medusa and hydra.
        recipe: of eagle3; the first of its fields is how often it runs on its own output.
        schedule: optimiser steps; longer answers are cut to windows of its sequence_length.
        tune: end with what tune finds on held-out prompts, and write it to tuned.json, which generate follows; not for
            streams, nor train lens.
    """

    kind: Literal["eagle3", "eagle", "medusa", "hydra", "hydra++", "plain", "streams", "ngram"] = "eagle3"
    draft: Path | None = None
    layers: tuple[int, ...] = ()
    from_layers: tuple[int, ...] | None = None
    taps: tuple[int, ...] | None = None
    vocabulary: int | None = None
    heads: int = 4
    recipe: Recipe = Recipe()
    schedule: Schedule = field(default_factory=lambda: Schedule(learning_rate=1e-3))
    tune: bool = True

    def check(self) -> None:
        """Check the numbers before models are loaded.

        Raises:
            ValueError: a number below its minimum.
        """
        at_least(1, heads=self.heads, vocabulary=self.vocabulary, layers=self.layers or None)
        at_least(0, from_layers=self.from_layers)
        _number(self.layers)
        at_least(0, taps=self.taps)

    def num_tokens(self, vocab_size: int) -> int:
        """Return how many tokens of a vocabulary a draft or an exit knows."""
        return known_tokens(self.vocabulary, vocab_size)

    @property
    def sizes(self) -> DraftSizes:
        """Kind and sizes of a fresh draft."""
        assert self.kind != "streams"
        assert self.kind != "ngram"
        return DraftSizes(self.kind, _number(self.layers), self.from_layers, self.taps, self.vocabulary, self.heads)


class _Task(NamedTuple):
    """Models, what the target answers, its answers for training and held-out ones, and where to save."""

    models: Loaded
    answers: Answers
    texts: Continued
    held_out: Continued
    out: Path


def train_draft(answers: Answers, settings: DraftTraining, out: Path) -> dict[str, Any]:
    """Train a draft, write it to ``out/draft``, and return figures; an interrupted run resumes from ``out``.

    Raises:
        ValueError: bad settings, a target without a tokenizer, texts shorter than a prompt, no initial draft for a kind
            that needs one, taps or a vocabulary that do not fit the target.
    """
    settings.check()
    answers.check(WINDOW)
    check_writable(out)
    two_devices()
    use = f"jaxspec train draft --kind {settings.kind}"
    initial = settings.draft if settings.kind in ("plain", "streams") else None
    models = load_language_models(answers.target, initial, use, settings.kind == "streams")
    make: Any = {"streams": _streams, "ngram": _counted}.get(settings.kind, _fitted)
    texts, held_out = divided(answers.written(models.target, out))
    task = _Task(models, answers, texts, held_out, out)
    draft, figures = make(settings, task)
    figures = {"kind": settings.kind, **figures, "draft": str(out / "draft")}
    return figures | (_tuned(draft, task) if settings.tune and settings.kind != "streams" else {})


def _tuned(draft: Model | Draft, task: _Task) -> dict[str, Any]:
    """Return the fastest way to decode with a draft, on held-out prompts, and write it beside the draft."""
    target, rows = task.models.target, task.held_out.rows(slice(TUNED_ON))
    prompts = [row[:start].tolist() for row, start in zip(rows.tokens, rows.starts, strict=True)]
    try:
        found = fastest(task.models._replace(draft=draft), prompts, new_tokens=task.answers.new_tokens, progress=True)
    except ValueError as error:  # the draft is written; what follows is advice
        return {"tuned": f"not tuned: {error}"}
    write_tuned(task.out / "draft", found, target)
    return {"tuned": str(found), "over_plain": round(found.over(found.chosen, "plain decoding") or 1.0, 3)}


def _fitted(settings: DraftTraining, task: _Task) -> tuple[Model | Draft, dict[str, Any]]:
    """Train a draft on the target's hidden states."""
    from jaxspec.loading import save_draft, save_model
    from jaxspec.training import accepted_tokens, fit_draft, hidden_within
    from jaxspec.training.reading import MOST_HIDDEN

    options: dict[str, Any] = {"recipe": settings.recipe, "schedule": task.answers.timed(settings.schedule)}
    options |= {"directory": task.out, "hidden": task.answers.hidden(task.out)}
    draft = fit_draft(_fresh(settings, task), task.models.target, task.texts, held_out=task.held_out, **options)
    if isinstance(draft, Model):
        save_model(draft, task.out / "draft")
        return draft, {"accepted": _accepted(draft, task), "window": WINDOW}
    save_draft(draft, task.out / "draft")
    target, texts = task.models.target, task.held_out
    states = hidden_within(target, draft.drafter.reads.taps, texts.tokens, MOST_HIDDEN, options["hidden"])
    accepted = accepted_tokens(draft, target, texts, window=WINDOW, hidden=states)
    return draft, {"accepted": round(accepted, 4), "window": min(WINDOW, draft.drafter.max_window or WINDOW)}


def _fresh(settings: DraftTraining, task: _Task) -> Model | Draft:
    """Return the draft that training starts from."""
    if settings.kind == "plain" and task.models.language_model is not None:
        return task.models.language_model
    return fresh_draft(task.models.target, settings.sizes, lambda: task.texts.answers)


def _number(layers: tuple[int, ...]) -> int | None:
    if len(layers) > 1:
        raise ValueError(f"expected one number of layers for a draft, got {layers}; pass --from-layers to choose some")
    return layers[0] if layers else None


def _counted(settings: DraftTraining, task: _Task) -> tuple[Draft, dict[str, Any]]:
    """Count a table of n-grams."""
    from jaxspec.analysis import lookup_steps
    from jaxspec.drafts import ngram_table
    from jaxspec.loading import save_draft

    held = task.held_out
    table = ngram_table(task.texts, task.models.target.network.config.vocab_size)
    save_draft(table, task.out / "draft")
    texts = [row[row >= 0].tolist() for row in held.tokens]
    steps = lookup_steps(table, texts, held.starts.tolist(), WINDOW)
    return table, {"accepted": round(steps.accepted_length, 4), "window": WINDOW}


def _streams(settings: DraftTraining, task: _Task) -> tuple[Model, dict[str, Any]]:
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
    return draft, {"accepted": _accepted(draft, task), "window": WINDOW}


def _accepted(draft: Model, task: _Task) -> float:
    from jaxspec.federated import accepted_length

    return round(accepted_length(draft.network, draft.params, task.held_out, WINDOW), 4)
