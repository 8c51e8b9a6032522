"""What a run has reported: plain numbers by round, as lists."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxfed.algorithm import RoundInfo

Columns = dict[str, list[Any]]


@dataclasses.dataclass
class History:
    """Numbers of a run.

    Attributes:
      rounds: one list per quantity, one entry per round: "round" (done so far, from 1), "loss", "gradient_norm",
        "delta_norm", "num_steps" (means over the clients used), "num_used", "num_excluded" (clients whose results were
        not finite), "learning_rate", and the loss function's scalar aux as "aux/…".
      evaluations: "round", and one list for every number that `evaluate` returns.
    """

    rounds: Columns = dataclasses.field(default_factory=dict)
    evaluations: Columns = dataclasses.field(default_factory=dict)

    def add_round(self, round_number: int, info: RoundInfo) -> None:
        """Append one round; `info` lies on the host."""
        entry = {**info.client._asdict(), **info._asdict()}
        aux = {"aux" + _name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(entry.pop("aux"))}
        excluded = {"num_excluded": np.sum(entry.pop("excluded"))}
        for name in ("client", "clients", "used"):
            entry.pop(name)
        numbers = {name: leaf for name, leaf in {**entry, **excluded, **aux}.items() if np.ndim(leaf) == 0}
        _append(self.rounds, {"round": round_number, **numbers})

    def add_evaluation(self, round_number: int, metrics: Mapping[str, Any]) -> None:
        """Append what `evaluate` returned after a round."""
        _append(self.evaluations, {"round": round_number, **metrics})

    def latest(self) -> dict[str, float]:
        """The last loss and the last evaluation, for a progress bar."""
        evaluated = {name: column[-1] for name, column in self.evaluations.items() if name != "round"}
        return {"loss": self.rounds["loss"][-1], **evaluated}

    def to_dict(self) -> dict[str, Columns]:
        """Lists of Python numbers, ready for JSON: {"rounds": {...}, "evaluations": {...}}."""
        return {"rounds": self.rounds, "evaluations": self.evaluations}

    @classmethod
    def from_dict(cls, columns: Mapping[str, Columns]) -> "History":
        """The history that `to_dict` wrote."""
        return cls(columns["rounds"], columns["evaluations"])


def _append(columns: Columns, entry: Mapping[str, Any]) -> None:
    for name, number in entry.items():
        columns.setdefault(name, []).append(np.asarray(number).item())


def _name(path: tuple[Any, ...]) -> str:
    return "".join("/" + str(getattr(part, "key", getattr(part, "name", getattr(part, "idx", part)))) for part in path)
