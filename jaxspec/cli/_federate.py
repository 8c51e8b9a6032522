"""``jaxspec federate``: from clients' private texts to a draft that decodes."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import tyro

from jaxspec.cli._methods import load
from jaxspec.cli.checks import at_least, check_readable, check_writable
from jaxspec.cli.shared import Flag, reader, report
from jaxspec.federated import Settings
from jaxspec.zoo import PAIRS


def federate(
    out: Path = Path("out/federated"),
    target: str = PAIRS[0],
    draft: Path | None = None,
    texts: Path | None = None,
    clients: int | None = None,
    method: str = "fedspeed",
    streams: int | None = None,
    settings: Annotated[Settings, tyro.conf.arg(name="")] = Settings(),  # noqa: B008  a frozen default
    json: Flag = False,  # noqa: A002  the flag is called --json
) -> None:
    """Federate a draft over clients' private texts, supervised by the target; goes on from ``out`` if interrupted.

    Args:
        out: folder for the target's words, checkpoints, and the draft in OUT/draft: give it to --draft elsewhere, or
            to convert.
        target: name of an embedded pair, a folder that train or convert wrote, a published checkpoint.
        draft: where training starts: a smaller model over the same vocabulary; an embedded pair brings its own.
        texts: file of JSON lines with "user" and "text" (a client is a user), or folder of .txt files (a client is a
            file); default: the Shakespeare roles that the embedded pair never saw.
        clients: only the first so many.
        method: a row of jaxspec.federated.METHODS: fedspeed, fedavg, scaffold, feddyn, centralised, fedspeed-dp,
            fedspeed-int8, fedspeed-topk.
        streams: lookahead streams of the draft, trained along; default: none of an embedded pair's.
        settings: the recipe.
        json: end with one JSON object on one line.
    """
    from jaxspec import federated

    method = federated.method_of(method).name
    at_least(1, clients=clients)
    at_least(0, streams=streams)
    check_readable(texts)
    check_writable(out)
    named = _texts(texts)
    names = list(named)[:clients]
    federated.check_plan(method, settings, len(names))
    models = load(target, draft, drafting_for="jaxspec federate")
    small = models.drafting(streams)
    assert small is not None
    found = federated.federate(
        models.target,
        small,
        reader(models.target.text),
        [named[name] for name in names],
        settings,
        method=method,
        directory=out,
        progress=True,
    )
    report(summary(found, method, names), json)


def summary(found: Any, method: str, names: list[str]) -> dict[str, Any]:
    """What was found, for machines."""
    outcome = found.outcome
    return {
        "method": method,
        "accepted": {name: round(value, 4) for name, value in found.acceptance.items()},
        "learning_rate": outcome.learning_rate,
        "validation": dict(zip(outcome.rounds, (round(value, 4) for value in outcome.accepted), strict=True)),
        "samples": outcome.samples,
        "bytes_a_client_a_round": outcome.message_bytes,
        "privacy": found.guarantee and asdict(found.guarantee),
        "left_out": [names[place] for place in found.left_out],
        "draft": str(found.directory),
    }


def _texts(path: Path | None) -> dict[str, str]:
    from jaxspec import federated
    from jaxspec.zoo.recipe import held_out_roles

    return {role.user: role.text for role in held_out_roles()} if path is None else federated.read_texts(path)
