"""``python -m jaxspec demo``: decoding and federation on real text, in about four minutes on two cores.

Decode held-out roles with three methods and compare every token; federate the draft over other roles' private text;
load it through the checkpoint layer onto the draft mesh; show the gain.
"""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from jaxfed import checkpoint
from jaxspec import federated, zoo
from jaxspec.analysis import plots
from jaxspec.cli._bench_methods import BenchSetting, Measurement, Worker, best_of, measure, timeline, warm
from jaxspec.devices.sharding import Placement, mesh_of, replicated
from jaxspec.federated import FederatedReport, Federation
from jaxspec.generation import generate
from jaxspec.generation.trace import Span, median_milliseconds
from jaxspec.methods import DecodeSpec, candidates
from jaxspec.text.tokenizer import encode
from jaxspec.zoo.recipe import held_out_roles


@dataclass(frozen=True)
class DecodingSettings:
    """The decoding part.

    Attributes:
        prompts: held-out roles that are decoded, the first by id.
        prompt_tokens: length of each prompt.
        new_tokens: tokens decoded after each.
        rounds: interleaved measurements of each method at its best settings.
        windows: speculative windows γ tried.
        mirror: (window, branches) of Mirror-SD tried.
        num_candidates: κ.
    """

    prompts: int = 8
    prompt_tokens: int = 64
    new_tokens: int = 128
    rounds: int = 5
    windows: tuple[int, ...] = tuple(range(1, 9))
    mirror: tuple[tuple[int, int], ...] = ((7, 4), (7, 8))
    num_candidates: int = 4


@dataclass(frozen=True)
class FederatingSettings:
    """The federated part.

    Attributes:
        clients: held-out roles that federate, after those of the prompts.
        validation_roles: held-out roles after the clients, on which learning rates are selected.
        client_prompts: windows of each client's text that the target continues for training.
        test_prompts: windows of each role's unseen text.
        prompt_tokens: length of a window.
        new_tokens: length of its continuation.
        window: γ of the reported acceptance.
        federation: rounds, cohort, steps and learning rates.
    """

    clients: int = 32
    validation_roles: int = 16
    client_prompts: int = 12
    test_prompts: int = 4
    prompt_tokens: int = 32
    new_tokens: int = 64
    window: int = 7
    federation: Federation = Federation()


@dataclass(frozen=True)
class DemoSettings:
    """Sizes of the demo, and its embedded pair (or a folder); README quotes results for the defaults."""

    pair: str = "shakespeare"
    decoding: DecodingSettings = DecodingSettings()
    federating: FederatingSettings = FederatingSettings()


@contextmanager
def phase(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Time a block; add its seconds by name."""
    start = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - start, 2)


@dataclass
class Decoded:
    """The decoding part: per method its best setting and median run; whether all tokens agree; spans of Mirror-SD."""

    settings: dict[str, BenchSetting]
    runs: dict[str, Measurement]
    identical: bool
    tokens_compared: int
    spans: list[Span]


def run(settings: DemoSettings, out: Path, progress: bool = True) -> dict[str, Any]:
    """Run the demo, write ``timeline.png`` and ``acceptance.png`` into ``out``, and return the results."""
    out.mkdir(parents=True, exist_ok=True)
    seconds: dict[str, float] = {}
    pair, sizes = zoo.load(settings.pair), settings.decoding
    held_out = held_out_roles()
    texts = [role.text for role in held_out[: sizes.prompts]]
    prompts = [encode(pair.tokenizer, text)[: sizes.prompt_tokens].tolist() for text in texts]
    decoded = decode(sizes, settings.pair, prompts, seconds, progress)
    plots.timeline(decoded.spans, out / "timeline.png")
    with phase(seconds, "federate"):
        report = federate(settings.federating, pair, held_out[sizes.prompts :], out, progress)
    with phase(seconds, "deploy"):
        deployed = deploy(sizes, pair, decoded.settings["mirror"], prompts, out)
    curves = {name: (outcome.rounds, outcome.accepted) for name, outcome in report.outcomes.items()}
    plots.acceptance(report.acceptance, curves, settings.federating.window, out / "acceptance.png")
    return figures(decoded, report, deployed, seconds)


def decode(
    settings: DecodingSettings, pair: str, prompts: list[list[int]], seconds: dict[str, float], progress: bool
) -> Decoded:
    """Decode the prompts with every method at its best setting, in turns."""
    new = settings.new_tokens
    with Worker(pair, True) as threaded, Worker(pair, False) as single:
        workers = {True: threaded, False: single}
        with phase(seconds, "choose_settings"):
            best = _choose(workers, settings, prompts[:1], progress)
        with phase(seconds, "decode"):
            runs: dict[str, list[Measurement]] = {name: [] for name in best}
            for _ in tqdm(range(settings.rounds), "measure", disable=not progress):
                for name, setting in best.items():
                    runs[name].append(workers[setting.eigen_threads].run(measure, setting, prompts, new))
            mirrored = best["mirror"]
            spans = workers[mirrored.eigen_threads].run(timeline, mirrored, prompts, new)
    median = {name: sorted(many, key=lambda m: m.seconds)[len(many) // 2] for name, many in runs.items()}
    everything = [m.tokens for many in runs.values() for m in many]
    identical = all(tokens == everything[0] for tokens in everything)
    return Decoded(best, median, identical, sum(map(len, everything[0])), spans)


def _choose(
    workers: dict[bool, Worker], settings: DecodingSettings, prompts: list[list[int]], progress: bool
) -> dict[str, BenchSetting]:
    """Return each method's best setting on a prompt: first all without Eigen threads, then the winner also with them.

    Plain decoding, the baseline, tries all combinations of devices and threads.
    """
    s, new = settings, settings.new_tokens
    plain = [BenchSetting(DecodeSpec(), devices, threads) for devices in (1, 2) for threads in (True, False)]
    mirrors = [DecodeSpec(window, candidates.mirror(budget), s.num_candidates) for window, budget in s.mirror]
    choices = {
        "autoregressive": plain,
        "speculative": [BenchSetting(DecodeSpec(window), eigen_threads=False) for window in s.windows],
        "mirror": [BenchSetting(spec, eigen_threads=False) for spec in mirrors],
    }
    _warm(workers, [setting for many in choices.values() for setting in many], prompts, new, progress)
    best = {name: best_of(workers, many, prompts, new) for name, many in choices.items()}
    both = {name: [replace(best[name], eigen_threads=threads) for threads in (True, False)] for name in choices}
    _warm(workers, [both["speculative"][0], both["mirror"][0]], prompts, new, progress)
    return {name: best_of(workers, many, prompts, new) for name, many in both.items()}


def _warm(
    workers: dict[bool, Worker], choices: list[BenchSetting], prompts: list[list[int]], new: int, progress: bool
) -> None:
    """Compile settings, in both workers at once."""
    choices = sorted(choices, key=lambda setting: setting.eigen_threads, reverse=True)
    for threads, worker in workers.items():
        worker.send(warm, [setting for setting in choices if setting.eigen_threads == threads], prompts[:1], new)
    for setting in tqdm(choices, "compile", disable=not progress):
        workers[setting.eigen_threads].receive()


def federable(
    settings: FederatingSettings, pair: zoo.Pair, roles: Sequence[federated.Role], progress: bool
) -> federated.TextProblem:
    """Let the target continue windows of the clients' text (training and unseen part) and of the validation roles'."""
    s, texts = settings, [role.text for role in roles]
    judges = {federated.VALIDATION: texts[s.clients :][: s.validation_roles]}
    sizes = s.client_prompts, s.test_prompts, s.prompt_tokens, s.new_tokens, s.window
    distilling = federated.Distilling(*sizes)
    return federated.gather(pair.target, pair.tokenizer, texts[: s.clients], judges, distilling, progress=progress)


def federate(
    settings: FederatingSettings, pair: zoo.Pair, roles: Sequence[federated.Role], out: Path, progress: bool
) -> FederatedReport:
    """Train the draft with FedSpeed, FedAvg and centralised fine-tuning; save FedSpeed's draft."""
    problem = federable(settings, pair, roles, progress)
    validation, unseen = (problem.evaluation[name] for name in (federated.VALIDATION, federated.UNSEEN))
    problem = federated.TextProblem(problem.clients, {federated.VALIDATION: validation})
    setup = federated.FederatedSetup(pair.draft, problem, settings.federation, settings.window, progress=progress)
    report = federated.compare(setup, unseen)
    chosen = report.outcomes["fedspeed"]
    clients = [role.id for role in roles[: settings.clients]]
    metadata = {"learning_rate": chosen.learning_rate, "clients": clients}
    directory = out / "draft"
    step = (checkpoint.latest(directory) or 0) + 1
    checkpoint.save(directory, step, {"params": chosen.params}, kind="draft", metadata=metadata, keep=1)
    return report


def deploy(
    settings: DecodingSettings, pair: zoo.Pair, setting: BenchSetting, prompts: list[list[int]], out: Path
) -> float:
    """Load the federated draft onto the draft mesh, decode with it, and return its accepted length."""
    devices = jax.devices()
    where = Placement(mesh_of(devices[:1]), mesh_of(devices[-1:]))
    loaded = checkpoint.load(out / "draft", like={"params": pair.draft.params}, shardings=replicated(where.draft))
    draft = pair.draft._replace(params=loaded["params"])
    spec = replace(setting.spec, exit_layer=pair.exit_layer)
    method = spec.build(pair.target, draft, pair.exit, where)
    return generate(method, prompts, settings.new_tokens).stats.accepted_length


def figures(decoded: Decoded, report: FederatedReport, deployed: float, seconds: dict[str, float]) -> dict[str, Any]:
    """Return all results as one JSON-able object."""
    speed = {name: round(m.tokens_per_second, 1) for name, m in decoded.runs.items()}
    return {
        "identical": decoded.identical,
        "tokens_compared": decoded.tokens_compared,
        "tokens_per_second": speed,
        "ratio_to_autoregressive": {name: round(value / speed["autoregressive"], 3) for name, value in speed.items()},
        "accepted_length": round(decoded.runs["mirror"].accepted_length, 3),
        "accepted_length_speculative": round(decoded.runs["speculative"].accepted_length, 3),
        "reuse_rate": round(decoded.runs["mirror"].reuse_rate, 4),
        "milliseconds": {name: round(ms, 3) for name, ms in median_milliseconds(decoded.spans).items()},
        "settings": {name: str(setting) for name, setting in decoded.settings.items()},
        "acceptance": {name: round(value, 4) for name, value in report.acceptance.items()},
        "acceptance_deployed": round(deployed, 4),
        "learning_rates": {name: outcome.learning_rate for name, outcome in report.outcomes.items()},
        "seconds": {**seconds, "total": round(sum(seconds.values()), 2)},
        "versions": {name: version(name) for name in ("jax", "flax", "optax", "orbax-checkpoint", "numpy")},
    }


def show(results: dict[str, Any], out: Path, console: Console) -> None:
    """Print the results and the paths of the pictures."""
    table = Table(title=f"{results['tokens_compared']} tokens, greedy, float32: identical = {results['identical']}")
    for column in ("method", "tokens/s", "ratio", "accepted", "reuse", "best settings"):
        table.add_column(column, justify="left" if column in ("method", "best settings") else "right")
    accepted = {"mirror": results["accepted_length"], "speculative": results["accepted_length_speculative"]}
    for name, speed in results["tokens_per_second"].items():
        table.add_row(
            name,
            f"{speed:.0f}",
            f"{results['ratio_to_autoregressive'][name]:.2f}",
            f"{accepted[name]:.2f}" if name in accepted else "–",
            f"{results['reuse_rate']:.0%}" if name == "mirror" else "–",
            results["settings"][name],
        )
    console.print(table)
    console.print("Mirror-SD, median ms: " + ", ".join(f"{k} {v:.2f}" for k, v in results["milliseconds"].items()))
    console.print(
        "Accepted tokens a step on unseen text: " + ", ".join(f"{k} {v:.2f}" for k, v in results["acceptance"].items())
    )
    console.print(f"{results['seconds']['total']:.0f} s; pictures in {out}/timeline.png and {out}/acceptance.png")


def main(out: Path, as_json: bool) -> None:
    """Run the command; with ``--json`` the table goes to standard error and the last line of output is the object."""
    results = run(DemoSettings(), out, progress=True)
    show(results, out, Console(stderr=as_json))
    if as_json:
        print(json.dumps(results))
    if not results["identical"]:
        raise SystemExit("expected the tokens of all methods to be identical, got a difference; see --json")
