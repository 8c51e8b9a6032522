"""Runs of a reproduction in pieces: finished ones are lines of a file, the one under way is a checkpoint beside it."""

import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ledger import Ledger
from reproduction import ImageProblem, Program, Row, Run

from jaxfed import checkpoint

SAVED_EVERY = 240.0
"""Seconds between two checkpoints of a run."""


class RunKey(NamedTuple):
    """What a run is found by."""

    algorithm: str
    partition: str
    epochs: int
    seed: int


class Runs:
    """Finished runs, and the one under way.

    Args:
        path: file of finished runs.
        settings: that comparable runs share.
        end: when no further round is begun, by `time.perf_counter()`; None: no limit.
    """

    def __init__(self, path: Path, settings: Row, end: float | None = None) -> None:
        self._path, self._settings, self._end, self._ledger = path, settings, end, Ledger(path, settings)

    @property
    def over(self) -> bool:
        """Whether the minutes are over."""
        return self._end is not None and time.perf_counter() >= self._end

    def find(self, key: RunKey, evaluated: Sequence[int]) -> Row | None:
        """Return a finished run of these or more rounds, cut to them; None: there is none."""
        found = [row for row in self._ledger.rows if tuple(row.get("run", ())) == key]
        for row in reversed(found):
            at = dict(zip(row["evaluated"], row["curve"], strict=True))
            if set(evaluated) <= set(at):
                share = evaluated[-1] / row["evaluated"][-1]
                curve = [at[rounds] for rounds in evaluated]
                excluded = row["excluded"][: row["evaluated"].index(evaluated[-1]) + 1]
                cut = {"evaluated": list(evaluated), "curve": curve, "excluded": excluded}
                return {**row, **cut, "seconds": share * row["seconds"]}
        return None

    def finish(self, key: RunKey, task: ImageProblem, program: Program, evaluated: Sequence[int]) -> bool:
        """Go on with a run until its last round, or the end of the minutes: then it is kept, and False returned."""
        folder = self._folder_of(key, evaluated)
        run, saved = Run(task, program, key.partition, key.seed), time.monotonic()
        if checkpoint.latest(folder) is not None:
            run.restore(checkpoint.load(folder, run.state), checkpoint.manifest(folder).metadata)
        run.advance(0)
        for rounds in evaluated[len(run.facts["curve"]) :]:
            over = self.over
            if over or time.monotonic() > saved + SAVED_EVERY:
                _save(folder, run)
                saved = time.monotonic()
            if over:
                return False
            run.advance_to(rounds)
        self._ledger.add({"run": key, "evaluated": list(evaluated), **run.facts})
        shutil.rmtree(folder, ignore_errors=True)
        return True

    def _folder_of(self, key: RunKey, evaluated: Sequence[int]) -> Path:
        text = json.dumps([self._settings, list(evaluated)], sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        return self._path.with_name(f"{self._path.name}.runs") / f"{'-'.join(map(str, key))}-{digest}"


def _save(folder: Path, run: Run) -> None:
    rounds = int(run.server.round)
    if rounds > (checkpoint.latest(folder) or 0):
        checkpoint.save(folder, rounds, run.state, metadata=run.facts, kind="reproduction", keep=1)
