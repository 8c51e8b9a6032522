"""``jaxspec federate``: train a draft on the clients' private texts."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import tyro

from jaxspec import federated
from jaxspec.cli._methods import Loaded, load
from jaxspec.cli.answers import Answers
from jaxspec.cli.checks import at_least, check_readable, check_writable
from jaxspec.cli.shared import Flag, report, with_tokenizer
from jaxspec.drafts import Draft, DraftSizes, fresh_draft
from jaxspec.models.base import Model
from jaxspec.zoo import PAIRS
from jaxspec.zoo.recipe import held_out_roles

#: Public prompts that the target answers for the vocabulary of a fresh draft.
PUBLIC = 128


def federate(
    out: Path = Path("out/federated"),
    target: str = PAIRS[0],
    draft: Path | None = None,
    texts: Path | None = None,
    clients: int | None = None,
    method: str = "fedspeed",
    streams: int | None = None,
    fresh: Annotated[DraftSizes, tyro.conf.arg(name="")] = DraftSizes(),
    settings: Annotated[federated.FederatedSettings, tyro.conf.arg(name="")] = federated.FederatedSettings(),
    json: Flag = False,  # noqa: A002  the flag is called --json
) -> None:
    """Train a draft on the clients' private texts, supervised by the target; an interrupted run resumes from OUT.

    Args:
        out: folder for checkpoints and the result OUT/draft, which --draft of other commands and convert read.
        target: name of an embedded pair, a folder written by train or convert, or a published checkpoint.
        draft: initial draft: a smaller model with the same vocabulary, or a folder of a draft that reads hidden states
            (written by train draft, or published). An embedded pair has its own.
        texts: JSON lines with "user" and "text" (a client per user), or a folder of .txt files (a client per file).
            Default: Shakespeare roles on which the embedded pair was not trained.
        clients: use only this many clients, the first ones.
        method: fedspeed, fedavg, scaffold, feddyn, centralised, fedspeed-dp, fedspeed-int8 or fedspeed-topk.
        streams: number of lookahead streams of the draft, which are trained too. Default: none for an embedded pair.
        fresh: a new draft of some kind, in place of --draft. A smaller vocabulary is of the target's answers to public
            prompts, those of train draft, so that no count of a client's tokens is sent.
        settings: all settings of the training.
        json: print one JSON object as the last line.
    """
    method = federated.method_of(method).name
    at_least(1, clients=clients)
    at_least(0, streams=streams)
    check_readable(texts)
    check_writable(out)
    by_client = federated.read_texts(texts) if texts else {role.user: role.text for role in held_out_roles()}
    names = list(by_client)[:clients]
    federated.check_federation(method, settings, len(names))
    _check_fresh(fresh, draft)
    models = load(target, draft, drafting_for=None if fresh.kind else "jaxspec federate")
    initial = _initial(models, fresh, streams, out, target)
    result = federated.federate(
        models.target,
        initial,
        with_tokenizer(models.target.text),
        [by_client[name] for name in names],
        settings,
        method=method,
        directory=out,
        progress=True,
    )
    report(_summary(result, method, settings.send, names), json)


def _check_fresh(fresh: DraftSizes, draft: Path | None) -> None:
    at_least(1, heads=fresh.heads, vocabulary=fresh.vocabulary, layers=fresh.layers)
    at_least(0, taps=fresh.taps, from_layers=fresh.from_layers)
    if fresh.kind is not None and draft is not None:
        raise ValueError(f"expected --kind or --draft, got {fresh.kind} and {draft}; leave one out")


def _initial(models: Loaded, fresh: DraftSizes, streams: int | None, out: Path, target: str) -> Model | Draft:
    """Return the draft that training starts from."""
    if fresh.kind is None:
        initial = models.drafting(streams)
        assert initial is not None  # checked by load
        return initial
    public = Answers(target, count=PUBLIC)
    return fresh_draft(models.target, fresh, lambda: public.written(models.target, out).answers)


def _summary(result: Any, method: str, send: str, names: list[str]) -> dict[str, Any]:
    outcome = result.outcome
    return {
        "method": method,
        "send": send,
        "metric": result.metric,
        "accepted": {name: round(value, 4) for name, value in result.acceptance.items()},
        "learning_rate": outcome.learning_rate,
        "validation": dict(zip(outcome.rounds, (round(value, 4) for value in outcome.accepted), strict=True)),
        "samples": outcome.samples,
        "bytes_a_client_a_round": outcome.message_bytes,
        "privacy": result.guarantee and asdict(result.guarantee),
        "left_out": [names[index] for index in result.left_out],
        "draft": str(result.directory),
    }
