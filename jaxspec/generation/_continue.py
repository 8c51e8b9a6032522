"""Texts that a target wrote: prompts of any lengths, continued in batches of like length, kept on disk if wanted."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from jaxspec.core.digests import digest
from jaxspec.core.files import kept
from jaxspec.generation._generate import generate
from jaxspec.generation.requests import Prompt, encoded
from jaxspec.generation.sampling import Sampling
from jaxspec.methods import autoregressive
from jaxspec.models.base import Model
from jaxspec.models.config import described
from jaxspec.text.prompts import Continued


def continued(
    target: Model,
    prompts: np.ndarray | Sequence[Prompt],
    new_tokens: int,
    progress: bool = False,
    batch_size: int = 96,
    temperature: float = 0.0,
    directory: Path | None = None,
    mesh: Mesh | None = None,
) -> Continued:
    """Continue prompts with ``generate``, ``batch_size`` rows at a time, those of like length together.

    A row ends after ``new_tokens`` tokens, or earlier at one of the model's stop tokens (``Text.stop``).

    Args:
        target: writes the tokens.
        prompts: [n, P], or prompts of any length as for ``generate``; the longest decides the width of the result.
        new_tokens: L.
        progress: show a bar.
        batch_size: rows at a time.
        temperature: of the target; with 0 the tokens are its most likely ones.
        directory: where every batch is kept; those that are there already are read.
        mesh: where the target runs. Default: the first device.
    """
    ids = encoded(prompts.tolist() if isinstance(prompts, np.ndarray) else prompts, target.text)
    starts = np.asarray([len(row) for row in ids])
    tokens = np.full((len(ids), starts.max(initial=0) + new_tokens), -1, np.int32)
    write = _writer(target, new_tokens, temperature, directory, mesh)
    order = np.argsort(starts, kind="stable")
    with tqdm(total=len(ids), desc="continue", unit="text", disable=not progress) as bar:
        for batch in np.split(order, range(batch_size, len(ids), batch_size)):
            for row, new in zip(batch, write([ids[row] for row in batch], batch), strict=True):
                tokens[row, : starts[row]], tokens[row, starts[row] : starts[row] + new_tokens] = ids[row], new
            bar.update(len(batch))
    return Continued(tokens, int(starts[0]) if len(set(starts.tolist())) == 1 else starts)


def _writer(
    target: Model, new_tokens: int, temperature: float, directory: Path | None, mesh: Mesh | None
) -> Callable[[list[np.ndarray], np.ndarray], np.ndarray]:
    """Return a function from prompts and seeds to the target's tokens [n, L], padded with −1; kept in ``directory``."""
    method, stop = autoregressive(target, mesh), sorted(target.text.stop) if target.text else []

    def written(ids: list[np.ndarray], seeds: np.ndarray) -> dict[str, np.ndarray]:
        sampling = Sampling(temperature=temperature, seed=seeds.tolist())
        rows = generate(method, [row.tolist() for row in ids], new_tokens, sampling=sampling).tokens
        padded = [np.pad(np.asarray(row, np.int32), (0, new_tokens - len(row)), constant_values=-1) for row in rows]
        return {"tokens": np.stack(padded)}

    def write(ids: list[np.ndarray], seeds: np.ndarray) -> np.ndarray:
        about = f"{described(target.network.config)} {[len(row) for row in ids]} {new_tokens} {stop} {temperature}"
        parts = [np.concatenate(ids), *([seeds] if temperature else [])]
        name = f"said-{digest(about, target.params, np.concatenate(parts))}"
        return kept(directory, name, partial(written, ids, seeds))["tokens"]

    return write
