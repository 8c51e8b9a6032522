"""``jaxspec probe``: what does an exit know at every layer, and which one does the law propose?"""

from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from jaxspec.commands.methods import two_devices
from jaxspec.commands.shared import PROMPT, Flag, held_out, report
from jaxspec.zoo import PAIRS


def probe(
    pair: str = PAIRS[0],
    window: int = 7,
    num_candidates: tuple[int, ...] = (1, 4, 8),
    prompts: int = 16,
    new_tokens: int = 128,
    fit_lens: Flag = False,
    law: Flag = False,
    plot: Path = Path("out/probe.png"),
    json: Flag = False,  # noqa: A002  the flag is called --json
) -> None:
    """Read off what exits know, layer by layer, from the target's own text on held-out roles; draw it.

    Args:
        pair: name of an embedded pair, or a folder that train wrote.
        window: tokens drafted a step (γ).
        num_candidates: tokens that an exit would send for each position (κ).
        prompts: held-out roles whose text is continued.
        new_tokens: length of each continuation.
        fit_lens: fit an affine lens for every layer first, instead of the pair's own head; minutes.
        law: time the pair on this machine and propose an exit and κ.
        plot: picture.
        json: end with one JSON object on one line.
    """
    from jaxspec import plot as pictures
    from jaxspec import zoo
    from jaxspec.probe import proposals

    two_devices()
    loaded = zoo.load(pair)
    text = _text(loaded, prompts, new_tokens)
    found = _found(loaded, text, window, num_candidates, fit_lens, not json)
    plot.parent.mkdir(parents=True, exist_ok=True)
    pictures.probe(found, plot)
    count = loaded.target.network.config.num_layers
    best = proposals(found, _parts(loaded, text, window, num_candidates), count)[:3] if law else []
    if json:
        return report({"layers": [row._asdict() for row in found], "proposals": [p._asdict() for p in best]}, True)
    Console().print(_table(found))
    for proposal in best:
        layer, kappa, step = proposal
        print(f"the law proposes exit {layer} of {count} with κ = {kappa}: {1e3 * step:.2f} ms a step")
    print(f"picture in {plot}")


def _text(loaded: Any, prompts: int, new_tokens: int) -> np.ndarray:
    """Prompts of held-out roles with the target's own continuation."""
    from jaxspec.federated import continued

    return continued(loaded.target, np.asarray(held_out(loaded.target.text, prompts)), new_tokens).tokens


def _found(
    loaded: Any, text: np.ndarray, window: int, kappas: tuple[int, ...], fitted: bool, progress: bool
) -> list[Any]:
    from jaxspec.probe import probe as probed
    from jaxspec.train import fit_lens
    from jaxspec.zoo.recipe import Recipe, corpus

    options: dict[str, Any] = {"window": window, "num_candidates": kappas}
    if not fitted:
        return probed(loaded.target, loaded.draft, text, PROMPT, exit=loaded.exit, **options)
    train, found = corpus(Recipe()).train, []
    for layer in range(1, loaded.target.network.config.num_layers):
        lens = fit_lens(loaded.target, layer, train, progress=progress)
        found += probed(loaded.target, loaded.draft, text, PROMPT, layers=[layer], exit=lens, **options)
    return found


def _parts(loaded: Any, text: np.ndarray, window: int, kappas: tuple[int, ...]) -> dict[int, Any]:
    import jaxspec
    from jaxspec import latency
    from jaxspec.sharding import default_placement

    parts = {}
    for kappa in kappas:
        method = jaxspec.mirror(
            loaded.target,
            loaded.draft,
            window=window,
            num_candidates=kappa,
            exit_layer=loaded.exit_layer,
            exit=loaded.exit,
        )
        prompt = text[0, :PROMPT].tolist()
        parts[kappa] = latency.measure(method, default_placement(), [prompt], text.shape[1] - PROMPT).parts
    return parts


def _table(found: list[Any]) -> Table:
    kappas = list(found[0].contained)
    table = Table(title=f"shares in %, for κ = {', '.join(map(str, kappas))}")
    for column in ("layer", "choice among first κ", "Ω_κ", "correction", "windows foreseen"):
        table.add_column(column, justify="right")
    for row in found:
        table.add_row(
            str(row.layer), *(" ".join(f"{100 * shares[kappa]:3.0f}" for kappa in kappas) for shares in row[1:])
        )
    return table
