"""``jaxspec probe``: how well does each exit predict the target, and which one does the cost model propose?"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import rich
import tyro
from rich.table import Table

from jaxspec.cli._methods import Continuations, Loaded, load_language_models, two_devices
from jaxspec.cli.checks import at_least, check_picture
from jaxspec.cli.exits import check_exit_file
from jaxspec.cli.shared import Flag, report, with_tokenizer
from jaxspec.text import tokens_of
from jaxspec.text.prompts import Continued
from jaxspec.zoo import PAIRS

#: Prompts continued in one batch; more of them are padded to more different lengths.
TOGETHER = 8


def probe(
    target: Annotated[str, tyro.conf.arg(aliases=("--pair",))] = PAIRS[0],
    draft: Path | None = None,
    window: int = 7,
    num_candidates: tuple[int, ...] = (1, 4, 8),
    exit: Path | None = None,
    fit_lens: Flag = False,
    propose: Flag = False,
    plot: Path = Path("out/probe.png"),
    continuations: Annotated[Continuations, tyro.conf.arg(name="")] = Continuations(),
    json: Flag = False,  # noqa: A002  the flag is called --json
) -> None:
    """Measure how well exits predict the target, layer by layer, on the target's own text; draw it.

    Args:
        target: name of an embedded pair, a folder that train or convert wrote, a published checkpoint; its exits are
            read by the logit lens, those of a pair by the pair's own head.
        draft: a smaller model with the same vocabulary; an embedded pair has its own. Optional: adds figures.
        window: tokens drafted per step (γ).
        num_candidates: tokens that an exit would send for each position (κ).
        exit: exits that train lens wrote, read at their layers; default: those in the target's folder, if any.
        fit_lens: fit an affine lens for every layer first, on the texts or the embedded pair's training roles; minutes.
        propose: time the pair on this machine and propose an exit and κ by the cost model.
        plot: picture.
        continuations: prompts and their continuations.
        json: end with one JSON object on one line.
    """
    from jaxspec.analysis import plots, proposals

    at_least(1, window=window, num_candidates=num_candidates)
    continuations.check(window)
    check_picture(plot)
    check_exit_file(exit)
    two_devices()
    models = load_language_models(target, draft, "--propose" if propose else "jaxspec probe", propose, exit)
    text = _text(models, continuations, not json)
    corpus = _corpus(models, continuations.prompts) if fit_lens else None
    probes = _probes(models, text, window, num_candidates, corpus, not json)
    plot.parent.mkdir(parents=True, exist_ok=True)
    plots.probe(probes, plot)
    count = models.target.network.config.num_layers
    best = proposals(probes, _times(models, text, window, num_candidates), count)[:3] if propose else []
    if json:
        return report({"layers": [row._asdict() for row in probes], "proposals": [p._asdict() for p in best]}, True)
    rich.print(_table(probes))
    for layer, kappa, step in best:
        print(f"proposal: exit {layer} of {count} with κ = {kappa}, {1e3 * step:.2f} ms a step by the cost model")
    print(f"picture in {plot}")


def _text(models: Loaded, continuations: Continuations, progress: bool) -> Continued:
    """Return prompts with the target's own continuations."""
    from jaxspec.generation import continued

    prompts = continuations.read(models.target.text)
    return continued(models.target, prompts, continuations.new_tokens, progress, batch_size=TOGETHER)


def _corpus(models: Loaded, paths: Sequence[Path]) -> np.ndarray:
    """Return tokens to fit a lens on."""
    from jaxspec.federated import read_roles, read_texts, split_roles
    from jaxspec.zoo.recipe import held_out_ids

    if not paths:
        training, *_ = split_roles(read_roles(), held_out_ids())
        parts = [role.text for role in training]
    else:
        parts = [text for path in paths for text in read_texts(path).values()]
    return tokens_of(with_tokenizer(models.target.text), "\n".join(parts))


def _probes(
    models: Loaded, text: Continued, window: int, kappas: tuple[int, ...], corpus: np.ndarray | None, progress: bool
) -> list[Any]:
    from jaxspec.analysis import probe as probe_exits
    from jaxspec.training import fit_lens

    options: dict[str, Any] = {"window": window, "num_candidates": kappas}
    pair = models.target, models.language_model, text
    if corpus is None and models.exits:
        heads = {exit.layer: exit.head for exit in models.exits}
        layers = range(1, models.target.network.config.num_layers + 1)
        rest = probe_exits(*pair, layers=[layer for layer in layers if layer not in heads], **options)
        own = [probe_exits(*pair, layers=[layer], exit=heads[layer], **options)[0] for layer in sorted(heads)]
        return sorted([*rest, *own], key=lambda row: row.layer)
    if corpus is None:
        return probe_exits(*pair, exit=models.exit, progress=progress, **options)
    probes: list[Any] = []
    for layer in range(1, models.target.network.config.num_layers):
        lens = fit_lens(models.target, layer, corpus, progress=progress)
        probes += probe_exits(*pair, layers=[layer], exit=lens, **options)
    return probes


def _times(models: Loaded, text: Continued, window: int, kappas: tuple[int, ...]) -> dict[int, Any]:
    """Return the program times of a step by κ."""
    from jaxspec.analysis import cost
    from jaxspec.devices.sharding import default_placement
    from jaxspec.methods import DecodeSpec, candidates

    times, prompt = {}, text.tokens[0, : text.starts[0]].tolist()
    for kappa in kappas:
        spec = DecodeSpec(window, candidates.mirror(), kappa, models.exit_layer)
        method = spec.build(models.target, models.language_model, models.exit)
        times[kappa] = cost.measure(method, default_placement(), [prompt], text.most).times
    return times


def _table(probes: list[Any]) -> Table:
    kappas = list(probes[0].contained)
    table = Table(title=f"shares in %, for κ = {', '.join(map(str, kappas))}")
    for column in ("layer", "target's token in first κ", "Ω_κ", "correction", "windows foreseen"):
        table.add_column(column, justify="right")
    for row in probes:
        table.add_row(
            str(row.layer),
            *(" ".join(f"{100 * shares[kappa]:3.0f}" for kappa in kappas) if shares else "–" for shares in row[1:]),
        )
    return table
