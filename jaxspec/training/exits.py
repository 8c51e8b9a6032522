"""Exit heads over frequent tokens, fitted to a target's stored hidden states along its own answers."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jaxspec.core.digests import digest
from jaxspec.drafts import frequent_tokens
from jaxspec.models.base import Array, Model, Params
from jaxspec.models.heads import narrowed
from jaxspec.text.prompts import Continued
from jaxspec.training._fit import Schedule, fit, within
from jaxspec.training._positions import Places, places_of
from jaxspec.training.losses import LossFn
from jaxspec.verify.exits import FrequentLens, init_frequent_lens

#: κ of reported containment.
KAPPAS = (1, 4, 8)
#: Places at which it is measured, at most.
MEASURED = 4096
#: How often it is measured during a fit.
REPORTS = 8
#: Share of the time that a fit may take for steps; the rest is for measuring and compiling.
FOR_STEPS = 0.9


@dataclass(frozen=True)
class ExitRecipe:
    """How exit heads are made and trained.

    Attributes:
        vocabulary: K, tokens that have a row, the most frequent ones of the answers; None: all.
        rank: hidden units of the correction.
        minutes: time of hidden states and steps, from which the number of steps follows; None: the schedule's own.
        schedule: ``batch_size`` are places of one step; ``sequence_length`` is not used.
    """

    vocabulary: int | None = 8192
    rank: int = 1024
    minutes: float | None = None
    schedule: Schedule = Schedule(steps=1000, batch_size=1024, learning_rate=1e-3)  # noqa: RUF009  frozen


class FittedExit(NamedTuple):
    """An exit head, and how often its κ best tokens contain the target's next one on held-out answers, by κ."""

    head: FrequentLens
    contained: dict[int, float]


def exits_loss(target: Model, tokens: Array) -> LossFn:
    """Build the sum over exits of L = −Σ_v p^N(v)·log p^E(v) over the K tokens alone; nats per token.

    Parameters: the trained arrays of each exit's ``FrequentLens``, in the order of the states in ``batch["hidden"]``
    [S + 1, D, 1, n], the last of which is that after the target's last layer. The target is not trained.
    """
    network, frozen = target.network, target.params
    teacher = narrowed(target, np.asarray(tokens))

    def loss_fn(params: Params, batch: Mapping[str, Array], key: Array) -> tuple[Array, dict[str, Array]]:
        *early, final = batch["hidden"]
        probabilities = jax.nn.softmax(teacher.network.logits(teacher.params, final), axis=0)
        losses = [
            -jnp.mean(jnp.sum(probabilities * jax.nn.log_softmax(head.scores(network, frozen, x), axis=0), axis=0))
            for head, x in zip(_heads(params, tokens), early, strict=True)
        ]
        return sum(losses[1:], losses[0]), {}

    return loss_fn


def fit_exits(
    target: Model,
    layers: Sequence[int],
    texts: Continued,
    *,
    held_out: Continued | None = None,
    recipe: ExitRecipe = ExitRecipe(),  # noqa: B008  a frozen default
    seed: int = 0,
    directory: str | Path | None = None,
    hidden: str | Path | None = None,
    progress: bool = True,
) -> dict[int, FittedExit]:
    """Fit an exit head to each of some layers, all in the same steps (``exits_loss``).

    The target runs over the texts once; hidden states are read from disk afterwards.

    Args:
        target: is not changed.
        layers: ℓₑ, different ones.
        texts: best the target's own answers (``federated.continued``); prompts are trained on too.
        held_out: further answers, on which containment is measured; default: every eighth of ``texts``, which is then
            not trained on.
        recipe: sizes and schedule.
        seed: of heads and batches.
        directory: of steps, to resume from with the same arguments; default: a temporary one.
        hidden: where the target's hidden states are kept, which several fits can share; default: in ``directory``.
        progress: show bars, and containment while it trains.

    Raises:
        ValueError: layers that the target lacks or that occur twice, too few texts, or a target that
            ``init_frequent_lens`` refuses.
        FloatingPointError: the loss is not finite; names the step.
    """
    check_layers(target, layers)
    layers, start = tuple(sorted(layers)), time.monotonic()
    texts, held_out = _divided(texts, held_out)
    ids = jnp.asarray(_ids(target, texts, recipe.vocabulary))
    with TemporaryDirectory() as temporary:
        folder = Path(temporary if directory is None else directory)
        stored = partial(places_of, target, layers, folder=Path(hidden or folder / "hidden"), progress=progress)
        training = stored(texts, prompts=True).followed_by(np.asarray(ids))
        measured = _Containment(target, ids, stored(held_out))
        params = _fitted(target, layers, ids, training, measured, (recipe, seed, folder, progress, start))
        shares = measured(params)
    heads = _heads(params, ids)
    return {layer: FittedExit(head, share) for layer, head, share in zip(layers, heads, shares, strict=True)}


def check_layers(target: Model, layers: Sequence[int]) -> None:
    """Raise ValueError unless these are different layers of a target, the last one not among them."""
    count = target.network.config.num_layers
    if not layers or len(set(layers)) < len(layers) or not 1 <= min(layers) <= max(layers) < count:
        raise ValueError(
            f"expected different layers from 1 to {count - 1}, got {', '.join(map(str, layers)) or 'none'}"
        )


def _divided(texts: Continued, held_out: Continued | None) -> tuple[Continued, Continued]:
    if held_out is None:
        is_held = np.arange(len(texts.tokens)) % 8 == 0
        if np.all(is_held):
            raise ValueError(f"expected at least 2 texts to fit exits, got {len(texts.tokens)}; pass more prompts")
        texts, held_out = texts.rows(np.flatnonzero(~is_held)), texts.rows(np.flatnonzero(is_held))
    return texts, held_out


def _ids(target: Model, texts: Continued, count: int | None) -> np.ndarray:
    """Return the tokens that get a row: the most frequent ones of the answers, ascending."""
    most = target.network.config.vocab_size
    return frequent_tokens(texts.answers, most if count is None else min(count, most), most)


def _fitted(
    target: Model,
    layers: tuple[int, ...],
    ids: Array,
    training: Places,
    measured: "_Containment",
    how: tuple[ExitRecipe, int, Path, bool, float],
) -> Params:
    recipe, seed, folder, progress, started = how
    schedule, keys = recipe.schedule, jax.random.split(jax.random.key(seed), len(layers))
    start = [_trained(init_frequent_lens(target, ids, recipe.rank, key)) for key in keys]
    loss = exits_loss(target, ids)

    def batch(step: int) -> dict[str, np.ndarray]:
        return {"hidden": training.drawn(seed, step, schedule.batch_size)}

    folder = folder / f"exits-{digest(f'{layers} {recipe} {seed}', None, np.asarray(ids))}"
    if recipe.minutes is not None:
        left = max(recipe.minutes - (time.monotonic() - started) / 60, 0.0)
        schedule = within(replace(schedule, minutes=FOR_STEPS * left), loss, start, batch, folder)
    watch = partial(_watch, layers, measured, max(1, schedule.steps // REPORTS)) if progress else None
    options: dict[str, Any] = {"label": "exits", "progress": progress, "until": watch, "seed": seed}
    return fit(loss, start, batch, schedule, directory=folder / "steps", **options)


def _watch(layers: tuple[int, ...], measured: "_Containment", every: int, step: int, params: Params) -> bool:
    """Print how often the best tokens contain the target's, every so many steps; never end the fit."""
    if step % every == 0:
        for layer, shares in zip(layers, measured(params), strict=True):
            row = ", ".join(f"{100 * share:.1f} % among {kappa}" for kappa, share in shares.items())
            tqdm.write(f"step {step}, exit {layer}: the target's token {row}")
    return False


class _Containment:
    """How often the κ best tokens of exits contain the token that follows, on held-out places."""

    def __init__(self, target: Model, ids: Array, places: Places):
        if not len(places.rows):
            raise ValueError("expected held-out texts with answers, got none; pass more prompts")
        chosen = np.linspace(0, len(places.rows) - 1, min(MEASURED, len(places.rows))).astype(int)
        self._states = places.at(chosen)
        self._following = places.following[chosen]
        self._ids = ids
        best = min(max(KAPPAS), len(ids))

        def top(params: Params, states: Array) -> list[Array]:
            heads = _heads(params, ids)
            scores = [head.scores(target.network, target.params, x) for head, x in zip(heads, states, strict=True)]
            return [jax.lax.top_k(jnp.moveaxis(each[:, 0], 0, -1), best)[1] for each in scores]

        self._top = jax.jit(top)

    def __call__(self, params: Params) -> list[dict[int, float]]:
        """Return the shares by κ, of each exit."""
        ids = np.asarray(self._ids)
        hits = [ids[np.asarray(best)] == self._following[:, None] for best in self._top(params, self._states[:-1])]
        return [{kappa: float(hit[:, :kappa].any(axis=1).mean()) for kappa in KAPPAS} for hit in hits]


def _trained(head: FrequentLens) -> Params:
    """Return the arrays of a head that are trained."""
    return {name: leaf for name, leaf in head._asdict().items() if name != "tokens"}


def _heads(params: Params, ids: Array) -> list[FrequentLens]:
    return [FrequentLens(ids, **own) for own in params]
