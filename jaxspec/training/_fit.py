"""A small trainer that resumes: optimiser steps over batches that are a function of the step number."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from jaxfed import checkpoint
from jaxspec.core.files import read_json
from jaxspec.models.base import Array, Params
from jaxspec.text.prompts import with_prefix
from jaxspec.training.losses import LossFn

#: Steps that are timed to find how many take some minutes.
TIMED = 5


@dataclass(frozen=True)
class Schedule:
    """Optimiser steps and their sizes: AdamW with linear warm-up, cosine decay to zero, global norm clipped at 1.

    Attributes:
        steps: optimiser steps.
        batch_size: sequences per step.
        sequence_length: labels per sequence.
        learning_rate: peak.
        warmup: steps.
        minutes: as many steps as take so long here, in place of ``steps`` (``fit_draft``); compiling comes on top.
    """

    steps: int = 1000
    batch_size: int = 8
    sequence_length: int = 256
    learning_rate: float = 2e-3
    warmup: int = 50
    minutes: float | None = None

    def optimiser(self) -> optax.GradientTransformation:
        """Return the optax transformation."""
        rate = optax.warmup_cosine_decay_schedule(
            0.0, self.learning_rate, self.warmup, max(self.steps, self.warmup + 1)
        )
        return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, b2=0.98, weight_decay=0.01))

    def batch(
        self, corpus: np.ndarray, seed: int, step: int, first: Sequence[int] | np.ndarray = ()
    ) -> dict[str, np.ndarray]:
        """Draw random windows of a flat token array, a function of (seed, step) alone: ``tokens`` [B, T + 1].

        Each begins with the tokens ``first``, for example ``text.prompts.prompt_prefix`` of the tokenizer.
        """
        generator = np.random.default_rng((seed, step))
        starts = generator.integers(0, len(corpus) - self.sequence_length, self.batch_size)
        rows = corpus[starts[:, None] + np.arange(self.sequence_length + 1)[None]]
        return {"tokens": with_prefix(rows, np.asarray(first, np.int32))}


def within(
    schedule: Schedule,
    loss_fn: LossFn,
    params: Params,
    batch_fn: Callable[[int], Mapping[str, Any]],
    directory: Path | None = None,
) -> Schedule:
    """Return a schedule of as many steps as take its ``minutes`` here, by the time of the first ones.

    Args:
        schedule: is returned as it is without ``minutes``; the warm-up takes a tenth of the steps at most.
        loss_fn: as of ``fit``.
        params: as of ``fit``.
        batch_fn: as of ``fit``.
        directory: where the number of steps is kept, so that a later call resumes with the same one.
    """
    if schedule.minutes is None:
        return schedule
    path = None if directory is None else directory / "schedule.json"
    if path is not None and path.is_file():
        steps = int(read_json(path)["steps"])
    else:
        steps = max(1, int(60 * schedule.minutes / _seconds_a_step(schedule, loss_fn, params, batch_fn)))
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"steps": steps, "minutes": schedule.minutes}) + "\n")
    return replace(schedule, steps=steps, warmup=min(schedule.warmup, -(-steps // 10)))


def _seconds_a_step(
    schedule: Schedule, loss_fn: LossFn, params: Params, batch_fn: Callable[[int], Mapping[str, Any]]
) -> float:
    optimiser, key, seconds = schedule.optimiser(), jax.random.key(0), []
    step_fn = jax.jit(partial(_step, loss_fn, optimiser))
    state = TrainState(params, optimiser.init(params), jnp.int32(0))
    for step in range(TIMED + 1):
        start = time.perf_counter()
        jax.block_until_ready(step_fn(state, dict(batch_fn(step)), key))
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds[1:]))


class TrainState(NamedTuple):
    """Parameters, optimiser state and step count, one value so that an interruption never sees half a step."""

    params: Params
    optimiser: Any
    step: Array


def fit(
    loss_fn: LossFn,
    params: Params,
    batch_fn: Callable[[int], Mapping[str, Any]],
    schedule: Schedule,
    *,
    directory: str | Path | None = None,
    seed: int = 0,
    label: str = "train",
    progress: bool = True,
    save_every: int = 100,
    until: Callable[[int, Params], bool] | None = None,
) -> Params:
    """Minimise ``loss_fn`` over ``schedule.steps`` batches ``batch_fn(step)`` and return the parameters.

    With a ``directory`` the state is saved every ``save_every`` steps. A later call with the same arguments resumes
    from the last good step. Ctrl-C saves before it ends, if the parameters are finite. ``until`` gets the number of
    steps done and the parameters before every step; the fit ends where it returns True.

    Raises:
        FloatingPointError: the loss is not finite; names the step.
        jaxfed.checkpoint.CheckpointError: ``directory`` cannot be written, another call is using it, or its newest step
            is damaged (names the file and the last good step: delete the damaged folder to resume from that one).
    """
    optimiser, key = schedule.optimiser(), jax.random.key(seed)
    state, first = TrainState(params, optimiser.init(params), jnp.int32(0)), 0
    if directory is not None and (last := checkpoint.latest(directory)) is not None:
        state, first = checkpoint.load(directory, like=state, step=last), last
    step_fn = jax.jit(partial(_step, loss_fn, optimiser))
    bar = tqdm(
        range(first, schedule.steps), label, initial=first, total=schedule.steps, disable=not progress, unit="step"
    )
    with _writer(directory if first < schedule.steps else None) as writer:
        try:
            for step in bar:
                if until is not None and until(step, state.params):
                    _save_now(writer, directory, state)
                    break
                state, loss, aux = step_fn(state, dict(batch_fn(step)), jax.random.fold_in(key, step))
                done = step + 1
                saving = done % save_every == 0 or done == schedule.steps
                if done % 20 == 0 or saving:
                    _check_finite(step, loss, state.params)
                    bar.set_postfix({"loss": f"{float(loss):.3f}", **{name: f"{float(aux[name]):.3f}" for name in aux}})
                if writer is not None and saving:
                    writer.save(done, state)
        except KeyboardInterrupt:
            if _save_now(writer, directory, state):
                tqdm.write(
                    f"{label}: saved step {int(state.step)} in {directory}; run the same command again to resume"
                )
            raise
    return state.params


def _save_now(writer: checkpoint.Writer | None, directory: str | Path | None, state: TrainState) -> bool:
    """Save the state unless it is saved already; return whether there is anything to resume from."""
    if writer is None or directory is None:
        return False
    writer.wait()
    if not _finite(state.params):
        return False
    if checkpoint.latest(directory) != int(state.step):
        writer.save(int(state.step), state)
    return True


def _writer(directory: str | Path | None) -> AbstractContextManager[checkpoint.Writer | None]:
    """Open a writer that keeps two steps, so that a good one is left if the newest is damaged."""
    return nullcontext() if directory is None else checkpoint.Writer(directory, kind="training", keep=2)


def _step(loss_fn: LossFn, optimiser: Any, state: TrainState, batch: Any, key: Array) -> tuple[TrainState, Array, Any]:
    (loss, aux), gradients = jax.value_and_grad(loss_fn, has_aux=True)(state.params, batch, key)
    with jax.numpy_dtype_promotion("standard"):
        updates, inner = optimiser.update(gradients, state.optimiser, state.params)
        params = optax.apply_updates(state.params, updates)
    return TrainState(params, inner, state.step + 1), loss, aux


def _check_finite(step: int, loss: Array, params: Params) -> None:
    """Check the loss and the parameters before they are saved."""
    if not np.isfinite(float(loss)) or not _finite(params):
        raise FloatingPointError(f"step {step}: the loss is {float(loss)}; lower the learning rate or check the batch")


def _finite(params: Params) -> bool:
    return bool(np.isfinite(float(optax.tree.norm(params))))
