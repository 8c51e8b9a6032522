"""The whole recipe in one call: from the clients' private texts to a draft that decodes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tokenizers import Tokenizer

from jaxfed.core.lora import LoRA
from jaxfed.data.roles import split_text
from jaxfed.messages.privacy import Guarantee
from jaxspec.drafts import Draft
from jaxspec.federated._gather import UNSEEN, Distilling, gather
from jaxspec.federated._learning import check_top_k, learning_of
from jaxspec.federated._methods import FederatedMethod, Federation, method_of, one_draft
from jaxspec.federated._runs import best
from jaxspec.federated._sending import Send, sent_part
from jaxspec.federated._setup import VALIDATION, FederatedSetup, TrainingOutcome
from jaxspec.loading import save_draft, save_model
from jaxspec.methods.checks import check_pair
from jaxspec.models.base import Array, Model, Params
from jaxspec.models.vocabulary import check_trainable
from jaxspec.text import Text, tokens_of
from jaxspec.training import Recipe


@dataclass(frozen=True)
class FederatedSettings:
    """Settings of the whole recipe.

    Attributes:
        distilling: how the target labels the clients' text.
        federation: rounds, cohort, steps and learning rates.
        validation_share: share of the clients that do not train but choose the learning rate; at least one client.
        send: what clients send of a draft: all that is trained, its output head alone, or lora, low-rank updates.
        lora: rank and scale of low-rank updates.
        recipe: of eagle3.
    """

    distilling: Distilling = Distilling()
    federation: Federation = Federation()
    validation_share: float = 0.15
    send: Send = "all"
    lora: LoRA = LoRA()
    recipe: Recipe = Recipe()

    def __post_init__(self) -> None:
        if not 0 < self.validation_share < 1:
            raise ValueError(f"expected validation_share in (0, 1), got {self.validation_share}")


class FederatedDraft(NamedTuple):
    """A draft trained by ``federate``.

    Attributes:
        draft: network, parameters and text.
        acceptance: on the training clients' unseen text, "before" and "after", by ``metric``.
        outcome: of the chosen learning rate.
        guarantee: (ε, δ) of a private method.
        left_out: indices of the clients whose text is too short for a window.
        directory: the draft, if it was written.
        metric: "accepted_length", mean num_accepted per step (language models), or "accepted_tokens", mean over windows
            that begin at every token (drafts that read hidden states).
    """

    draft: Model | Draft
    acceptance: dict[str, float]
    outcome: TrainingOutcome
    guarantee: Guarantee | None
    left_out: list[int]
    directory: Path | None
    metric: str = "accepted_length"


def federate(
    target: Model,
    draft: Model | Draft,
    tokenizer: Tokenizer | Text,
    clients: Sequence[str],
    settings: FederatedSettings = FederatedSettings(),
    *,
    method: str | FederatedMethod = "fedspeed",
    directory: Path | None = None,
    progress: bool = True,
) -> FederatedDraft:
    """Train a draft on the clients' private texts, supervised by the target.

    The target continues windows of the first four fifths of each text (``Distilling``); the rest is unseen and measures
    the gain. The last clients do not train; they choose the learning rate from the grid.

    Args:
        target: is not changed.
        draft: start of the training: a language model, whose lookahead streams are trained too if it has them, or
            EAGLE, EAGLE-3, Medusa or Hydra, of which what ``fit_draft`` trains is trained, by the same loss.
        tokenizer: of both models.
        clients: one text per client.
        settings: of the recipe.
        method: a name in ``METHODS``, or a method of your own.
        directory: for the target's continuations, checkpoints, and the result in ``directory/draft``, which
            ``loading.load_model`` or ``loading.load_draft`` and the commands' ``--draft`` load. The same call resumes
            from there.
        progress: show bars.

    Raises:
        ValueError: target and draft do not match, the method makes several drafts, clients are fewer than a cohort, or
            a draft without an output head that is trained is to send that.
    """
    s, _ = settings, one_draft(method)
    _check_drafting(target, draft, s)
    texts, left_out = _long_enough(clients, tokenizer, s.distilling.prompt_tokens)
    num_validation = check_federation(method, s, len(texts), len(clients))
    guarantee = method_of(method).guarantee(s.federation, len(texts) - num_validation)
    train, validation = texts[:-num_validation], {VALIDATION: texts[-num_validation:]}
    directory = None if directory is None else Path(directory)
    problem = gather(target, tokenizer, train, validation, s.distilling, directory, progress, draft)
    runs = directory and directory / "runs"
    setup = FederatedSetup(
        draft, problem, s.federation, s.distilling.window, runs, progress, target, s.send, s.lora, s.recipe
    )
    outcome = best(setup, method)
    trained = draft._replace(params=outcome.params, text=_text_of(draft, tokenizer))
    acceptance = {"before": setup.before[UNSEEN], "after": setup.evaluate(trained.params)[UNSEEN]}
    folder = directory and directory / "draft"
    if folder is not None:
        save_model(trained, folder) if isinstance(trained, Model) else save_draft(trained, folder)
    return FederatedDraft(trained, acceptance, outcome, guarantee, left_out, folder, setup.metric)


def _check_drafting(target: Model, draft: Model | Draft, settings: FederatedSettings) -> None:
    """Check target, draft, what it learns from and what is sent of it, before a text is continued."""
    s = settings.distilling
    most = None if isinstance(draft, Model) else draft.drafter.max_window
    if isinstance(draft, Model):
        check_trainable(target, draft)
    learning = learning_of(draft, target, s.window, settings.recipe)
    check_pair(target, draft, min(s.window, most or s.window))
    size = target.network.config.vocab_size
    if (s.top_k or 1) > size:
        raise ValueError(f"expected top_k <= {size} (tokens of the vocabulary), got {s.top_k}")
    check_top_k(learning, s.top_k)
    sent_part(settings.send, learning.own, learning.loss, settings.lora)


def check_federation(
    method: str | FederatedMethod, settings: FederatedSettings, num_clients: int, total: int | None = None
) -> int:
    """Check method and settings before a model is loaded or a text is continued.

    Args:
        method: a name in ``METHODS``, or a method of your own.
        settings: of the recipe.
        num_clients: clients whose text is long enough.
        total: all clients, for the error message.

    Returns:
        The number of clients that do not train but choose the learning rate.

    Raises:
        ValueError: the method does not make one draft or rejects its settings, or clients are fewer than a cohort.
        ImportError: a private method without dp-accounting, the extra "privacy".
    """
    method, s = one_draft(method), settings.federation
    num_validation = max(1, round(settings.validation_share * num_clients))
    if num_clients - num_validation < s.cohort_size:
        raise ValueError(
            f"expected at least {s.cohort_size} clients (a cohort) with text long enough for two windows, besides "
            f"{num_validation} for validation, got {num_clients} of {total or num_clients}; lower cohort_size or "
            "prompt_tokens"
        )
    for rate in s.learning_rates:
        method.build(_unused_loss, s, rate)
    method.guarantee(s, num_clients - num_validation)
    return num_validation


def _unused_loss(params: Params, batch: Mapping[str, Array], key: Array) -> tuple[Array, dict[str, Array]]:
    """Return the loss of an algorithm that is only built to check its settings."""
    raise NotImplementedError


def _long_enough(clients: Sequence[str], tokenizer: Tokenizer | Text, length: int) -> tuple[list[str], list[int]]:
    """Return the texts of which both parts hold a window, and the indices of the others."""
    kept, left_out = [], []
    for index, text in enumerate(clients):
        try:
            parts: Sequence[str] = split_text(text)
        except ValueError:  # too short to be split
            parts = ()
        if parts and all(len(tokens_of(tokenizer, part)) >= length for part in parts):
            kept.append(text)
        else:
            left_out.append(index)
    return kept, left_out


def _text_of(draft: Model | Draft, tokenizer: Tokenizer | Text) -> Text:
    """Return the draft's own text handling, completed by the tokenizer where it has none."""
    text = tokenizer if isinstance(tokenizer, Text) else Text.of(tokenizer)
    if draft.text is None:
        return text
    return draft.text if draft.text.encode else text.completed(draft.text)
