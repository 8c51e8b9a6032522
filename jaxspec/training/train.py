"""Language-model, exit and distillation losses, and a small trainer that resumes.

Losses are ``loss_fn(params, batch, key) -> (loss, aux)``, so that a trainer here and a federation in ``jaxfed`` take
the same ones. A batch is a mapping with ``tokens`` [B, T] int32 and, where examples may be padding, ``mask`` [B] bool.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from jaxfed import checkpoint
from jaxspec.models.attention import causal
from jaxspec.models.base import Array, Model, Network, Params
from jaxspec.text.prompts import prompt_prefix, with_prefix
from jaxspec.verify.exits import AffineLens, init_affine_lens

LossFn = Callable[[Params, Mapping[str, Array], Array], tuple[Array, dict[str, Array]]]


def hidden_states(network: Network, params: Params, tokens: Array, exits: tuple[int, ...] = ()) -> list[Array]:
    """Hidden states x [D, B, T] after each layer count of ``exits`` and after the last layer, without a cache."""
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1])[None], tokens.shape)
    count = network.config.num_layers
    x, start = network.embed(params, tokens), 0
    states: list[Array] = []
    for stop in (*exits, count):
        x, _ = network.blocks(params, x, positions, (None,) * count, causal(), range(start, stop))
        states, start = [*states, x], stop
    return states


def log_probabilities(network: Network, params: Params, tokens: Array) -> Array:
    """log p(next token | tokens so far): [V, B, T]."""
    return jax.nn.log_softmax(network.logits(params, hidden_states(network, params, tokens)[-1]), axis=0)


def language_model_loss(network: Network, exit_layer: int | None = None, exit_weight: float = 0.2) -> LossFn:
    """Cross-entropy of the next token, plus ``exit_weight`` times the same of an early exit.

    L = CE(head(norm(x^(N))), y) + w·CE(head(norm(x^(ℓₑ))), y): the exit shares final norm and head, and so becomes a
    logit lens that is worth sending (LayerSkip, arXiv 2404.16710, §3). Nats per token.
    """
    exits = () if exit_layer is None else (exit_layer,)

    def loss_fn(params: Params, batch: Mapping[str, Array], key: Array) -> tuple[Array, dict[str, Array]]:
        inputs, labels = batch["tokens"][:, :-1], batch["tokens"][:, 1:]
        *early, final = (
            mean_counted(cross_entropy(network.logits(params, x), labels), batch)
            for x in hidden_states(network, params, inputs, exits)
        )
        return final + exit_weight * sum(early), {"final": final} | dict(zip(("exit",), early, strict=False))

    return loss_fn


def distillation_loss(network: Network, teacher: Model | None = None) -> LossFn:
    """Cross-entropy of a draft against a teacher's law: L = −Σ_v p^N(v)·log p^D(v); nats per token.

    With a ``teacher`` its law is computed with the batch. Without one the batch carries what the teacher said: its own
    greedy choice after every token as ``labels`` [B, T] (−1: not counted), L = −log p^D(label); or its k most likely
    tokens by falling probability, ``top_tokens`` [B, T, k] and ``top_logs``, which are scaled to sum to 1.
    """

    def loss_fn(params: Params, batch: Mapping[str, Array], key: Array) -> tuple[Array, dict[str, Array]]:
        log_draft = log_probabilities(network, params, batch["tokens"])
        if teacher is None:
            losses, choice = _against_told(log_draft, batch)
        else:
            log_target = jax.lax.stop_gradient(log_probabilities(teacher.network, teacher.params, batch["tokens"]))
            losses, choice = -jnp.sum(jnp.exp(log_target) * log_draft, axis=0), jnp.argmax(log_target, axis=0)
        agreement = jnp.argmax(log_draft, axis=0) == choice
        return mean_counted(losses, batch), {"agreement": mean_counted(agreement.astype(jnp.float32), batch)}

    return loss_fn


def told_loss(logits: Array, batch: Mapping[str, Array]) -> Array:
    """Cross-entropy of logits [V, B, T] against what a batch carries of the teacher (``distillation_loss``): [B, T]."""
    return _against_told(jax.nn.log_softmax(logits, axis=0), batch)[0]


def _against_told(log_draft: Array, batch: Mapping[str, Array]) -> tuple[Array, Array]:
    """Losses and the teacher's choice, [B, T] each."""
    if "top_tokens" not in batch:
        labels = batch["labels"]
        return jnp.where(labels >= 0, _pick(-log_draft, jnp.maximum(labels, 0)), 0.0), labels
    tokens, weights = batch["top_tokens"], jax.nn.softmax(batch["top_logs"], axis=-1)
    parts = [weights[..., i] * _pick(-log_draft, tokens[..., i]) for i in range(tokens.shape[-1])]
    return sum(parts[1:], parts[0]), tokens[..., 0]


def lens_loss(target: Model, exit_layer: int) -> LossFn:
    """Cross-entropy of an exit head against the target's law p^(N): L = −Σ_v p^N(v)·log p^E(v), nats per token.

    The parameters are the exit head's own, such as ``exits.init_affine_lens``; target, norm and output head stay as
    they are.
    """
    network, frozen = target.network, target.params

    def loss_fn(lens: Params, batch: Mapping[str, Array], key: Array) -> tuple[Array, dict[str, Array]]:
        early, final = hidden_states(network, frozen, batch["tokens"], (exit_layer,))
        law = jax.nn.softmax(network.logits(frozen, final), axis=0)
        log_exit = jax.nn.log_softmax(lens(network, frozen, early), axis=0)
        return mean_counted(-jnp.sum(law * log_exit, axis=0), batch), {}

    return loss_fn


def cross_entropy(logits: Array, labels: Array) -> Array:
    """−log softmax(logits [V, B, T]) of labels [B, T], nats: [B, T]."""
    return _pick(-jax.nn.log_softmax(logits, axis=0), labels)


def _pick(table: Array, labels: Array) -> Array:
    """Entry ``labels`` [B, T] of table [V, B, T], without a gather (its gradient is a scatter, slow on CPU)."""
    return jnp.sum(jnp.where(jnp.arange(table.shape[0])[:, None, None] == labels[None], table, 0.0), axis=0)


def mean_counted(values: Array, batch: Mapping[str, Array]) -> Array:
    """Mean over the positions [B, T] that count: examples under ``mask``, labels that are not −1."""
    counted = jnp.ones_like(values)
    if "labels" in batch:
        counted = counted * (batch["labels"] >= 0).astype(values.dtype)
    if "mask" in batch:
        counted = counted * batch["mask"].astype(values.dtype)[:, None]
    return jnp.sum(values * counted) / jnp.maximum(jnp.sum(counted), 1.0)


@dataclass(frozen=True)
class Schedule:
    """Optimiser steps and their sizes: Adam with linear warm-up and cosine decay to zero, global norm clipped at 1.

    Attributes:
        steps: optimiser steps.
        batch_size: sequences a step.
        sequence_length: tokens a sequence predicts.
        learning_rate: peak.
        warmup: steps.
    """

    steps: int = 1000
    batch_size: int = 8
    sequence_length: int = 256
    learning_rate: float = 2e-3
    warmup: int = 50

    def optimiser(self) -> optax.GradientTransformation:
        """The optax transformation."""
        rate = optax.warmup_cosine_decay_schedule(
            0.0, self.learning_rate, self.warmup, max(self.steps, self.warmup + 1)
        )
        return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, b2=0.98, weight_decay=0.01))

    def batch(
        self, corpus: np.ndarray, seed: int, step: int, first: Sequence[int] | np.ndarray = ()
    ) -> dict[str, np.ndarray]:
        """Random windows of a flat token array, a function of (seed, step) alone: ``tokens`` [B, T + 1].

        Each begins with the tokens ``first``, ``prompt_prefix`` of the tokenizer.
        """
        generator = np.random.default_rng((seed, step))
        starts = generator.integers(0, len(corpus) - self.sequence_length, self.batch_size)
        rows = corpus[starts[:, None] + np.arange(self.sequence_length + 1)[None]]
        return {"tokens": with_prefix(rows, np.asarray(first, np.int32))}


class TrainState(NamedTuple):
    """Parameters, optimiser state, and the number of steps that made them, in one piece for an interruption."""

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
) -> Params:
    """Minimises ``loss_fn`` over ``schedule.steps`` batches ``batch_fn(step)`` and returns the parameters.

    With a ``directory`` the state is saved every ``save_every`` steps and a later call with the same arguments goes on
    from the last good step; Ctrl-C saves first and says so.

    Raises:
        FloatingPointError: the loss is not finite; names the step.
        jaxfed.checkpoint.CheckpointError: ``directory`` cannot be written, another call is at work in it, or its newest
            step is damaged (names the file, and the last good step: delete the folder of the other to go on from it).
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
                state, loss, aux = step_fn(state, dict(batch_fn(step)), jax.random.fold_in(key, step))
                done = step + 1
                saving = writer is not None and (done % save_every == 0 or done == schedule.steps)
                if done % 20 == 0 or done == schedule.steps or saving:
                    _check(step, loss, state.params)
                    bar.set_postfix({"loss": f"{float(loss):.3f}", **{name: f"{float(aux[name]):.3f}" for name in aux}})
                if writer is not None and saving:
                    writer.save(done, state)
        except KeyboardInterrupt:
            if writer is not None and directory is not None:
                writer.wait()
                if checkpoint.latest(directory) != (done := int(state.step)):
                    writer.save(done, state)
                tqdm.write(f"{label}: saved step {done} in {directory}; the same command goes on from there")
            raise
    return state.params


def fit_lens(
    target: Model,
    exit_layer: int,
    corpus: np.ndarray,
    *,
    rank: int = 32,
    schedule: Schedule = Schedule(steps=200, learning_rate=5e-3),  # noqa: B008  a frozen default
    seed: int = 0,
    directory: str | Path | None = None,
    progress: bool = True,
) -> AffineLens:
    """Fits an exit head to a target that was trained without one: an affine lens, distilled from p^(N) (``lens_loss``).

    Args:
        target: stays as it is.
        exit_layer: ℓₑ.
        corpus: tokens to distil on, flat, longer than one window of the schedule; every window begins with the tokens
            that the target's tokenizer puts before a prompt.
        rank: of the lens.
        schedule: optimiser steps; the default takes a minute or two for the embedded target on two cores.
        seed: of the lens and the batches.
        directory: where to save, and to go on from.
        progress: show a bar.

    Raises:
        ValueError: an exit layer out of range, a rank below 1, a corpus shorter than a window.
    """
    config = target.network.config
    if not 1 <= exit_layer <= config.num_layers or rank < 1:
        raise ValueError(f"expected 1 <= exit_layer <= {config.num_layers} and rank >= 1, got {exit_layer} and {rank}")
    if len(corpus) <= schedule.sequence_length + 1:
        raise ValueError(f"expected more than {schedule.sequence_length + 1} tokens to fit a lens, got {len(corpus)}")
    first = prompt_prefix(target.text)
    return fit(
        lens_loss(target, exit_layer),
        init_affine_lens(config.width, rank, jax.random.key(seed)),
        lambda step: schedule.batch(corpus, seed, step, first),
        schedule,
        directory=directory,
        seed=seed,
        label="lens",
        progress=progress,
    )


def _writer(directory: str | Path | None) -> AbstractContextManager[checkpoint.Writer | None]:
    """Two steps are kept, so that there is a good one when the newest is damaged."""
    return nullcontext() if directory is None else checkpoint.Writer(directory, kind="training", keep=2)


def _step(loss_fn: LossFn, optimiser: Any, state: TrainState, batch: Any, key: Array) -> tuple[TrainState, Array, Any]:
    (loss, aux), gradients = jax.value_and_grad(loss_fn, has_aux=True)(state.params, batch, key)
    with jax.numpy_dtype_promotion("standard"):
        updates, inner = optimiser.update(gradients, state.optimiser, state.params)
        params = optax.apply_updates(state.params, updates)
    return TrainState(params, inner, state.step + 1), loss, aux


def _check(step: int, loss: Array, params: Params) -> None:
    """What is not finite is neither trained on nor saved."""
    if not np.isfinite(float(loss)) or not np.isfinite(float(optax.tree.norm(params))):
        raise FloatingPointError(
            f"step {step}: the loss is {float(loss)}; lower the learning rate or look at the batch"
        )


def bits_per_character(model: Model, corpus: np.ndarray, characters: int, length: int = 256, batch: int = 8) -> float:
    """Cross-entropy of a flat token array in bits per character, in windows of ``length`` predicted tokens.

    Windows do not overlap, so the first tokens of each have little context; the incomplete last window is left out.
    Each begins with the tokens that the model's tokenizer puts before a prompt.
    """
    count = (len(corpus) - 1) // length
    windows = corpus[: count * length + 1][np.arange(count)[:, None] * length + np.arange(length + 1)[None]]
    windows = with_prefix(windows, prompt_prefix(model.text))
    loss = jax.jit(
        lambda params, tokens: language_model_loss(model.network)(params, {"tokens": tokens}, jax.random.key(0))[0]
    )
    parts = [windows[start : start + batch] for start in range(0, count, batch)]
    nats = sum(float(loss(model.params, jnp.asarray(part))) * len(part) for part in parts) / count
    return nats / np.log(2) * (len(corpus) / characters)
