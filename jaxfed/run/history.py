"""The history of a run: numbers by round."""

import csv
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from jaxfed.core.checks import check_choice
from jaxfed.core.protocol import ClientInfo, RoundInfo, Server
from jaxfed.run._columns import Columns

COHORT: dict[str, tuple[str, Callable[..., Any]]] = {
    "loss_median": ("loss", np.median),
    "loss_worst": ("loss", np.max),
    "delta_norm_max": ("delta_norm", np.max),
}
"""Statistics over a cohort other than the means: name → field of `ClientInfo`, and the function of all its values."""


TABLES = ("rounds", "evaluations", "clients")
"""Names of the tables of a history."""


@dataclasses.dataclass
class History:
    """Numbers of a run, eight bytes each; a column reads as a new list of Python numbers.

    Attributes:
        rounds: one list per quantity, one entry per round: "round" (done so far, from 1); means over the clients used
            of "loss", "gradient_norm", "delta_norm" (drift ‖x_K − x⁰‖), "memory_norm" (of the dual), "num_steps" and
            "padding"; "loss_median", "loss_worst" and "delta_norm_max" over them; "inconsistency"; "samples" that all
            of them trained on together; "num_used", "num_excluded" (clients whose results were not finite),
            "learning_rate"; and the loss function's scalar aux, a mean as well, as "aux/…". None is where there is
            no number: for means of a round in which no client was used, and in rounds of an older version.
        evaluations: "round", and one list for every number that `evaluate` returns.
        clients: with `Report(clients=True)`, one entry for every client of every round: "round", "client" (its id),
            "used" (0 where its results were not finite, or the aggregate left it out), and the numbers of `ClientInfo`.
        plan: name of the plan of the run.
        seconds: what every round took without evaluation, one entry per round; None where that is not known or where
            compilation was part of it.
        state: the whole state of the run after its last round, with `Report(keep_state=True)`; else None. It is
            in no file that a history is written to.
    """

    rounds: Columns = dataclasses.field(default_factory=Columns)
    evaluations: Columns = dataclasses.field(default_factory=Columns)
    plan: str | None = None
    seconds: list[float | None] = dataclasses.field(default_factory=list)
    state: "RunState | None" = dataclasses.field(default=None, repr=False, compare=False)
    clients: Columns = dataclasses.field(default_factory=Columns)

    def __post_init__(self) -> None:
        for name in TABLES:
            setattr(self, name, Columns(getattr(self, name)))

    def add_round(
        self,
        round_number: int,
        info: RoundInfo,
        seconds: float | None = None,
        more: Mapping[str, float] = MappingProxyType({}),
        *,
        clients: bool = False,
    ) -> None:
        """Append one round; `info` is on the host, `more` are other numbers by name.

        With `clients` also append an entry of every client to `History.clients`.
        """
        if clients:
            self._add_clients(round_number, info)
        facts = info._asdict()
        members, used, excluded = facts.pop("clients"), facts.pop("used"), facts.pop("excluded")
        facts = {**facts.pop("client")._asdict(), **facts}
        aux = {"aux" + _name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(facts.pop("aux"))}
        cohort = {name: make(getattr(members, fact)[used]) for name, (fact, make) in COHORT.items() if used.any()}
        sums = {"samples": np.sum(members.samples[used]), "num_excluded": np.sum(excluded)}
        entry = {"round": round_number, **facts, **cohort, **sums, **aux, **more}
        means = {*ClientInfo._fields, "inconsistency", *aux} - sums.keys()
        numbers = {name: number for name, number in entry.items() if np.ndim(number) == 0}
        self.rounds.append({name: each if used.any() or name not in means else None for name, each in numbers.items()})
        unknown = self.rounds.length - 1 - len(self.seconds)
        self.seconds += [*[None] * unknown, seconds]

    def _add_clients(self, round_number: int, info: RoundInfo) -> None:
        """Append the metrics of every client that was drawn."""
        facts = info.clients._asdict()
        aux = {"aux" + _name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(facts.pop("aux"))}
        numbers = {name: each for name, each in {**facts, **aux}.items() if np.ndim(each) == 1}
        for slot in np.flatnonzero(np.asarray(info.ids) >= 0):
            entry = {"round": round_number, "client": int(info.ids[slot]), "used": int(info.used[slot])}
            self.clients.append(entry | {name: each[slot] for name, each in numbers.items()})

    def add_evaluation(self, round_number: int, metrics: Mapping[str, Any]) -> None:
        """Append what `evaluate` returned after a round."""
        self.evaluations.append({"round": round_number, **metrics})

    def latest(self) -> dict[str, float]:
        """Return the last loss and evaluation, without names such as "accuracy/q10", for a progress bar."""
        evaluated = self.evaluations.last()
        shown = {"loss": self.rounds.last()["loss"]}
        shown |= {name: each for name, each in evaluated.items() if name != "round" and "/" not in name}
        return {name: each for name, each in shown.items() if each is not None}

    def last_known(self, name: str) -> Any:
        """Return the last number of a column of `rounds` that is not None; None where there is none."""
        return next((each for each in reversed(self.rounds.get(name, [])) if each is not None), None)

    def cumulative(self, name: Literal["samples", "seconds"], rounds: Sequence[int] | None = None) -> list[float]:
        """Return samples or seconds from the start to the end of each of `rounds` (default: all).

        An unknown round counts as the median of the known ones. Empty if all are unknown.
        """
        per_round = self.seconds if name == "seconds" else self.rounds.get(name, [])
        known = [each for each in per_round if each is not None]
        if not known:
            return []
        sums = np.cumsum([float(np.median(known)) if each is None else each for each in per_round])
        after = dict(zip(self.rounds["round"], sums.tolist(), strict=True)) | {0: 0.0}
        return [after[each] for each in (self.rounds["round"] if rounds is None else rounds)]

    def to_dict(self) -> dict[str, Any]:
        """Return lists of numbers, ready for JSON: {"rounds": {...}, "evaluations": {...}, "plan", "seconds"}.

        And "clients", where they were recorded.
        """
        columns = {name: dict(getattr(self, name)) for name in self._tables()}
        return {**columns, "plan": self.plan, "seconds": [*self.seconds]}

    @classmethod
    def from_dict(cls, columns: Mapping[str, Any]) -> "History":
        """Return the history that `to_dict` wrote, in this version or an older one."""
        return cls(**columns)

    def snapshot(self) -> dict[str, np.ndarray]:
        """Return arrays for a checkpoint."""
        seconds = np.array(self.seconds, np.float64)  # NaN where None
        return {**{name: getattr(self, name).snapshot() for name in self._tables()}, "seconds": seconds}

    def describe(self) -> dict[str, Any]:
        """Return the JSON that is saved with the snapshot."""
        return {"plan": self.plan, **{name: getattr(self, name).describe() for name in self._tables()}}

    def _tables(self) -> list[str]:
        """Return the names of the tables; clients only where they were recorded."""
        return [name for name in TABLES if name != "clients" or len(self.clients)]

    @staticmethod
    def like(facts: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Return shapes and dtypes of the snapshot, from what `describe` returned."""
        columns = {name: Columns.like(facts[name]) for name in TABLES if name in facts}
        return {**columns, "seconds": np.zeros(facts["rounds"]["length"])}

    @classmethod
    def restored(cls, facts: Mapping[str, Any], snapshot: Mapping[str, np.ndarray]) -> "History":
        """Return the history of a snapshot."""
        seconds = [None if math.isnan(each) else each for each in snapshot["seconds"].tolist()]
        history = cls(plan=facts["plan"], seconds=seconds)
        for name in TABLES:
            if name in facts:
                setattr(history, name, Columns.restored(facts[name], snapshot[name]))
        return history

    def to_pandas(self, table: Literal["rounds", "clients"] = "rounds") -> Any:
        """Return a `pandas.DataFrame`.

        Args:
            table: "rounds", one row per round, which is the index, with the columns of `to_csv`, NaN where there is no
                number; or "clients", one row per client and round, indexed by both, recorded by `Report(clients=True)`.

        Raises:
            ImportError: pandas, the extra "pandas", is not installed.
            ValueError: "clients" of a run that did not record them.
        """
        check_choice("table", table, ("rounds", "clients"))
        try:
            import pandas as pd
        except ImportError as missing:
            raise ImportError('expected pandas for a DataFrame; pip install "jaxfed-jaxspec[pandas]"') from missing
        if table == "rounds":
            return pd.DataFrame.from_dict(self._by_round(), orient="index").sort_index().rename_axis("round")
        if not len(self.clients):
            raise ValueError("expected a run that recorded its clients, got none of them; pass Report(clients=True)")
        return pd.DataFrame(dict(self.clients)).set_index(["round", "client"])

    def to_csv(self, path: str | Path) -> None:
        """Write one line per round: "round", "seconds", its numbers, and "evaluation/…", empty where there is none."""
        table = self._by_round()
        names = ["round", *dict.fromkeys(name for numbers in table.values() for name in numbers)]
        with Path(path).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows({"round": number, **numbers} for number, numbers in table.items())

    def to_tensorboard(self, directory: str | Path) -> None:
        """Write an event file: scalars "round/…" and "evaluation/…", the round as their step.

        Raises:
            ImportError: tensorboardX, the extra "tensorboard", is not installed.
        """
        try:
            from tensorboardX import SummaryWriter
        except ImportError as missing:
            raise ImportError(
                'expected tensorboardX to write TensorBoard files; pip install "jaxfed-jaxspec[tensorboard]"'
            ) from missing
        with SummaryWriter(str(directory)) as writer:
            for number, numbers in self._by_round().items():
                for name, each in numbers.items():
                    tag = name if name.startswith("evaluation/") else f"round/{name}"
                    writer.add_scalar(tag, each, number)

    def _by_round(self) -> dict[int, dict[str, float]]:
        """Return the numbers by round, without None."""
        table: dict[int, dict[str, float]] = {}
        rounds, evaluations = {"seconds": self.seconds, **self.rounds}, dict(self.evaluations)
        for prefix, columns in (("", rounds), ("evaluation/", evaluations)):
            for at, number in enumerate(columns.get("round", [])):
                entry = {name: column[at] for name, column in columns.items() if at < len(column) and name != "round"}
                known = {f"{prefix}{name}": each for name, each in entry.items() if each is not None}
                table.setdefault(number, {}).update(known)
        return dict(sorted(table.items()))


class RunState(NamedTuple):
    """A run between two rounds: `jaxfed.simulate(algorithm, state, data, ...)` continues it as if it had never stopped.

    It can be continued several times. `state._replace(server=...)` continues from another server.

    Attributes:
        server: after the rounds done.
        rows: the rows of all clients, as the store snapshots them; of a `DiskStore` only the slot of each row.
        facts: JSON that the store needs to read `rows`.
        store: the store of the run, and of its continuation.
        history: the numbers of all rounds done.
        first: the row of a client that was never drawn, from the parameters of the start.
    """

    server: Server
    rows: PyTree
    facts: Mapping[str, Any]
    store: Any
    history: History
    first: Any = ()


def _name(path: tuple[Any, ...]) -> str:
    return "".join("/" + str(getattr(part, "key", getattr(part, "name", getattr(part, "idx", part)))) for part in path)
