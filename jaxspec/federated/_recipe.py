"""The recipe: from clients' private text to a draft that decodes, in one call."""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tokenizers import Tokenizer

from jaxfed.data.roles import split_text
from jaxfed.messages.privacy import Guarantee
from jaxspec.federated._examples import Continued, Laws, client_examples, continued, laws
from jaxspec.federated._methods import Federation, Method, check_counts, method_of
from jaxspec.federated._runs import VALIDATION, Outcome, Problem, Setup, best
from jaxspec.loading.store import save_model
from jaxspec.methods.checks import check_pair
from jaxspec.models.base import Array, Model, Params
from jaxspec.models.vocabulary import check_trainable
from jaxspec.text import Text, token_rows, tokens_of

#: The judge of what was gained: text of the training clients that nobody trained on.
UNSEEN = "unseen"


@dataclass(frozen=True)
class Distilling:
    """What the target says of clients' text.

    Attributes:
        client_prompts: windows of each client's text that it continues for training.
        test_prompts: windows of each client's unseen text, and of each judge's.
        prompt_tokens: length of a window.
        new_tokens: length of its continuation.
        window: γ of reported acceptance; judges' continuations are so much longer.
        top_k: cache the target's first k next tokens with their probabilities, and learn these; None: learn its own
            greedy token. A draft learns after the tokens of the prompt as well if there are probabilities.
    """

    client_prompts: int = 12
    test_prompts: int = 4
    prompt_tokens: int = 32
    new_tokens: int = 64
    window: int = 7
    top_k: int | None = None

    def __post_init__(self) -> None:
        check_counts(self)


@dataclass(frozen=True)
class Settings:
    """The whole recipe.

    Attributes:
        distilling: what the target says of clients' text.
        federation: rounds, cohort, steps and learning rates.
        validation_share: clients who do not train, but choose the learning rate; at least one.
    """

    distilling: Distilling = Distilling()
    federation: Federation = Federation()
    validation_share: float = 0.15

    def __post_init__(self) -> None:
        if not 0 < self.validation_share < 1:
            raise ValueError(f"expected validation_share in (0, 1), got {self.validation_share}")


class Federated(NamedTuple):
    """A federated draft.

    Attributes:
        draft: network, parameters and text.
        acceptance: mean num_accepted a step on the training clients' unseen text, "before" and "after".
        outcome: of the chosen learning rate.
        guarantee: (ε, δ) of a private method.
        left_out: clients, by their place, whose text is too short for a window.
        directory: checkpoint of the draft, if there is one.
    """

    draft: Model
    acceptance: dict[str, float]
    outcome: Outcome
    guarantee: Guarantee | None
    left_out: list[int]
    directory: Path | None


def federate(
    target: Model,
    draft: Model,
    tokenizer: Tokenizer | Text,
    clients: Sequence[str],
    settings: Settings = Settings(),  # noqa: B008  a frozen default
    *,
    method: str | Method = "fedspeed",
    directory: Path | None = None,
    progress: bool = True,
) -> Federated:
    """Federates a draft over clients' private texts, supervised by what the target says there.

    The target continues windows of the first four fifths of each text (``Distilling``); the rest is unseen and tells
    what was gained. The last clients do not train; they choose the learning rate of the grid.

    Args:
        target: stays as it is.
        draft: where training starts; if it has lookahead streams they are trained along.
        tokenizer: of both.
        clients: one text for each.
        settings: the recipe.
        method: a name of ``METHODS``, or a method of one's own.
        directory: for the target's words, checkpoints, and the result in ``directory/draft``, which
            ``models.store.load_model`` and the commands' ``--draft`` load. The same call goes on from there.
        progress: show bars.

    Raises:
        ValueError: a pair that does not fit, a method that makes no single draft, fewer clients than a cohort.
        ImportError: a private method without dp-accounting, the extra "privacy".
    """
    method, s = method_of(method), settings
    check_pair(target, draft, s.distilling.window)
    check_trainable(target, draft)
    size = target.network.config.vocab_size
    if (s.distilling.top_k or 1) > size:
        raise ValueError(f"expected top_k <= {size} (tokens of the vocabulary), got {s.distilling.top_k}")
    texts, left_out = long_enough(clients, tokenizer, s.distilling.prompt_tokens)
    judges = check_plan(method, s, len(texts), len(clients))
    guarantee = method.guarantee(s.federation, len(texts) - judges)
    validation = {VALIDATION: texts[-judges:]}
    problem = gather(target, tokenizer, texts[:-judges], validation, s.distilling, directory, progress)
    runs = None if directory is None else Path(directory) / "runs"
    setup = Setup(draft, problem, s.federation, s.distilling.window, runs, progress)
    outcome = best(setup, method)
    text = tokenizer if isinstance(tokenizer, Text) else Text.of(tokenizer)
    if draft.text is not None:
        text = draft.text if draft.text.encode else text.completed(draft.text)
    made = Model(draft.network, outcome.params, text)
    acceptance = {"before": setup.before[UNSEEN], "after": setup.judge(made.params)[UNSEEN]}
    if directory is None:
        return Federated(made, acceptance, outcome, guarantee, left_out, None)
    folder = Path(directory) / "draft"
    save_model(made, folder)
    return Federated(made, acceptance, outcome, guarantee, left_out, folder)


def check_plan(method: str | Method, settings: Settings, clients: int, of: int | None = None) -> int:
    """Refuses a plan that cannot be carried out, before anything is loaded or the target has said a word.

    Args:
        method: a name of ``METHODS``, or a method of one's own.
        settings: the recipe.
        clients: how many have text enough.
        of: so many.

    Returns:
        How many of the clients do not train, but choose the learning rate.

    Raises:
        ValueError: a method that makes no single draft or refuses its settings, fewer clients than a cohort.
        ImportError: a private method without dp-accounting, the extra "privacy".
    """
    method, s = method_of(method), settings.federation
    if method.training == "alone":
        raise ValueError(
            f"expected a method that makes one draft, got {method.name!r}, which makes one for every client; "
            "jaxspec.federated.run judges these"
        )
    judges = max(1, round(settings.validation_share * clients))
    if clients - judges < s.cohort_size:
        raise ValueError(
            f"expected at least {s.cohort_size} clients (a cohort) with text enough for two windows, beside "
            f"{judges} for validation, got {clients} of {of or clients}; lower cohort_size or prompt_tokens"
        )
    for rate in s.learning_rates:
        method.build(_unasked, s, rate)
    method.guarantee(s, clients - judges)
    return judges


def _unasked(params: Params, batch: Mapping[str, Array], key: Array) -> tuple[Array, dict[str, Array]]:
    """The loss of an algorithm that is made so that it checks its settings, and never run."""
    raise NotImplementedError


def long_enough(clients: Sequence[str], tokenizer: Tokenizer | Text, length: int) -> tuple[list[str], list[int]]:
    """Texts of which both parts hold a window, and the places of the others."""
    kept, left_out = [], []
    for place, text in enumerate(clients):
        try:
            enough = all(len(tokens_of(tokenizer, part)) >= length for part in split_text(text))
        except ValueError:  # too short to be split
            enough = False
        kept += [text] if enough else []
        left_out += [] if enough else [place]
    return kept, left_out


def gather(
    target: Model,
    tokenizer: Tokenizer | Text,
    clients: Sequence[str],
    judges: Mapping[str, Sequence[str]],
    settings: Distilling,
    directory: Path | None = None,
    progress: bool = True,
) -> Problem:
    """What the target says of clients' and judges' texts; kept in ``directory``, and read from there again.

    Args:
        target: who speaks.
        tokenizer: its tokenizer.
        clients: texts that train with their first part and are judged, as ``UNSEEN``, by the rest.
        judges: more texts by name, which only judge.
        settings: how much of it.
        directory: of the cache.
        progress: show a bar.

    Raises:
        ValueError: a text that is too short for a window.
    """
    s, halves = settings, [split_text(text) for text in clients]
    texts = {UNSEEN: [rest for _, rest in halves], **judges}
    train, owners = token_rows(tokenizer, [seen for seen, _ in halves], s.prompt_tokens, s.client_prompts)
    rows = {name: token_rows(tokenizer, each, s.prompt_tokens, s.test_prompts) for name, each in texts.items()}
    prompts = np.concatenate([train, *(prompts for prompts, _ in rows.values())])
    said, target_laws = _said(target, prompts, len(train), s, directory, progress)
    cuts = np.cumsum([len(train), *(len(prompts) for prompts, _ in rows.values())])[:-1]
    seen, *unseen = np.split(said, cuts)
    found = {name: Continued(part, s.prompt_tokens) for name, part in zip(rows, unseen, strict=True)}
    found[UNSEEN] = found[UNSEEN]._replace(owners=np.asarray(rows[UNSEEN][1]))
    return Problem(client_examples(Continued(seen, s.prompt_tokens), owners, target_laws), found)


def _said(
    target: Model, prompts: np.ndarray, count: int, s: Distilling, directory: Path | None, progress: bool
) -> tuple[np.ndarray, Laws | None]:
    """Continuations of all prompts, and laws along the first ``count``; cached."""
    new, digest = s.new_tokens + s.window, _digest(target, prompts, s.new_tokens + s.window)
    said = _cached(directory, f"said-{digest}", lambda: {"tokens": continued(target, prompts, new, progress).tokens})
    if s.top_k is None:
        return said["tokens"], None
    k, along = s.top_k, said["tokens"][:count]
    found = _cached(directory, f"laws-{digest}-{count}-{k}", lambda: laws(target, along, k, progress)._asdict())
    return said["tokens"], Laws(**found)


def _digest(target: Model, prompts: np.ndarray, new_tokens: int) -> str:
    """Of everything that the target's words depend on; of every parameter, evenly spread numbers."""
    stop = sorted(target.text.stop) if target.text else []
    found = hashlib.sha256(f"{target.network.config} {prompts.shape} {new_tokens} {stop}".encode())
    for leaf in jax.tree.leaves(target.params):
        part = np.asarray(leaf.ravel()[:: max(1, leaf.size // 4096)])
        found.update(f"{leaf.shape} {part.dtype}".encode() + part.tobytes())
    return hashlib.sha256(found.digest() + prompts.tobytes()).hexdigest()[:12]


def _cached(directory: Path | None, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Arrays by name from a file, or made and written there."""
    path = None if directory is None else Path(directory) / f"{name}.npz"
    if path is not None and path.exists():
        with np.load(path) as file:
            return dict(file)
    arrays = make()
    if path is not None:
        _write(path, arrays)
    return arrays


def _write(path: Path, arrays: Mapping[str, Any]) -> None:
    """A whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, **arrays)
    os.replace(partial, path)
