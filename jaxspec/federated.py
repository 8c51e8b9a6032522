"""Federated drafts: the bridge, the one module that uses jaxfed beyond its checkpoint layer.

Clients hold private text. On a client the target continues windows of that text, and the draft learns to say what the
target says there; only drafts travel. The gain is accepted length on text of the same clients that nobody trained on.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm

import jaxfed
from jaxfed import checkpoint
from jaxfed.data.roles import Role, read_roles, split_roles, split_text
from jaxspec.autoregressive import autoregressive
from jaxspec.generate import generate
from jaxspec.probe import step_ends
from jaxspec.tokenizer import encode
from jaxspec.train import distillation_loss, log_probabilities
from jaxspec.types import Array, Model, Network, Params

__all__ = [
    "FedSpeedSettings",
    "Federation",
    "Outcome",
    "Report",
    "Role",
    "accepted_length",
    "client_examples",
    "compare",
    "continued",
    "read_roles",
    "split_roles",
    "split_text",
    "windows",
]


@dataclass(frozen=True)
class FedSpeedSettings:
    """What FedSpeed has beyond FedAvg: w = 1/λ, ρ and α."""

    prox_weight: float = 0.1
    ascent_radius: float = 0.01
    merge_weight: float = 0.5


@dataclass(frozen=True)
class Federation:
    """How a draft is federated.

    Attributes:
        rounds: communication rounds T.
        cohort_size: clients a round.
        local_steps: K.
        batch_size: sequences a local step.
        learning_rates: grid, the same for every method.
        fedspeed: what FedSpeed has beyond FedAvg.
        clip_norm: largest gradient norm of a local step, for every method.
        evaluate_every: rounds between two evaluations on validation roles.
        seed: of cohorts and batches.
    """

    rounds: int = 10
    cohort_size: int = 8
    local_steps: int = 4
    batch_size: int = 4
    learning_rates: tuple[float, ...] = (0.5, 1.0)
    fedspeed: FedSpeedSettings = FedSpeedSettings()
    clip_norm: float = 1.0
    evaluate_every: int = 2
    seed: int = 0


class Continued(NamedTuple):
    """Sequences [n, P + L]: prompts of ``prompt_length`` P tokens, then the target's own greedy tokens."""

    tokens: np.ndarray
    prompt_length: int


class Outcome(NamedTuple):
    """One method at its best learning rate.

    Attributes:
        params: the draft.
        learning_rate: of the grid, by accepted length on validation roles.
        rounds, accepted: that curve.
    """

    params: Params
    learning_rate: float
    rounds: list[int]
    accepted: list[float]


class Report(NamedTuple):
    """Accepted length (mean num_accepted a step) on unseen text before and after, and each method's outcome."""

    acceptance: dict[str, float]
    outcomes: dict[str, Outcome]


def windows(tokens: np.ndarray, length: int, count: int) -> np.ndarray:
    """At most ``count`` windows [n, length] of a token array, evenly spread, at most half overlapping.

    Raises:
        ValueError: fewer tokens than one window.
    """
    if len(tokens) < length:
        raise ValueError(f"expected at least {length} tokens for one prompt, got {len(tokens)}; leave this client out")
    room = len(tokens) - length
    starts = np.linspace(0, room, min(count, 1 + 2 * room // length)).astype(int)
    return tokens[starts[:, None] + np.arange(length)[None]]


def continued(
    target: Model, prompts: np.ndarray, new_tokens: int, progress: bool = False, batch_size: int = 96
) -> Continued:
    """The target's greedy continuation of prompts [n, P] by ``new_tokens``, at most ``batch_size`` at a time."""
    method, new = autoregressive(target), []
    with tqdm(total=len(prompts), desc="continue", unit="text", disable=not progress) as bar:
        for start in range(0, len(prompts), batch_size):
            batch = prompts[start : start + batch_size]
            new += generate(method, batch.tolist(), new_tokens).tokens
            bar.update(len(batch))
    return Continued(np.concatenate([prompts, np.asarray(new, np.int32)], axis=1), prompts.shape[1])


def client_examples(data: Continued, owners: Sequence[int]) -> list[dict[str, np.ndarray]]:
    """Training examples per client: ``tokens`` and ``labels``, the target's own next token (−1 inside the prompt).

    Args:
        data: continuations of all clients' prompts.
        owners: client of each row, ascending.
    """
    labels = data.tokens[:, 1:].copy()
    labels[:, : data.prompt_length - 1] = -1
    owner = np.asarray(owners)
    return [{"tokens": data.tokens[owner == i, :-1], "labels": labels[owner == i]} for i in np.unique(owner)]


def accepted_length(network: Network, params: Params, data: Continued, window: int) -> float:
    """Mean num_accepted a step that greedy speculative decoding has on these continuations.

    Drafted tokens up to the first mismatch are the target's own, so one teacher-forced pass of the draft tells every
    acceptance; the result equals a real decode of all but the last γ tokens of ``data``.
    """
    agrees = np.asarray(_agreement(network, params, jnp.asarray(data.tokens)))[:, data.prompt_length - 1 :]
    return float(np.mean([accepted for _, _, accepted in step_ends(agrees, window)]))


@partial(jax.jit, static_argnums=0)
def _agreement(network: Network, params: Params, tokens: Array) -> Array:
    """Whether the draft's most likely next token is the one that follows: [n, T − 1]."""
    return jnp.argmax(log_probabilities(network, params, tokens[:, :-1]), axis=0) == tokens[:, 1:]


def methods(settings: Federation) -> dict[str, Callable[..., Any]]:
    """Factories (loss_fn, learning_rate) → algorithm. Centralised is FedAvg with a single client that holds all."""
    speed = partial(jaxfed.fedspeed, **asdict(settings.fedspeed))
    return {"fedspeed": speed, "fedavg": jaxfed.fedavg, "centralised": jaxfed.fedavg}


def compare(
    draft: Model,
    clients: list[dict[str, np.ndarray]],
    validation: Continued,
    unseen: Continued,
    settings: Federation,
    *,
    names: Sequence[str] = ("fedspeed", "fedavg", "centralised"),
    window: int = 7,
    directory: Path | None = None,
    progress: bool = True,
) -> Report:
    """Trains a draft by the ``names`` of ``methods``, at equal numbers of samples.

    Every method runs the whole learning-rate grid and is judged on validation roles: the federated ones by their last
    round, the centralised one, as an upper bound, by its best. Each run has its checkpoints in ``directory``.
    """
    report = Report({"before": accepted_length(draft.network, draft.params, unseen, window)}, {})
    for name in names:
        outcome = _best(draft, name, clients, validation, settings, window, directory, progress)
        report.outcomes[name] = outcome
        report.acceptance[name] = accepted_length(draft.network, outcome.params, unseen, window)
    return report


def _best(draft: Model, name: str, *args: Any) -> Outcome:
    settings = args[2]
    outcomes = [_run(draft, name, rate, *args) for rate in settings.learning_rates]
    return max(outcomes, key=lambda outcome: outcome.accepted[-1])


def _run(
    draft: Model,
    name: str,
    rate: float,
    clients: list[dict[str, np.ndarray]],
    validation: Continued,
    settings: Federation,
    window: int,
    directory: Path | None,
    progress: bool,
) -> Outcome:
    """One method at one learning rate."""
    s, pooled = settings, name == "centralised"
    if pooled:
        clients = [{key: np.concatenate([client[key] for client in clients]) for key in clients[0]}]
    algorithm = methods(s)[name](distillation_loss(draft.network), client_learning_rate=rate, clip_norm=s.clip_norm)
    before = accepted_length(draft.network, draft.params, validation, window)
    best = _Best(before, draft.params, None if directory is None else directory / f"{name}-{rate}-best")

    def evaluate(params: Params) -> dict[str, float]:
        accepted = accepted_length(draft.network, params, validation, window)
        best.offer(accepted, params)
        return {"accepted": accepted}

    server, history = jaxfed.simulate(
        algorithm,
        algorithm.init(draft.params, len(clients)),
        jaxfed.data.client_data(clients),
        rounds=s.rounds,
        cohort_size=1 if pooled else s.cohort_size,
        local_steps=s.local_steps * s.cohort_size if pooled else s.local_steps,
        batch_size=s.batch_size,
        evaluate=evaluate,
        evaluate_every=s.evaluate_every,
        seed=s.seed,
        checkpoint=None if directory is None else directory / f"{name}-{rate}",
        progress=progress,
    )
    rounds, accepted = [0, *history.evaluations["round"]], [before, *history.evaluations["accepted"]]
    if pooled:
        until = int(np.argmax(accepted)) + 1
        return Outcome(best.params, rate, rounds[:until], accepted[:until])
    return Outcome(server.params, rate, rounds, accepted)


class _Best:
    """The best draft that a run has evaluated; kept in a folder of its own, so that a resumed run still has it."""

    def __init__(self, accepted: float, params: Params, directory: Path | None):
        self.accepted, self.params, self._directory = accepted, params, directory
        if directory is not None and checkpoint.latest(directory) is not None:
            self.params = checkpoint.load(directory, like={"params": params})["params"]
            self.accepted = checkpoint.manifest(directory).metadata["accepted"]

    def offer(self, accepted: float, params: Params) -> None:
        """Keeps these parameters if they accept more than the best so far."""
        if accepted <= self.accepted:
            return
        self.accepted, self.params = accepted, params
        if self._directory is not None:
            step = (checkpoint.latest(self._directory) or 0) + 1
            checkpoint.save(self._directory, step, {"params": params}, metadata={"accepted": accepted}, keep=1)


def token_rows(tokenizer: Tokenizer, texts: Sequence[str], length: int, count: int) -> tuple[np.ndarray, list[int]]:
    """Prompts of several texts, [n, length], and the text each belongs to."""
    rows = [windows(encode(tokenizer, text), length, count) for text in texts]
    return np.concatenate(rows), [index for index, part in enumerate(rows) for _ in part]
