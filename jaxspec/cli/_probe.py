"""``jaxspec probe``: what does an exit know at every layer, and which one does the law propose?"""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from jaxspec.cli._methods import Loaded, load, two_devices
from jaxspec.cli.checks import at_least, check_picture, check_readable
from jaxspec.cli.shared import PROMPT, Flag, prompts_of, report, with_tokenizer
from jaxspec.text import tokens_of
from jaxspec.zoo import PAIRS


def probe(
    target: Annotated[str, tyro.conf.arg(aliases=("--pair",))] = PAIRS[0],
    draft: Path | None = None,
    texts: Path | None = None,
    window: int = 7,
    num_candidates: tuple[int, ...] = (1, 4, 8),
    prompts: int = 16,
    new_tokens: int = 128,
    fit_lens: Flag = False,
    law: Flag = False,
    plot: Path = Path("out/probe.png"),
    json: Flag = False,  # noqa: A002  the flag is called --json
) -> None:
    """Read off what exits know, layer by layer, from the target's own text; draw it.

    Args:
        target: name of an embedded pair, a folder that train or convert wrote, a published checkpoint; its exits are
            read by the logit lens, those of a pair by the pair's own head.
        draft: a smaller model over the same vocabulary; an embedded pair brings its own. Without one, what an exit
            knows of the steps of decoding is left out.
        texts: prompts are windows of these: .txt file, folder of them, or JSON lines with "user" and "text"; default:
            roles of Shakespeare that the embedded pair never saw.
        window: tokens drafted a step (γ).
        num_candidates: tokens that an exit would send for each position (κ).
        prompts: how many are continued.
        new_tokens: length of each continuation.
        fit_lens: fit an affine lens for every layer first, on the texts, or on roles that the embedded pair was trained
            on; minutes.
        law: time the pair on this machine and propose an exit and κ.
        plot: picture.
        json: end with one JSON object on one line.
    """
    from jaxspec.analysis import plots as pictures
    from jaxspec.analysis import proposals

    at_least(1, window=window, num_candidates=num_candidates, prompts=prompts)
    at_least(window + 1, new_tokens=new_tokens)
    check_readable(texts)
    check_picture(plot)
    two_devices()
    models = load(target, draft, drafting_for="--law" if law else None)
    text = _text(models, prompts, texts, new_tokens, not json)
    corpus = _corpus(models, texts) if fit_lens else None
    found = _found(models, text, window, num_candidates, corpus, not json)
    plot.parent.mkdir(parents=True, exist_ok=True)
    pictures.probe(found, plot)
    count = models.target.network.config.num_layers
    best = proposals(found, _parts(models, text, window, num_candidates), count)[:3] if law else []
    if json:
        return report({"layers": [row._asdict() for row in found], "proposals": [p._asdict() for p in best]}, True)
    Console().print(_table(found))
    for proposal in best:
        layer, kappa, step = proposal
        print(f"the law proposes exit {layer} of {count} with κ = {kappa}: {1e3 * step:.2f} ms a step")
    print(f"picture in {plot}")


def _text(models: Loaded, prompts: int, texts: Path | None, new_tokens: int, progress: bool) -> np.ndarray:
    """Prompts with the target's own continuation."""
    from jaxspec.federated import continued

    asked = np.asarray(prompts_of(models.target.text, prompts, texts), np.int32)
    return continued(models.target, asked, new_tokens, progress).tokens


def _corpus(models: Loaded, texts: Path | None) -> np.ndarray:
    """Tokens to fit a lens on, as the target reads them."""
    from jaxspec.federated import read_roles, read_texts, split_roles
    from jaxspec.zoo.recipe import held_out_ids

    roles = [role.text for role in split_roles(read_roles(), held_out_ids())[0]] if texts is None else []
    words = roles if texts is None else list(read_texts(texts).values())
    return tokens_of(with_tokenizer(models.target.text), "\n".join(words))


def _found(
    models: Loaded, text: np.ndarray, window: int, kappas: tuple[int, ...], corpus: np.ndarray | None, progress: bool
) -> list[Any]:
    from jaxspec.analysis import probe as probed
    from jaxspec.training.train import fit_lens

    options: dict[str, Any] = {"window": window, "num_candidates": kappas}
    if corpus is None:
        return probed(models.target, models.draft, text, PROMPT, exit=models.exit, **options)
    found: list[Any] = []
    for layer in range(1, models.target.network.config.num_layers):
        lens = fit_lens(models.target, layer, corpus, progress=progress)
        found += probed(models.target, models.draft, text, PROMPT, layers=[layer], exit=lens, **options)
    return found


def _parts(models: Loaded, text: np.ndarray, window: int, kappas: tuple[int, ...]) -> dict[int, Any]:
    import jaxspec
    from jaxspec.analysis import cost as latency
    from jaxspec.devices.sharding import default_placement

    assert models.draft is not None
    parts = {}
    for kappa in kappas:
        method = jaxspec.mirror(
            models.target,
            models.draft,
            window=window,
            num_candidates=kappa,
            exit_layer=models.exit_layer,
            exit=models.exit,
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
            str(row.layer),
            *(" ".join(f"{100 * shares[kappa]:3.0f}" for kappa in kappas) if shares else "–" for shares in row[1:]),
        )
    return table
