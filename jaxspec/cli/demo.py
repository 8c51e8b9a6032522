"""``python -m jaxspec demo``: decoding and federation on real text, in about four minutes on two cores.

Decode held-out roles with plain decoding, vanilla speculative decoding on all devices and with a device for each model,
and Mirror-SD; compare every token, and say what the last two would do on devices that share nothing. Federate the draft
over other roles' private text; load it through the checkpoint layer onto the draft mesh; show the gain.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from jaxfed import checkpoint
from jaxspec import federated, zoo
from jaxspec.analysis import plots
from jaxspec.cli._bench_methods import BenchSetting
from jaxspec.cli._demo_decoding import SAME_PLACEMENT, Decoded, DecodingSettings, decode, phase
from jaxspec.devices.sharding import Placement, mesh_of, replicated
from jaxspec.federated import FederatedReport, Federation
from jaxspec.generation import generate
from jaxspec.generation.trace import median_milliseconds
from jaxspec.text.tokenizer import encode
from jaxspec.zoo.recipe import held_out_roles


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


def run(settings: DemoSettings, out: Path, progress: bool = True) -> dict[str, Any]:
    """Run the demo, write its three pictures into ``out``, and return the results."""
    out.mkdir(parents=True, exist_ok=True)
    seconds: dict[str, float] = {}
    pair, sizes = zoo.load(settings.pair), settings.decoding
    held_out = held_out_roles()
    texts = [role.text for role in held_out[: sizes.prompts]]
    prompts = [encode(pair.tokenizer, text)[: sizes.prompt_tokens].tolist() for text in texts]
    decoded = decode(sizes, settings.pair, prompts, seconds, progress)
    plots.timeline(decoded.spans, out / "timeline.png", title="Mirror-SD on these two meshes")
    replayed = decoded.independent["mirror"].spans
    plots.timeline(
        replayed, out / "timeline_independent.png", title="Mirror-SD on devices that share nothing, replayed"
    )
    with phase(seconds, "federate"):
        report = federate(settings.federating, pair, held_out[sizes.prompts :], out, progress)
    with phase(seconds, "deploy"):
        deployed = deploy(sizes, pair, decoded.settings["mirror"], prompts, out)
    curves = {name: (outcome.rounds, outcome.accepted) for name, outcome in report.outcomes.items()}
    plots.acceptance(report.acceptance, curves, settings.federating.window, out / "acceptance.png")
    return figures(decoded, report, deployed, seconds)


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


#: Baselines of Mirror-SD.
OVER = ("all_devices", "same_placement", "same_placement_independent")


def figures(decoded: Decoded, report: FederatedReport, deployed: float, seconds: dict[str, float]) -> dict[str, Any]:
    """Return all results as one JSON-able object."""
    speed = {name: round(m.tokens_per_second, 1) for name, m in decoded.runs.items()}
    apart = {name: one.tokens_per_second for name, one in decoded.independent.items()}
    return {
        "identical": decoded.identical,
        "tokens_compared": decoded.tokens_compared,
        "tokens_per_second": speed,
        "ratio_to_autoregressive": {name: round(value / speed["autoregressive"], 3) for name, value in speed.items()},
        "mirror_over_all_devices": round(speed["mirror"] / speed["speculative"], 3),
        "mirror_over_same_placement": round(speed["mirror"] / speed[SAME_PLACEMENT], 3),
        "mirror_over_same_placement_independent": round(apart["mirror"] / apart[SAME_PLACEMENT], 3),
        "accepted_length": round(decoded.runs["mirror"].accepted_length, 3),
        "accepted_length_speculative": round(decoded.runs["speculative"].accepted_length, 3),
        "accepted_length_same_placement": round(decoded.runs[SAME_PLACEMENT].accepted_length, 3),
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
    accepted = {
        "mirror": results["accepted_length"],
        "speculative": results["accepted_length_speculative"],
        SAME_PLACEMENT: results["accepted_length_same_placement"],
    }
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
    over = {name: f"{results[f'mirror_over_{name}']:.2f} times" for name in OVER}
    console.print(
        f"Mirror-SD is {over['all_devices']} as fast as vanilla speculative decoding on all devices, and "
        f"{over['same_placement']} as fast as vanilla speculative decoding with a mesh for each model; on two devices "
        f"that share nothing {over['same_placement_independent']}: programs timed alone, their steps replayed."
    )
    console.print("Mirror-SD, median ms: " + ", ".join(f"{k} {v:.2f}" for k, v in results["milliseconds"].items()))
    console.print(
        "Accepted tokens a step on unseen text: " + ", ".join(f"{k} {v:.2f}" for k, v in results["acceptance"].items())
    )
    pictures = ", ".join(str(out / name) for name in ("timeline.png", "timeline_independent.png", "acceptance.png"))
    console.print(f"{results['seconds']['total']:.0f} s; pictures in {pictures}")


def main(out: Path, as_json: bool) -> None:
    """Run the command; with ``--json`` the table goes to standard error and the last line of output is the object."""
    results = run(DemoSettings(), out, progress=True)
    show(results, out, Console(stderr=as_json))
    if as_json:
        print(json.dumps(results))
    if not results["identical"]:
        raise SystemExit("expected the tokens of all methods to be identical, got a difference; see --json")
