"""How a run survives Ctrl-C and SIGKILL: what is saved, when, and how it continues."""

import dataclasses
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Protocol

import jax
from jax.experimental import multihost_utils
from jaxtyping import PyTree

from jaxfed import checkpoint as checkpoints
from jaxfed.core.checks import check_range
from jaxfed.core.protocol import ClientRow, Server
from jaxfed.run.history import History, RunState
from jaxfed.run.identity import MADE_WITH, Identity, differences, not_compared

KIND = "jaxfed.simulate"


@dataclasses.dataclass(frozen=True)
class Checkpointing:
    """Where and how often a run is saved.

    Attributes:
        directory: of the checkpoints; one run per directory.
        every: rounds between two checkpoints; the last round is always saved.
        keep: number of checkpoints that are kept.
        may_differ: names, as the error lists them, of what was changed on purpose since the last checkpoint, such as
            "client_learning_rate"; everything else must be equal.
    """

    directory: str | Path
    every: int = 10
    keep: int = 3
    may_differ: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = (self.may_differ,) if isinstance(self.may_differ, str) else tuple(self.may_differ)
        object.__setattr__(self, "may_differ", names)
        check_range("every", self.every, least=1, whole=True)
        check_range("keep", self.keep, least=1, whole=True)


class Saved(Protocol):
    """What is saved of a run, such as an `Engine`, which documents the methods."""

    server: Server

    @property
    def first(self) -> ClientRow:
        """Row of a client that was never drawn."""

    def snapshot(self, step: int, oldest: int) -> dict[str, PyTree]:
        """Return what a checkpoint holds: {"server": ..., "rows": ...}."""

    def describe(self) -> dict[str, Any]:
        """Return the JSON that is saved with the snapshot."""

    def like(self, facts: Mapping[str, Any]) -> dict[str, PyTree]:
        """Return the structure of a snapshot."""

    def restore(self, snapshot: Mapping[str, PyTree]) -> None:
        """Continue from a snapshot."""

    def lock(self, step: int, rows: Callable[[], PyTree]) -> None:
        """Never overwrite what a kept checkpoint refers to."""


class Saver:
    """Saves a run and restores it; with `options=None` does neither. A context manager.

    Args:
        options: where and how often.
        config: arguments of the run, which its checkpoints must agree with.
        identity: what else they must agree with, see `jaxfed.run.identity`; called only where something is saved, with
            what a checkpoint holds of it.
        kind: distinguishes checkpoints of different loops.
    """

    def __init__(
        self,
        options: str | Path | Checkpointing | None,
        config: dict[str, Any],
        identity: Callable[[Identity], Identity] = lambda saved: {},
        kind: str = KIND,
    ) -> None:
        if isinstance(options, str | Path):
            options = Checkpointing(options)
        self._options, self._config, self._identity, self._kind = options, config, identity, kind
        self._writer = checkpoints.Writer(options.directory, kind=kind, keep=options.keep) if options else None
        self._saved: int | None = None

    def __enter__(self) -> "Saver":
        return self

    @property
    def description(self) -> str:
        """Description of the run for messages, with its directory if it has one."""
        return f"the run in {self._options.directory}" if self._options else "the run"

    @property
    def every(self) -> int | None:
        """Rounds between two checkpoints; None where nothing is saved."""
        return self._options.every if self._options else None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._writer is not None:
            self._writer.__exit__(kind, error, at)

    def resume(self, engine: Saved) -> History | None:
        """Restore the last good checkpoint; return its history, or None where there is none.

        A damaged checkpoint is renamed, with a warning, and the one before it is taken.
        """
        if self._options is None:
            return None
        directory = Path(self._options.directory)
        complete = checkpoints.steps(directory)
        multihost_utils.sync_global_devices("every process knows the same steps")
        if complete and complete[-1] < (begun := int(engine.server.round)):
            raise ValueError(
                f"expected checkpoints of round {begun} or later in {directory}, since the run begins there, got round "
                f"{complete[-1]}; take another directory, or begin with algorithm.init(...) to resume that one"
            )
        for step in reversed(complete):
            try:
                manifest = checkpoints.manifest(directory, step)
                self._check(manifest)
                facts = manifest.metadata
                like = {**_like(engine, facts["rows"]), "history": History.like(facts["history"])}
                snapshot = checkpoints.load(directory, like=like, step=step)
                engine.restore(snapshot)
            except checkpoints.DamagedError as damage:
                multihost_utils.sync_global_devices("every process has seen the damage")
                if jax.process_index() == 0:
                    folder = directory / f"{step:08d}"
                    folder.rename(folder.with_suffix(".damaged"))
                multihost_utils.sync_global_devices("the damaged step is renamed")
                warnings.warn(f"{damage}; renamed, continuing from the checkpoint before it", stacklevel=3)
                continue
            self._saved = step
            for kept in checkpoints.steps(directory):
                engine.lock(kept, partial(self._rows, engine, kept))
            return History.restored(facts["history"], snapshot["history"])
        return None

    def _rows(self, engine: Saved, step: int) -> PyTree:
        assert self._options is not None
        facts = checkpoints.manifest(self._options.directory, step).metadata["rows"]
        return checkpoints.load(self._options.directory, like=engine.like(facts)["rows"], step=step, part="rows")

    def save(self, engine: Saved, history: History, *, now: bool = False) -> None:
        """Start to save in the background if a checkpoint is due, or `now`."""
        if self._writer is None or self._options is None:
            return
        done = int(engine.server.round)
        if done == self._saved or not (now or done % self._options.every == 0):
            return
        self._writer.wait()
        oldest = min(checkpoints.steps(self._options.directory), default=done)
        tree = {**engine.snapshot(done, oldest), "history": history.snapshot()}
        compared = {"config": self._config, "identity": dict(self._identity({}))}
        metadata = {**compared, "history": history.describe(), "rows": engine.describe()}
        self._writer.save(done, tree, metadata)
        self._saved = done

    def wait(self) -> None:
        """Return once the last save is on disk; raise its error."""
        if self._writer is not None:
            self._writer.wait()

    def interrupted(self, engine: Saved, history: History, stopped: KeyboardInterrupt) -> KeyboardInterrupt:
        """Save, unless Ctrl-C came twice; return the exception, whose message names the way to resume."""
        if isinstance(stopped, StoppedAtOnce):
            return stopped
        done = int(engine.server.round)
        if self._options is None:
            return Interrupted(f"stopped after round {done}, nothing saved; pass checkpoint=directory next time")
        self.save(engine, history, now=True)
        return Interrupted(
            f"stopped after round {done}, saved in {self._options.directory}; the same call resumes from there"
        )

    def _check(self, manifest: checkpoints.Manifest) -> None:
        """Raise ValueError for a checkpoint of another run, naming all differences beyond `may_differ`."""
        assert self._options is not None
        saved = manifest.metadata["config"] if manifest.kind == self._kind else {"kind": manifest.kind}
        names, directory = {**saved, **self._config}, self._options.directory
        differ = {name: (saved.get(name), self._config.get(name)) for name in names}
        differ = {name: (there, here) for name, (there, here) in differ.items() if there != here}
        if (there := manifest.metadata.get("identity")) and manifest.kind == self._kind:
            here = self._identity(there)
            differ |= differences(there, here)
            if skipped := not_compared(there, here):
                versions = f"{there.get(MADE_WITH)} there, {here.get(MADE_WITH)} here"
                warnings.warn(f"{directory}: not compared are {', '.join(skipped)} ({versions})", stacklevel=4)
        if differ := {name: pair for name, pair in differ.items() if name not in self._options.may_differ}:
            listed = "; ".join(f"{name}: {there} there, {here} here" for name, (there, here) in differ.items())
            raise ValueError(
                f"the checkpoint directory holds another run ({listed}); take another, or these arguments; where this "
                f"was changed on purpose, pass jaxfed.Checkpointing({str(directory)!r}, may_differ={list(differ)})"
            )


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, raised once the round was done.

    Attributes:
        state: the `jaxfed.RunState` after it, for `jaxfed.simulate(algorithm, error.state, ...)`; None if lost.
    """

    state: RunState | None = None


class StoppedAtOnce(Interrupted):
    """The second Ctrl-C: nothing more is saved."""


class Interrupt:
    """Delays Ctrl-C until a round is done, so that it never leaves a run half-updated. A context manager.

    Only the main thread receives signals; in another one this does nothing.
    """

    def __init__(self) -> None:
        self._asked = False
        self._previous: Any = None

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            raise StoppedAtOnce("stopped at once, since the last checkpoint nothing is saved")
        self._asked = True
        print("\nstopping after this round; Ctrl-C again stops at once, without saving", file=sys.stderr)

    def check(self) -> None:
        """Raise KeyboardInterrupt if Ctrl-C came since the last check."""
        if self._asked:
            raise KeyboardInterrupt


def _like(engine: Saved, facts: Mapping[str, Any]) -> dict[str, PyTree]:
    """Return what a snapshot of the engine looks like, from the facts that it, or another, has written."""
    try:
        return engine.like(facts)
    except KeyError as missing:
        raise ValueError(
            "expected a checkpoint of a run with the same kind of store, got one whose rows are described by "
            f"{dict(facts)}; pass the store of that run in jaxfed.Layout(store=...)"
        ) from missing
