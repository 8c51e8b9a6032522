"""The training of the embedded pair; ``python -m jaxspec train shakespeare --out DIR`` runs exactly this.

1. Roles: 160 roles of at least 2,000 characters are held out (``held_out.json``); the text of the others trains.
2. Target: a language model with an exit loss, trained without the draft; and a control model without that loss.
3. Draft: two layers, distilled from the target's distribution on the same text.
4. Streams: two lookahead streams for the draft, trained on the target's continuations; other weights stay fixed.
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
class PairRecipe:
    """All settings that the pair depends on.

    Attributes:
        target: configuration of the target; its vocab_size is replaced by the tokenizer's.
        draft: configuration of the draft; its vocab_size is replaced too.
        vocab_size: of a byte-pair tokenizer; None for a tokenizer of characters.
        exit_layer: layers in the prefix ℓₑ.
        exit_weight: weight of the exit loss.
        target_schedule: training of target and control.
        draft_schedule: distillation of the draft.
        stream_schedule: training of the draft's lookahead streams.
        held_out_characters: number of held-out characters on which bits per character are measured.
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
    """Return the ids of the roles on which no model of the pair was trained, ascending."""
    return tuple(json.loads((resources.files("jaxspec.zoo") / "shakespeare" / "held_out.json").read_text()))


def held_out_roles() -> tuple[federated.Role, ...]:
    """Return the roles on which no model of the pair was trained, ascending by id."""
    return federated.split_roles(federated.read_roles(), held_out_ids())[1]


@dataclass(frozen=True)
class Corpus:
    """Training and held-out tokens of the recipe, and their tokenizer."""

    tokenizer: Tokenizer
    train: np.ndarray
    held_out: np.ndarray
    held_out_characters: int


def corpus(recipe: PairRecipe, tokenizer: Tokenizer | None = None) -> Corpus:
    """Encode training and held-out roles; train the tokenizer on the training roles if none is passed."""
    train, held_out = federated.split_roles(federated.read_roles(), held_out_ids())
    train_text = "\n".join(role.text for role in train)
    held_out_text = "\n".join(role.text for role in held_out)[: recipe.held_out_characters]
    tokenizer = tokenizer or train_tokenizer([train_text], recipe.vocab_size)
    train_tokens, held_out_tokens = (encode(tokenizer, text) for text in (train_text, held_out_text))
    return Corpus(tokenizer, train_tokens, held_out_tokens, len(held_out_text))


class TrainedPair(NamedTuple):
    """Models of the recipe, the control (no exit loss) among them, and held-out bits per character by model."""

    target: Model
    control: Model
    draft: Model
    streaming: Model
    bits_per_character: dict[str, float]


def run(recipe: PairRecipe, data: Corpus, out: Path, progress: bool = True) -> TrainedPair:
    """Train target, control, draft and streams; each stage resumes from its own checkpoints in ``out``."""
    target = train_target(recipe, data, out / "target", recipe.exit_layer, progress)
    control = train_target(recipe, data, out / "control", None, progress)
    draft = train_draft(recipe, data, target, out / "draft", progress)
    streaming = train_streams(recipe, data, target, draft, out / "streams", progress)
    models = {"target": target, "control": control, "draft": draft}
    bits = {name: bits_per_character(model, data.held_out, data.held_out_characters) for name, model in models.items()}
    return TrainedPair(**models, streaming=streaming, bits_per_character=bits)


def main(recipe: PairRecipe, out: Path) -> dict[str, Any]:
    """Run the recipe, write the pair to ``out/pair``, and return its figures."""
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
    """Return how often the exit's top 1, 4 and 8 contain the target's argmax, on windows of a corpus."""
    tokens = jnp.asarray(corpus[: count * length].reshape(count, length))
    early, final = jax.jit(partial(hidden_states, target.network, exits=(exit_layer,)))(target.params, tokens)
    top = jax.lax.top_k(jnp.moveaxis(LogitLens()(target.network, target.params, early), 0, -1), 8)[1]
    chosen = jnp.argmax(target.network.logits(target.params, final), axis=0)
    hits = np.asarray(top == chosen[:, :, None])
    return {f"top{k}": round(float(hits[..., :k].any(axis=-1).mean()), 4) for k in (1, 4, 8)}


def _size(model: Model) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(model.params))


def train_target(
    recipe: PairRecipe, data: Corpus, directory: Path, exit_layer: int | None, progress: bool = True
) -> Model:
    """Train a language model, with the exit loss unless ``exit_layer`` is None; the rest is the same."""
    model = decoder(_sized(recipe.target, data), jax.random.key(recipe.seed))
    loss = language_model_loss(model.network, exit_layer, recipe.exit_weight)
    return _fitted(model, loss, recipe.target_schedule, data, recipe.seed, directory, progress)


def train_draft(recipe: PairRecipe, data: Corpus, target: Model, directory: Path, progress: bool = True) -> Model:
    """Distil a draft from the target's distribution on the training roles."""
    model = decoder(_sized(recipe.draft, data), jax.random.key(recipe.seed + 1))
    loss = distillation_loss(model.network, target)
    return _fitted(model, loss, recipe.draft_schedule, data, recipe.seed + 1, directory, progress)


def train_streams(
    recipe: PairRecipe, data: Corpus, target: Model, draft: Model, directory: Path, progress: bool = True
) -> Model:
    """Train two lookahead streams for a fixed draft, on the target's continuations of training text."""
    schedule = recipe.stream_schedule
    starts = np.random.default_rng(recipe.seed).integers(0, len(data.train) - 32, 32 * schedule.batch_size)
    prompts = data.train[starts[:, None] + np.arange(32)]
    tokens = federated.continued(target, prompts, schedule.sequence_length - 32, progress).tokens
    config = draft.network.config
    start = config.tracks.meetings(config.num_layers)[-2] if config.tracks else config.num_layers - 1
    streaming = streaming_draft(draft, start=start, seed=recipe.seed)
    return fit_streams(streaming, tokens, schedule=schedule, seed=recipe.seed, directory=directory, progress=progress)


def add_streams(recipe: PairRecipe, pair: Pair, out: Path) -> dict[str, Any]:
    """Train streams for a finished pair's draft, write the pair to ``out/pair``, and return each stream's accuracy."""
    data = corpus(recipe, tokenizer=pair.tokenizer)
    streaming = train_streams(recipe, data, pair.target, pair.draft, out / "streams")
    save(pair._replace(streaming=streaming), out / "pair")
    return stream_accuracy(pair.target, streaming, data.held_out)


def stream_accuracy(target: Model, streaming: Model, held_out: np.ndarray, count: int = 64) -> dict[str, Any]:
    """Return the accuracy of each stream on the target's continuations of held-out text."""
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
