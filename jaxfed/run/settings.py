"""What `simulate` and `flower.serve` take as values: `Layout` and `Report`."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from jax.sharding import Mesh

from jaxfed.core.checks import check_choice, check_range, python_fields
from jaxfed.core.protocol import Plan, RoundInfo, Server
from jaxfed.core.types import Params
from jaxfed.rows.engine import LONGEST_BLOCK, Store
from jaxfed.run.history import History

Callback = Callable[[Server, RoundInfo], None]
"""Called after every round; may raise KeyboardInterrupt to stop the run as Ctrl-C does."""

Evaluate = Callable[[Params], Mapping[str, Any]]
"""`evaluate(params)` -> named numbers, such as {"accuracy": ...}."""


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
            continues, else `DeviceStore()`.

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
    """What happens between rounds: evaluation, callbacks, the progress bar.

    Attributes:
        evaluate: `evaluate(params)` -> named numbers, recorded in the history.
        every: rounds between two evaluations; the last round is always evaluated.
        callbacks: each called as `callback(server, info)` after every round; with any, every round runs as its
            own program.
        progress: show a bar, or log the rounds of `jaxfed.flower.serve`.
        keep_state: keep the state of the run, with the rows of all clients, in `history.state`.
    """

    evaluate: Evaluate | None = None
    every: int = 1
    callbacks: Sequence[Callback] = ()
    progress: bool = True
    keep_state: bool = False

    def __post_init__(self) -> None:
        check_range("every", self.every, least=1, whole=True)
        python_fields(self)
        object.__setattr__(self, "callbacks", tuple(self.callbacks))

    def due(self, done: int) -> int:
        """Return the rounds until the next evaluation or callback, at most `LONGEST_BLOCK`."""
        return 1 if self.callbacks else rounds_until(done, self.every if self.evaluate else None)

    def after_round(self, history: History, server: Server, info: RoundInfo, last: bool) -> None:
        """Evaluate if due, record it in the history, and call the callbacks with the info of the round."""
        done = int(server.round)
        if self.evaluate is not None and (last or done % self.every == 0):
            history.add_evaluation(done, self.evaluate(server.params))
        for callback in self.callbacks:
            callback(server, info)


def rounds_until(done: int, every: int | None) -> int:
    """Return the rounds from `done` to the next multiple of `every`; `LONGEST_BLOCK` for None."""
    return LONGEST_BLOCK if every is None else every - done % every
