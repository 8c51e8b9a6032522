"""How the embedded pair was made: ``python -m jaxspec train shakespeare --out DIR`` runs exactly this.

1. Roles: 160 roles of 2,000 characters or more stay out (``held_out.json``, drawn once by seed 0); the rest is text.
2. Target: a language model with an exit loss. It never sees the draft. Beside it the same model without that loss.
3. Draft: two layers, distilled from the target's law on the same text.
4. Streams: two lookahead streams on the draft, which stays as it is, trained on the target's own continuations of text.
"""

import json
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer

from jaxspec import federated
from jaxspec.drafts.streams import streaming as streaming_draft
from jaxspec.models import decoder
from jaxspec.models.base import Model
from jaxspec.models.config import DecoderConfig
from jaxspec.text.tokenizer import encode, train_tokenizer
from jaxspec.training import (
    Schedule,
    bits_per_character,
    distillation_loss,
    fit,
    fit_streams,
    hidden_states,
    language_model_loss,
    streaming_loss,
)
from jaxspec.verify.exits import LogitLens
from jaxspec.zoo import Pair, save


@dataclass(frozen=True)
class Recipe:
    """Everything the pair depends on.

    Attributes:
        target: shape of the target; vocab_size is set by the tokenizer.
        draft: shape of the draft, likewise.
        vocab_size: of a byte-pair tokenizer; None is characters.
        exit_layer: layers in the prefix ℓₑ.
        exit_weight: weight of the exit loss.
        target_schedule: training of target and control.
        draft_schedule: distillation of the draft.
        stream_schedule: training of the draft's lookahead streams.
        held_out_characters: of the roles that stay out, on which bits per character are measured.
        seed: of initial weights and batches.
    """

    target: DecoderConfig = DecoderConfig(1, 256, 8, 4, 2, 64, 768)
    draft: DecoderConfig = DecoderConfig(1, 128, 2, 4, 2, 32, 352)
    vocab_size: int | None = None
    exit_layer: int = 3
    exit_weight: float = 0.2
    target_schedule: Schedule = field(default_factory=lambda: Schedule(steps=1000))
    draft_schedule: Schedule = field(default_factory=lambda: Schedule(steps=1000, learning_rate=4e-3))
    stream_schedule: Schedule = field(default_factory=lambda: Schedule(400, 12, 160, 4e-3))
    held_out_characters: int = 200_000
    seed: int = 0


def held_out_ids() -> tuple[int, ...]:
    """Ids of the roles that no model of the pair has seen, ascending."""
    return tuple(json.loads((resources.files("jaxspec.zoo") / "shakespeare" / "held_out.json").read_text()))


def held_out_roles() -> tuple[federated.Role, ...]:
    """The roles that no model of the pair has seen, ascending by id."""
    return federated.split_roles(federated.read_roles(), held_out_ids())[1]


def draw_held_out(count: int = 160, min_chars: int = 2000, seed: int = 0) -> list[int]:
    """The draw behind ``held_out.json``: ``count`` roles of at least ``min_chars`` characters."""
    ids = [role.id for role in federated.read_roles(min_chars=min_chars)]
    return sorted(np.random.default_rng(seed).permutation(ids)[:count].tolist())


@dataclass(frozen=True)
class Corpus:
    """Token arrays of the recipe and the tokenizer that made them."""

    tokenizer: Tokenizer
    train: np.ndarray
    held_out: np.ndarray
    held_out_characters: int


def corpus(recipe: Recipe, tokenizer: Tokenizer | None = None) -> Corpus:
    """Trains the tokenizer on the roles that stay in, unless there is one, and encodes both sides."""
    stay, out = federated.split_roles(federated.read_roles(), held_out_ids())
    train_text = "\n".join(role.text for role in stay)
    held_out_text = "\n".join(role.text for role in out)[: recipe.held_out_characters]
    tokenizer = tokenizer or train_tokenizer([train_text], recipe.vocab_size)
    train, held_out = (encode(tokenizer, text) for text in (train_text, held_out_text))
    return Corpus(tokenizer, train, held_out, len(held_out_text))


class Trained(NamedTuple):
    """Outcome of the recipe: target, control without an exit loss, draft without and with streams, held-out bits."""

    target: Model
    control: Model
    draft: Model
    streaming: Model
    bits_per_character: dict[str, float]


def run(recipe: Recipe, data: Corpus, out: Path, progress: bool = True) -> Trained:
    """Trains target, control and draft; each stage resumes from its own checkpoints in ``out``."""
    target = train_target(recipe, data, out / "target", recipe.exit_layer, progress)
    control = train_target(recipe, data, out / "control", None, progress)
    draft = train_draft(recipe, data, target, out / "draft", progress)
    streaming = train_streams(recipe, data, target, draft, out / "streams", progress)
    models = {"target": target, "control": control, "draft": draft}
    bits = {name: bits_per_character(model, data.held_out, data.held_out_characters) for name, model in models.items()}
    return Trained(**models, streaming=streaming, bits_per_character=bits)


def main(recipe: Recipe, out: Path) -> dict[str, Any]:
    """Runs the recipe, writes the pair to ``out/pair``, and returns its figures."""
    data = corpus(recipe)
    trained = run(recipe, data, out)
    bits = {name: round(value, 4) for name, value in trained.bits_per_character.items()}
    figures = {
        "held_out_bits_per_character": bits,
        "cost_of_exit_loss": round(bits["target"] / bits["control"] - 1, 4),
        "parameters": {name: _size(getattr(trained, name)) for name in ("target", "draft")},
        "exit_containment": containment(trained.target, recipe.exit_layer, data.held_out),
    }
    pair = Pair(trained.target, trained.draft, LogitLens(), recipe.exit_layer, data.tokenizer, figures)
    save(pair._replace(streaming=trained.streaming), out / "pair")
    return figures


def containment(
    target: Model, exit_layer: int, corpus: np.ndarray, count: int = 64, length: int = 256
) -> dict[str, float]:
    """How often the exit's top 1, 4 and 8 hold the target's most likely token, on windows of a corpus."""
    tokens = jnp.asarray(corpus[: count * length].reshape(count, length))
    early, final = jax.jit(partial(hidden_states, target.network, exits=(exit_layer,)))(target.params, tokens)
    top = jax.lax.top_k(jnp.moveaxis(LogitLens()(target.network, target.params, early), 0, -1), 8)[1]
    chosen = jnp.argmax(target.network.logits(target.params, final), axis=0)
    hits = np.asarray(top == chosen[:, :, None])
    return {f"top{k}": round(float(hits[..., :k].any(axis=-1).mean()), 4) for k in (1, 4, 8)}


def _size(model: Model) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(model.params))


def train_target(recipe: Recipe, data: Corpus, directory: Path, exit_layer: int | None, progress: bool = True) -> Model:
    """A language model on the training roles, with or without the exit loss; same weights and batches at the start."""
    model = decoder(_sized(recipe.target, data), jax.random.key(recipe.seed))
    loss = language_model_loss(model.network, exit_layer, recipe.exit_weight)
    return _fitted(model, loss, recipe.target_schedule, data, recipe.seed, directory, progress)


def train_draft(recipe: Recipe, data: Corpus, target: Model, directory: Path, progress: bool = True) -> Model:
    """A draft distilled from the target's law on the training roles."""
    model = decoder(_sized(recipe.draft, data), jax.random.key(recipe.seed + 1))
    loss = distillation_loss(model.network, target)
    return _fitted(model, loss, recipe.draft_schedule, data, recipe.seed + 1, directory, progress)


def train_streams(
    recipe: Recipe, data: Corpus, target: Model, draft: Model, directory: Path, progress: bool = True
) -> Model:
    """Two lookahead streams on a draft that stays as it is, from the target's continuations of training text."""
    schedule = recipe.stream_schedule
    starts = np.random.default_rng(recipe.seed).integers(0, len(data.train) - 32, 32 * schedule.batch_size)
    prompts = data.train[starts[:, None] + np.arange(32)]
    tokens = federated.continued(target, prompts, schedule.sequence_length - 32, progress).tokens
    config = draft.network.config
    start = config.tracks.meetings(config.num_layers)[-2] if config.tracks else config.num_layers - 1
    made = streaming_draft(draft, start=start, seed=recipe.seed)
    return fit_streams(made, tokens, schedule=schedule, directory=directory, progress=progress)


def add_streams(recipe: Recipe, pair: Pair, out: Path) -> dict[str, Any]:
    """Trains streams for the draft of a finished pair and writes it to ``out/pair``; how often each guess is right."""
    data = corpus(recipe, tokenizer=pair.tokenizer)
    streaming = train_streams(recipe, data, pair.target, pair.draft, out / "streams")
    save(pair._replace(streaming=streaming), out / "pair")
    return guesses(pair.target, streaming, data.held_out)


def guesses(target: Model, streaming: Model, held_out: np.ndarray, count: int = 64) -> dict[str, Any]:
    """How often each stream is right about the target's own continuations of held-out text."""
    prompts = held_out[: count * 32].reshape(count, 32)
    tokens = federated.continued(target, prompts, 96).tokens
    loss = jax.jit(streaming_loss(streaming.network))
    aux = loss(streaming.params, {"tokens": jnp.asarray(tokens)}, jax.random.key(0))[1]
    return {name: round(float(value), 4) for name, value in aux.items()}


def _fitted(
    model: Model, loss: Any, schedule: Schedule, data: Corpus, seed: int, directory: Path, progress: bool
) -> Model:
    params = fit(
        loss,
        model.params,
        lambda step: schedule.batch(data.train, seed, step),
        schedule,
        directory=directory,
        seed=seed,
        label=directory.name,
        progress=progress,
    )
    return model._replace(params=params)


def _sized(config: DecoderConfig, data: Corpus) -> DecoderConfig:
    return replace(config, vocab_size=data.tokenizer.get_vocab_size())
