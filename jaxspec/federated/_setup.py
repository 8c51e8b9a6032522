"""Shared settings and results of the runs of all methods."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxfed.core.lora import LoRA
from jaxspec.drafts import Draft
from jaxspec.federated._examples import Continued, Examples
from jaxspec.federated._learning import Learning, learning_of
from jaxspec.federated._methods import Federation
from jaxspec.federated._sending import Send, SentPart, sent_part
from jaxspec.models.base import Model, Params
from jaxspec.training import LossFn, Recipe

VALIDATION = "validation"
"""Name of the evaluation set that chooses learning rates and the best step of pooled training."""


class TextProblem(NamedTuple):
    """Training and evaluation data of a draft.

    Attributes:
        clients: training examples of each client.
        evaluation: continuations by name of the set, ``VALIDATION`` among them.
    """

    clients: list[Examples]
    evaluation: dict[str, Continued]


class TrainingOutcome(NamedTuple):
    """Result of one method at one learning rate, or at the best one of a grid.

    Attributes:
        params: all of the draft's; for clients that trained alone, a dictionary of them by client.
        learning_rate: of the run.
        rounds: evaluated rounds, from 0.
        accepted: acceptance on the validation set at these rounds, by the metric of the setup.
        curves: the same for every evaluation set.
        samples: sequences trained on, repeated ones counted each time.
        message_bytes: sent by a client per round; None if nothing is sent.
    """

    params: Params
    learning_rate: float
    rounds: list[int]
    accepted: list[float]
    curves: dict[str, list[float]]
    samples: int
    message_bytes: float | None


class FederatedReport(NamedTuple):
    """Acceptance on unseen text and what was trained.

    Attributes:
        acceptance: "before" and by method.
        outcomes: by method.
        metric: of all acceptance: "accepted_length", mean num_accepted per step (language models), or
            "accepted_tokens", mean over windows that begin at every token (drafts that read hidden states).
    """

    acceptance: dict[str, float]
    outcomes: dict[str, TrainingOutcome]
    metric: str = "accepted_length"


@dataclass(frozen=True)
class FederatedSetup:
    """Settings that all runs share.

    Attributes:
        draft: start of the training: a language model, EAGLE, EAGLE-3, Medusa or Hydra.
        problem: training and evaluation data, for a draft that reads hidden states from ``gather(..., draft=draft)``.
        settings: rounds and steps.
        window: γ of every acceptance.
        directory: of checkpoints, one folder per run, from which the same run resumes.
        progress: show bars.
        target: of a draft that reads hidden states.
        send: what clients send: "all" that is trained, the output "head", or "lora", low-rank updates.
        lora: rank and scale of "lora".
        recipe: of EAGLE-3.
    """

    draft: Model | Draft
    problem: TextProblem
    settings: Federation = Federation()
    window: int = 7
    directory: Path | None = None
    progress: bool = True
    target: Model | None = None
    send: Send = "all"
    lora: LoRA = LoRA()
    recipe: Recipe = Recipe()

    @cached_property
    def learning(self) -> Learning:
        """How the draft learns and is measured.

        Raises:
            ValueError: no target, or clients' examples of another kind of draft.
        """
        folder = None if self.directory is None else self.directory / "hidden"
        learning = learning_of(self.draft, self.target, self.window, self.recipe, folder, self.progress)
        if learning.needs not in (names := [*self.problem.clients[0]]):
            raise ValueError(
                f"expected clients' examples with {learning.needs!r} for this draft, got {', '.join(names)}; make them "
                "with gather(..., draft=draft)"
            )
        return learning

    @cached_property
    def sent(self) -> SentPart:
        """What clients train and send."""
        learning = self.learning
        return sent_part(self.send, learning.own, learning.loss, self.lora, self.settings.seed)

    @property
    def metric(self) -> str:
        """Name of every acceptance: "accepted_length" or "accepted_tokens"."""
        return self.learning.metric

    @cached_property
    def before(self) -> dict[str, float]:
        """Acceptance of the untrained draft, by evaluation set."""
        return self.evaluate(self.draft.params)

    @property
    def loss(self) -> LossFn:
        """Training loss of what is trained of the draft."""
        return self.learning.loss

    def whole(self, sent: Params) -> Params:
        """Return all parameters of the draft, in its own types, from those that are sent."""
        params = self.learning.whole(self.sent.whole(sent))
        return jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), params, self.draft.params)

    def accepted(self, params: Params, data: Continued) -> float:
        """Return the acceptance of all parameters of a draft on some texts."""
        return self.learning.accepted(data, [(params, slice(None))])

    def evaluate(self, params: Params) -> dict[str, float]:
        """Return the acceptance by evaluation set."""
        return {name: self.accepted(params, data) for name, data in self.problem.evaluation.items()}

    def evaluate_sent(self, sent: Params) -> dict[str, float]:
        """Return the acceptance by evaluation set, from the parameters that are sent."""
        return self.evaluate(self.whole(sent))

    def folder(self, *names: Any) -> Path | None:
        """Return the folder of a run's checkpoints; runs that send less than all have their own."""
        names = names if self.send == "all" else (*names, self.send)
        return None if self.directory is None else self.directory / "-".join(map(str, names))
