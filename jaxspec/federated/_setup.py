"""Shared settings and results of the runs of all methods."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from jaxspec.federated._examples import Continued, Examples, accepted_length
from jaxspec.federated._methods import Federation
from jaxspec.models.base import Model, Params
from jaxspec.training import LossFn, draft_loss

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
        params: the draft's; for clients that trained alone, a dictionary of them by client.
        learning_rate: of the run.
        rounds: evaluated rounds, from 0.
        accepted: accepted length on the validation set at these rounds.
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
    """Accepted length (mean num_accepted per step) on unseen text, "before" and by method, and each outcome."""

    acceptance: dict[str, float]
    outcomes: dict[str, TrainingOutcome]


@dataclass(frozen=True)
class FederatedSetup:
    """Settings that all runs share.

    Attributes:
        draft: start of the training.
        problem: training and evaluation data.
        settings: rounds and steps.
        window: γ of every accepted length.
        directory: of checkpoints, one folder per run, from which the same run resumes.
        progress: show bars.
    """

    draft: Model
    problem: TextProblem
    settings: Federation = Federation()
    window: int = 7
    directory: Path | None = None
    progress: bool = True

    @cached_property
    def before(self) -> dict[str, float]:
        """Accepted length of the untrained draft, by evaluation set."""
        return self.evaluate(self.draft.params)

    @property
    def loss(self) -> LossFn:
        """Training loss of the draft, with or without lookahead streams."""
        return draft_loss(self.draft.network)

    def evaluate(self, params: Params) -> dict[str, float]:
        """Return the accepted length by evaluation set."""
        network = self.draft.network
        return {name: accepted_length(network, params, d, self.window) for name, d in self.problem.evaluation.items()}

    def folder(self, *names: Any) -> Path | None:
        """Return the folder of a run's checkpoints."""
        return None if self.directory is None else self.directory / "-".join(map(str, names))
