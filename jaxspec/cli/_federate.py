"""``jaxspec federate``: train a draft on the clients' private texts."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import tyro

from jaxspec import federated
from jaxspec.cli._methods import load_language_models
from jaxspec.cli.checks import at_least, check_readable, check_writable
from jaxspec.cli.shared import Flag, report, with_tokenizer
from jaxspec.models.base import Model
from jaxspec.zoo import PAIRS
from jaxspec.zoo.recipe import held_out_roles


def federate(
    out: Path = Path("out/federated"),
    target: str = PAIRS[0],
    draft: Path | None = None,
    texts: Path | None = None,
    clients: int | None = None,
    method: str = "fedspeed",
    streams: int | None = None,
    settings: Annotated[federated.FederatedSettings, tyro.conf.arg(name="")] = federated.FederatedSettings(),
    json: Flag = False,  # noqa: A002  the flag is called --json
) -> None:
    """Train a draft on the clients' private texts, supervised by the target; an interrupted run resumes from OUT.

    Args:
        out: folder for checkpoints and the result OUT/draft, which --draft of other commands and convert read.
        target: name of an embedded pair, a folder written by train or convert, or a published checkpoint.
        draft: initial draft: a smaller model with the same vocabulary. An embedded pair has its own.
        texts: JSON lines with "user" and "text" (a client per user), or a folder of .txt files (a client per file).
            Default: Shakespeare roles on which the embedded pair was not trained.
        clients: use only this many clients, the first ones.
        method: fedspeed, fedavg, scaffold, feddyn, centralised, fedspeed-dp, fedspeed-int8 or fedspeed-topk.
        streams: number of lookahead streams of the draft, which are trained too. Default: none for an embedded pair.
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
    models = load_language_models(target, draft, "jaxspec federate")
    initial = models.drafting(streams)
    assert isinstance(initial, Model)  # checked by load_language_models
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
    report(_summary(result, method, names), json)


def _summary(result: Any, method: str, names: list[str]) -> dict[str, Any]:
    outcome = result.outcome
    return {
        "method": method,
        "accepted": {name: round(value, 4) for name, value in result.acceptance.items()},
        "learning_rate": outcome.learning_rate,
        "validation": dict(zip(outcome.rounds, (round(value, 4) for value in outcome.accepted), strict=True)),
        "samples": outcome.samples,
        "bytes_a_client_a_round": outcome.message_bytes,
        "privacy": result.guarantee and asdict(result.guarantee),
        "left_out": [names[index] for index in result.left_out],
        "draft": str(result.directory),
    }
