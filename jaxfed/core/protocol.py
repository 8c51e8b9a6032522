"""What a federated algorithm is: an init/step pair, the state it carries and the facts it reports."""

import functools
import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, ParamSpec, Protocol, get_args

from jaxtyping import Array, PyTree

from jaxfed.core.checks import nearest, plain
from jaxfed.core.stateful import AnyLossFn
from jaxfed.core.types import Batch, Key, Params, Scalar


class Server(NamedTuple):
    """State of the server: never the rows of the population.

    Attributes:
      params: global parameters xᵗ.
      round: number t of rounds done, int32 [].
      num_clients: size N of the population, int32 [].
      extra: what the server update keeps between rounds, and clients may read: a running mean, moments, or nothing.
      model_state: the model's non-trainable state (batch statistics), see `jaxfed.Stateful`; else empty.
    """

    params: Params
    round: Array
    num_clients: Array
    extra: PyTree
    model_state: PyTree = ()


class ClientRow(NamedTuple):
    """What one client keeps between the rounds it is drawn in.

    Attributes:
      memory: the algorithm's own pytree (FedSpeed: the dual hᵢ, like the parameters); may be empty.
      last_params: the client's last result wᵢ, held only under relaxed initialisation; else empty.
      model_state: the client's own model state, held only under the policy "local"; else empty.
      uplink: what delta transforms keep, such as the residual of error feedback (`jaxfed.uplink`); else empty.
    """

    memory: PyTree
    last_params: PyTree
    model_state: PyTree = ()
    uplink: PyTree = ()


class Cohort(NamedTuple):
    """The clients of one round, with what they hold and what they train on.

    Attributes:
      ids: client of each slot, int32 [C]; −1 marks an empty slot, which contributes nothing. No client appears twice.
      rows: their rows, leaves [C, ...].
      batches: named arrays [C, K, B, ...] with "mask" bool [C, K, B]; a step whose mask is all False does nothing.
      weights: how much each client counts in the means of `Message`, [C], ≥ 0; None counts all alike.
    """

    ids: Array
    rows: ClientRow
    batches: Batch
    weights: Array | None = None


class ClientInfo(NamedTuple):
    """Facts about one client's local training.

    Attributes:
      loss: mean loss over its steps, [].
      gradient_norm: norm that the clip looks at, before clipping, mean over its steps, [].
      delta_norm: ‖x_K − x⁰‖₂, the client's drift, [].
      memory_norm: ‖memory‖₂ after the round: of the dual or the control variate, [].
      num_steps: local steps that had data, int32 [].
      padding: fraction of the batch slots that held no sample, [].
      samples: samples that it trained on, as often as they came, int32 [].
      sent_bytes: size of its message, bytes, [].
      aux: the loss function's aux, mean over its steps.
    """

    loss: Scalar
    gradient_norm: Scalar
    delta_norm: Scalar
    memory_norm: Scalar
    num_steps: Array
    padding: Scalar
    samples: Array
    sent_bytes: Scalar
    aux: PyTree


class Message(NamedTuple):
    """What a client sends. Of a whole cohort: the weighted means, and the plain sum of `total`.

    Attributes:
      delta: U = x_K − x⁰ (client − server), like the parameters.
      average: what else the server averages over the cohort, weighted like `delta`.
      total: what the server adds up, unweighted: changes of rows, so that its running sum stays the sum of all rows.
      model_state: the client's model state after the round, under the policy "average"; else empty.
    """

    delta: Params
    average: PyTree = ()
    total: PyTree = ()
    model_state: PyTree = ()


class ClientUpdate(NamedTuple):
    """What a client sends (`message`), what it keeps (`row`), and what a person may plot (`info`)."""

    message: Message
    row: ClientRow
    info: ClientInfo


class RoundInfo(NamedTuple):
    """Facts about one round.

    Attributes:
      client: means over the clients that were used, each field as in `ClientInfo`; NaN where none was.
      clients: the same of every slot, leaves [C, ...]; what stands in slots that were not used means nothing.
      used: bool [C], slots whose results entered the means.
      excluded: bool [C], slots whose client returned a NaN or an infinity: not in the mean, row left as it was.
      num_used: clients whose results entered the means, int32 [].
      inconsistency: mean over the clients used of ‖Uᵢ − Ū‖₂², with the means as weighted, []; NaN where none was.
      learning_rate: client learning rate ηₜ of the round.
    """

    client: ClientInfo
    clients: ClientInfo
    used: Array
    excluded: Array
    num_used: Array
    inconsistency: Scalar
    learning_rate: Scalar


class CohortResult(NamedTuple):
    """What a plan returns.

    Attributes:
      message: weighted sums over the clients used, and the plain sum of `Message.total`; in float32 or wider.
      weight: sum of the weights of the clients used, [].
      rows: the new rows [C, ...]; unused clients keep theirs.
      clients: facts about every slot, leaves [C, ...].
      used: bool [C], see `RoundInfo`.
      excluded: bool [C], see `RoundInfo`.
    """

    message: Message
    weight: Scalar
    rows: ClientRow
    clients: ClientInfo
    used: Array
    excluded: Array


Fetch = Callable[[Batch], Batch]
"""From one step's part of `Cohort.batches`, named arrays [B, ...], to the batch that the loss function is given."""


def as_given(batch: Batch) -> Batch:
    """The batch itself: `Cohort.batches` holds the samples."""
    return batch


ClientFn = Callable[[Cohort, Key], ClientUpdate]
"""One client: a slice of the cohort (id [], row, batches [K, B, ...]) and its key, to its update."""


class Plan(Protocol):
    """How a cohort is laid out over time and devices. A plan is a static, hashable value."""

    def __call__(self, client: ClientFn, cohort: Cohort, key: Key, /) -> CohortResult:
        """Run `client` on every slot with the key folded with its id, and reduce the messages to their sums."""
        ...


class Received(NamedTuple):
    """What the server update is given: the cohort's message, and of how many of how many clients.

    Attributes:
      message: means and sums, see `Message`.
      num_used: |Sₜ|, floating-point [].
      num_clients: N, floating-point [].
    """

    message: Message
    num_used: Scalar
    num_clients: Scalar


class ServerUpdate(NamedTuple):
    """How the server uses the cohort's message.

    Attributes:
      init: `init(params) -> extra`.
      apply: `apply(params, extra, received) -> (params, extra)`.
      reads: parts of the message beside `delta` that it uses, "average" and "total"; each is like the parameters.
    """

    init: Callable[[Params], PyTree]
    apply: Callable[[Params, PyTree, Received], tuple[Params, PyTree]]
    reads: tuple[str, ...] = ()


class Noise(Protocol):
    """What noise on a cohort's sum presumes; `jaxfed.privacy.Central` is one."""

    @property
    def max_norm(self) -> float:
        """Largest norm C of a message."""
        ...

    @property
    def sampler(self) -> Any:
        """How cohorts are drawn."""
        ...

    @property
    def num_clients(self) -> int:
        """Size N of the population."""
        ...


class Aggregate(NamedTuple):
    """How the messages of a cohort become the one that the server reads.

    Attributes:
      combine: `combine(result, cohort, key) -> (message, used)`, the message that the server update takes, and which
        clients count as having taken part, bool [C]; the rows of the others stay as they were.
      gathers: whether `result.message` holds every client's message, leaves [C, ...], in the place of their sums.
      name: for records.
      least: clients that it needs; a round with fewer uses none of them.
      noise: what its noise presumes, None without noise. The server then takes the message of a round without clients
        too, since its noise must be there when nobody took part; and a deployment draws cohorts, and the key of
        `combine`, from entropy of the server's own.
    """

    combine: Callable[[CohortResult, Cohort, Key], tuple[Message, Array]]
    gathers: bool = False
    name: str = "mean"
    least: int = 1
    noise: Noise | None = None


class Insides(NamedTuple):
    """What an algorithm is made of, for those that build another one of it (`jaxfed.uplink`).

    Attributes:
      learning_rate: `learning_rate(round) -> ηₜ`.
      message: `message(params) -> Message` of zeros, as a client sends it.
      advance: `advance(memory, change) -> memory` whose part that the server sums up is moved by `change`, which is
        like `Message.total`.
      aggregate: how messages of a cohort become one.
      averages_state: whether clients send model state.
      loss_fn: what clients minimise; None where it is not known.
      max_norm: norm that no message exceeds, None where nothing bounds it.
      secret: whether clients add noise that nobody else may know.
      uplinks: how many times messages are transformed, each with keys of its own.
      coding: how an array of a message is written down, from how it lies in memory (`jaxfed.uplink.Coding`).
    """

    learning_rate: Callable[[Array], Scalar]
    message: Callable[[Params], Message]
    advance: Callable[[PyTree, PyTree], PyTree]
    aggregate: Aggregate
    averages_state: bool = False
    loss_fn: AnyLossFn | None = None
    max_norm: float | None = None
    secret: bool = False
    uplinks: int = 0
    coding: Callable[[Any], Any] = lambda before: before


class StepFn(Protocol):
    """One round of an algorithm; pure, so it may be jitted (with `plan` static) and differentiated."""

    def __call__(
        self, server: Server, cohort: Cohort, key: Key, *, plan: Plan = ..., fetch: Fetch = ...
    ) -> tuple[Server, ClientRow, RoundInfo]:
        """Return the server after the round, the cohort's new rows [C, ...] and the round's facts.

        With `fetch` the cohort's batches may hold indices, and samples are gathered step by step.
        """
        ...


class FederatedAlgorithm(NamedTuple):
    """A federated algorithm as pure functions.

    Attributes:
      init: `init(params, num_clients, model_state=()) -> Server`.
      init_client: `init_client(params, model_state=()) -> ClientRow` of a client that was never drawn, from the initial
        parameters.
      step: `step(server, cohort, key) -> (server, rows, info)`, one round. The key is the run's and the same in every
        round: round, client id and local step are folded in here.
      client_update: `client_update(server, member, key, fetch=...) -> ClientUpdate`: the client's half of `step`, for a
        deployment whose clients are elsewhere; member is one slice of a cohort. Where `insides.secret`, it takes
        `noise_key` as well: None derives the noise from `key`, as a simulation does.
      server_update: `server_update(server, message, num_used) -> Server`: the server's half, from the cohort's message.
      hyperparameters: what the factory was given, for records and for the check that a resumed run is the same one.
      insides: parts that another algorithm can be built of; `jaxfed.algorithms.parts.compose` fills them in.
    """

    init: Callable[..., Server]
    init_client: Callable[..., ClientRow]
    step: StepFn
    client_update: Callable[..., ClientUpdate]
    server_update: Callable[[Server, Message, Array], Server]
    hyperparameters: Mapping[str, Any] = MappingProxyType({})
    insides: Insides | None = None


Arguments = ParamSpec("Arguments")

TAKERS: dict[str, list[str]] = {}
"""Argument to the factories that take it, filled by `recorded`; read only where a message names them."""


def recorded(factory: Callable[Arguments, FederatedAlgorithm]) -> Callable[Arguments, FederatedAlgorithm]:
    """Let what `factory` builds carry the factory's name and its arguments, those that are plain values.

    The factory raises TypeError, with the nearest name or the algorithms that have it, for an argument that it does not
    have. With a `client_optimiser`, which has a learning rate of its own, `client_learning_rate` is 1 unless given.
    """
    parameters = inspect.signature(factory).parameters.values()
    rest = [each.annotation for each in parameters if each.kind is inspect.Parameter.VAR_KEYWORD]
    named = [each.name for each in parameters if each.kind is not inspect.Parameter.VAR_KEYWORD]
    known = [*named, *(name for each in rest for options in get_args(each) for name in options.__annotations__)]
    closed = all(get_args(each) for each in rest)
    for name in known:
        TAKERS.setdefault(name, []).append(factory.__name__)

    @functools.wraps(factory)
    def build(*args: Arguments.args, **kwargs: Arguments.kwargs) -> FederatedAlgorithm:
        if closed and (strange := [name for name in kwargs if name not in known]):
            raise TypeError(_unknown(factory.__name__, strange[0], known))
        if kwargs.get("client_optimiser") is not None and "client_learning_rate" in known:
            kwargs.setdefault("client_learning_rate", 1.0)
        values: Any = [plain(value) for value in args], {name: plain(value) for name, value in kwargs.items()}
        bound = inspect.signature(factory).bind(*values[0], **values[1])
        bound.apply_defaults()
        given = {"algorithm": factory.__name__, **bound.arguments, **bound.arguments.get("options", {})}
        told = {name: value for name, value in given.items() if isinstance(value, bool | int | float | str | None)}
        return factory(*values[0], **values[1])._replace(hyperparameters=MappingProxyType(told))

    return build


def _unknown(factory: str, name: str, known: list[str]) -> str:
    """What to say of an argument that a factory does not have."""
    message = f"an argument of {factory} must be one of {', '.join(map(repr, known))}; got {name!r}."
    if takers := [each for each in TAKERS.get(name, ()) if each != factory]:
        return f"{message} Of the algorithms {', '.join(sorted(set(takers)))} have it."
    near = nearest(name, known)
    return f"{message} Did you mean {near!r}?" if near else message
