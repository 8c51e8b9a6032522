"""``jaxspec train lens``: exit heads for any target, trained on the target's own answers."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxspec.cli._methods import load
from jaxspec.cli._train_draft import DraftTraining
from jaxspec.cli.answers import Answers, divided
from jaxspec.cli.checks import at_least, check_writable
from jaxspec.core.digests import digest
from jaxspec.core.files import kept
from jaxspec.models.base import Model
from jaxspec.models.config import described
from jaxspec.text.prompts import Continued

#: Minutes by default, and their share for answers; the rest is for hidden states and steps.
MINUTES, FOR_ANSWERS = 30.0, 0.5
#: Answers that are written together.
BATCH = 96


@dataclass(frozen=True)
class LensTraining:
    """How large exits are; of ``train lens`` only.

    Attributes:
        rank: hidden units of an exit's correction.
    """

    rank: int = 1024


def train_lens(asked: Answers, settings: DraftTraining, lens: LensTraining, out: Path) -> dict[str, Any]:
    """Train exits, write ``out/lens.safetensors``, and return figures; an interrupted run resumes from ``out``.

    Answers, hidden states and steps are kept in ``out/lens``, which may be deleted afterwards; with a folder of
    answers, all prompts are answered, and the first two are kept there.

    Raises:
        ValueError: bad settings, a target without a tokenizer, layers that it lacks, texts shorter than a prompt.
    """
    from jaxspec.loading import Exit, save_exits
    from jaxspec.training import ExitRecipe, fit_exits
    from jaxspec.training.exits import check_layers

    asked.check()
    at_least(1, vocabulary=settings.vocabulary, rank=lens.rank, layers=settings.layers or None)
    check_writable(out)
    target, start, work = load(asked.target, None).target, time.monotonic(), out / "lens"
    layers = settings.layers or (max(1, target.network.config.num_layers // 2),)
    check_layers(target, layers)
    texts, minutes = _answers(target, asked, start, work)
    train, held_out = divided(texts)
    vocabulary = settings.num_tokens(target.network.config.vocab_size)
    fitted = fit_exits(
        target,
        layers,
        train,
        held_out=held_out,
        recipe=ExitRecipe(vocabulary, lens.rank, minutes),
        directory=work,
        hidden=None if asked.answers is None else asked.hidden(out),
    )
    shares = {
        layer: {str(kappa): round(value, 4) for kappa, value in fitted[layer].contained.items()} for layer in layers
    }
    file = save_exits([Exit(layer, fitted[layer].head, {"contained": shares[layer]}) for layer in layers], out)
    tokens = int(np.sum(texts.tokens >= 0) - np.sum(texts.starts))
    return {"answers": len(texts.tokens), "tokens": tokens, "contained": shares, "exits": str(file)}


def _answers(target: Model, asked: Answers, start: float, work: Path) -> tuple[Continued, float]:
    """Return the target's answers to as many prompts as their share of the time allows, and the minutes left."""
    minutes = asked.minutes or MINUTES
    if asked.answers is not None:
        return asked.written(target, work), minutes
    prompts = asked.prompts_for(target, work)
    ids = np.concatenate([np.asarray(row, np.int32) for row in prompts])
    about = f"{described(target.network.config)} {asked.new_tokens} {minutes} {[len(row) for row in prompts]}"

    def written() -> dict[str, np.ndarray]:
        count, passed = 0, 0.0
        for part in _parts(target, prompts, asked.new_tokens, work):
            count, passed = count + len(part.tokens), (time.monotonic() - start) / 60
            if passed > FOR_ANSWERS * minutes and count > 1:
                break
        return {"count": np.asarray(count), "minutes": np.asarray(max(0.01, minutes - passed))}

    plan = kept(work, f"answers-{digest(about, target.params, ids)}", written)
    return _joined(list(_parts(target, prompts[: int(plan["count"])], asked.new_tokens, work))), float(plan["minutes"])


def _parts(target: Model, prompts: list[list[int]], new_tokens: int, work: Path) -> Iterator[Continued]:
    """Yield answers to ``BATCH`` prompts at a time; those of an earlier call are read."""
    from jaxspec.generation import continued

    for at in range(0, len(prompts), BATCH):
        rows = prompts[at : at + BATCH]
        yield continued(target, rows, new_tokens, progress=True, batch_size=BATCH, directory=work)


def _joined(parts: list[Continued]) -> Continued:
    longest = max(part.tokens.shape[1] for part in parts)
    padded = [np.pad(part.tokens, ((0, 0), (0, longest - part.tokens.shape[1])), constant_values=-1) for part in parts]
    return Continued(np.concatenate(padded), np.concatenate([part.starts for part in parts]))
