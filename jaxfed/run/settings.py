"""What `simulate` and `flower.serve` take as values: `Layout` and `Report`."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

from jax.sharding import Mesh

from jaxfed.core.checks import check_choice, check_range, python_fields
from jaxfed.core.protocol import Plan, RoundInfo, Server
from jaxfed.rows.engine import LONGEST_BLOCK, Store
from jaxfed.run.evaluation import Evaluate, RowsOf, form_of
from jaxfed.run.history import History

Callback = Callable[[Server, RoundInfo], None]
"""Called after every round; may raise KeyboardInterrupt to stop the run as Ctrl-C does."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """How rounds are laid out over time, devices and memory; results differ by rounding only.

    Attributes:
        plan: schedule of a cohort's clients: `jaxfed.vmap()` (default), `jaxfed.chunked(size)`,
            `jaxfed.map()`, or "auto", which times them on the first cohort and takes the fastest; a resumed run keeps
            its choice.
        mesh: devices to spread the clients of a cohort over, all axes together; its size must divide the cohort's
            slots.
        store: where the clients' rows are kept between rounds: `jaxfed.DeviceStore()`, `HostStore()`,
            `DiskStore(path)`, or a `jaxfed.rows.Store` of your own. By default the store of the state that the run
            continues, else `DeviceStore()`; beside streamed samples `HostStore()`.

    Raises:
        ValueError: a plan that is text other than "auto".
    """

    plan: Plan | Literal["auto"] | None = None
    mesh: Mesh | None = None
    store: Store | None = None

    def __post_init__(self) -> None:
        if isinstance(self.plan, str):
            check_choice("plan", self.plan, ("auto",))


@dataclasses.dataclass(frozen=True)
class Report:
    """What happens between rounds: evaluation, the end of a run, callbacks, the progress bar.

    Attributes:
        evaluate: `evaluate(params)`, `evaluate(params, model_state)`, `evaluate(server)` or `evaluate(server, rows)` ->
            named numbers, recorded in the history; see `jaxfed.run.Evaluate`.
        every: rounds between two evaluations; the last round is always evaluated.
        at_start: also evaluate before the first round, as round 0.
        stop: `stop(history) -> bool`, asked every `every` rounds, after their evaluation; True ends the run as its last
            round would.
        clients: record the metrics of every client of every round in `history.clients`.
        callbacks: each called as `callback(server, info)` after every round; with any, every round runs as its
            own program.
        progress: show a bar, or log the rounds of `jaxfed.flower.serve`.
        keep_state: keep the state of the run, with the rows of all clients, in `history.state`.
    """

    evaluate: Evaluate | None = None
    every: int = 1
    at_start: bool = False
    stop: Callable[[History], bool] | None = None
    clients: bool = False
    callbacks: Sequence[Callback] = ()
    progress: bool = True
    keep_state: bool = False

    def __post_init__(self) -> None:
        check_range("every", self.every, least=1, whole=True)
        if self.evaluate is not None:
            form_of(self.evaluate)
        elif self.at_start:
            raise ValueError("at_start=True evaluates before the first round, got no evaluate; pass one")
        python_fields(self)
        object.__setattr__(self, "callbacks", tuple(self.callbacks))

    def due(self, done: int) -> int:
        """Return the rounds until the next evaluation, question to `stop` or callback, at most `LONGEST_BLOCK`."""
        return 1 if self.callbacks else rounds_until(done, self.every if self.evaluate or self.stop else None)

    def before_rounds(self, history: History, server: Server, rows: RowsOf | None) -> bool:
        """Evaluate round 0 if asked to; return whether a run that continues had been stopped."""
        done = int(server.round)
        if self.at_start and done == 0 and not history.evaluations.length:
            self._evaluate(history, server, rows)
        return done > 0 and self._stops(history, done)

    def after_round(
        self, history: History, server: Server, info: RoundInfo, last: bool, rows: RowsOf | None = None
    ) -> bool:
        """Evaluate if due, record it, and call the callbacks with the info of the round; return whether it is the last.

        Args:
            history: that of the run, with the round.
            server: after the round.
            info: of the round.
            last: whether no more rounds are asked for.
            rows: the rows of clients, None where they are elsewhere.
        """
        done = int(server.round)
        if self.evaluate is not None and (last or done % self.every == 0):
            self._evaluate(history, server, rows)
        ends = last or self._stops(history, done)
        for callback in self.callbacks:
            callback(server, info)
        return ends

    def _evaluate(self, history: History, server: Server, rows: RowsOf | None) -> None:
        assert self.evaluate is not None
        arguments = form_of(self.evaluate)(server, rows)
        history.add_evaluation(int(server.round), self.evaluate(*arguments))

    def _stops(self, history: History, done: int) -> bool:
        return self.stop is not None and done % self.every == 0 and bool(self.stop(history))


def rounds_until(done: int, every: int | None) -> int:
    """Return the rounds from `done` to the next multiple of `every`; `LONGEST_BLOCK` for None."""
    return LONGEST_BLOCK if every is None else every - done % every
