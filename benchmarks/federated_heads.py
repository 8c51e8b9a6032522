"""A draft head of a published model, federated over the Shakespeare roles: what it gains, and what clients send.

    python benchmarks/federated_heads.py --target models/smollm2 [--kind eagle3] [--send lora] [--clients 50] [--json]

A client is a role with enough text. The target continues windows of its first four fifths; the head learns to predict
the target there. Every method trains on equally many samples. One line for each method: acceptance before and after,
on unseen text of these clients and on roles that never take part; bytes that a client sends per round; samples;
seconds. Without --draft the head is fresh, over the tokens that the target writes most often on other roles; a fresh
EAGLE-3 has random weights, and low-rank updates keep most of them (not measured at full size): for --send lora pass a
head that ``jaxspec train draft`` made. A local step of EAGLE-3 on SmolLM2 takes one to two seconds of two cores; the
default sizes are 192 of them for FedAvg, as many for centralised training, twice the work for FedSpeed. The same
command continues after an interruption: continuations, hidden states, checkpoints and finished lines are in --out.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import ledger
import numpy as np

from jaxspec import federated
from jaxspec.cli.checks import at_least
from jaxspec.cli.shared import with_tokenizer
from jaxspec.drafts import Draft, DraftKind, DraftSizes, fresh_draft
from jaxspec.federated import UNSEEN, VALIDATION, Distilling, FederatedSetup, Federation, LoRA, Role
from jaxspec.federated import Send as Sending
from jaxspec.loading import load_draft, open_model
from jaxspec.models.base import Model
from jaxspec.training import Recipe

#: Characters of the shortest role that takes part: both parts of its text hold a window.
LEAST = 2_000
#: Roles that choose the best step or learning rate; those that never take part; those of the head's vocabulary.
VALIDATING, HELD_OUT, PUBLIC = 4, 10, 48
METHODS = "fedspeed", "fedavg", "centralised"
#: Name of the evaluation texts of roles that never take part.
OTHERS = "held_out"


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="models/smollm2")
    parser.add_argument("--draft", type=Path, help="folder of a head to start from; default: a fresh one")
    parser.add_argument("--kind", default="eagle3", choices=[kind for kind in get_args(DraftKind) if kind != "plain"])
    parser.add_argument("--taps", type=int, nargs="+", help="layers that a fresh head reads")
    parser.add_argument("--vocabulary", type=int, help="tokens that a fresh head knows")
    parser.add_argument("--send", default="lora", choices=get_args(Sending))
    parser.add_argument("--rank", type=int, default=16, help="of lora; alpha is twice as much")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--cohort", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4, help="local steps")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--windows", type=int, default=4, help="of each client's text")
    parser.add_argument("--tokens", type=int, nargs=2, default=(32, 32), help="of a window, and of its continuation")
    parser.add_argument("--rates", type=float, nargs="+", default=(0.5,), help="learning rates; the best one counts")
    parser.add_argument("--unroll", type=int, default=2, help="times that eagle3 runs on its own output")
    parser.add_argument("--window", type=int, default=4, help="of every acceptance")
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=federated.METHODS)
    parser.add_argument("--out", type=Path, default=Path("out/federated_heads"))
    parser.add_argument("--json", action="store_true", help="no progress bars")
    options = parser.parse_args(arguments)
    at_least(1, clients=options.clients, windows=options.windows, tokens=options.tokens, unroll=options.unroll)
    return options


def roles_of(clients: int) -> dict[str, list[Role]]:
    """Return different roles by what they are for, drawn with seed 0."""
    roles = federated.read_roles(min_chars=LEAST)
    counts = {"clients": clients, VALIDATION: VALIDATING, OTHERS: HELD_OUT, "public": PUBLIC}
    if (most := len(roles) - sum(counts.values()) + clients) < clients:
        raise ValueError(f"expected at most {most} clients, got {clients}; there are no more roles")
    order = np.random.default_rng(0).permutation(len(roles))[: sum(counts.values())]
    parts = np.split(order, np.cumsum(list(counts.values()))[:-1])
    return {name: [roles[index] for index in part] for name, part in zip(counts, parts, strict=True)}


def start_of(options: argparse.Namespace, target: Model, public: list[Role]) -> Draft:
    """Return the head that all methods start from."""
    if options.draft is not None:
        return load_draft(options.draft, target, report=lambda line: None)
    size, count = options.tokens

    def answers() -> np.ndarray:
        windows, _ = federated.token_rows(with_tokenizer(target.text), [role.text for role in public], size, 4)
        return federated.continued(target, windows, count, not options.json, directory=options.out / "answers").answers

    made = fresh_draft(target, DraftSizes(options.kind, taps=options.taps, vocabulary=options.vocabulary), answers)
    assert isinstance(made, Draft)
    return made


def setup_of(options: argparse.Namespace) -> FederatedSetup:
    """Load the target, make the head, and let the target continue all texts."""
    target, roles = open_model(options.target), roles_of(options.clients)
    draft = start_of(options, target, roles["public"])
    size, count = options.tokens
    distilling = Distilling(options.windows, 1, size, count, options.window)
    texts = {name: [role.text for role in part] for name, part in roles.items()}
    judges = {name: texts[name] for name in (VALIDATION, OTHERS)}
    where = with_tokenizer(target.text), texts["clients"], judges, distilling, options.out / "answers"
    problem = federated.gather(target, *where, progress=not options.json, draft=draft)
    federation = Federation(
        rounds=options.rounds,
        cohort_size=options.cohort,
        local_steps=options.steps,
        batch_size=options.batch,
        learning_rates=tuple(options.rates),
        evaluate_every=max(1, options.rounds // 2),
    )
    return FederatedSetup(
        draft,
        problem,
        federation,
        options.window,
        options.out / "runs",
        not options.json,
        target,
        options.send,
        LoRA(options.rank, 2.0 * options.rank),
        Recipe(steps=options.unroll),
    )


def line_of(setup: FederatedSetup, method: str) -> dict[str, Any]:
    """Train by a method and return its figures."""
    start = time.monotonic()
    outcome = federated.best(setup, method)
    seconds = time.monotonic() - start
    accepted = {name: [round(curve[0], 4), round(curve[-1], 4)] for name, curve in outcome.curves.items()}
    return {
        "method": method,
        "metric": setup.metric,
        "unseen_before_after": accepted[UNSEEN],
        "held_out_before_after": accepted[OTHERS],
        "bytes_a_client_a_round": outcome.message_bytes,
        "learning_rate": outcome.learning_rate,
        "samples": outcome.samples,
        "seconds": round(seconds, 1),
    }


def lines(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield a line for each method, measured or kept."""
    settings = {name: str(value) for name, value in vars(options).items() if name not in ("methods", "out", "json")}
    kept, setup = ledger.Ledger(options.out / "lines.jsonl", settings), None
    for method in options.methods:
        row = kept.find(method=method)
        if row is None:
            setup = setup or setup_of(options)
            row = kept.add(line_of(setup, method))
        about = {"kind": options.kind, "send": options.send, "clients": options.clients, "rounds": options.rounds}
        yield {**about, **row}


if __name__ == "__main__":
    for line in lines(parsed()):
        print(json.dumps(line), flush=True)
