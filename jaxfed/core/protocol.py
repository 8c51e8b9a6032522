"""A federated algorithm: an init/step pair, the state it carries and the metrics it reports."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from jaxtyping import Array, PyTree

from jaxfed.core.stateful import AnyLossFn
from jaxfed.core.types import Batch, Key, Params, Scalar


class Server(NamedTuple):
    """State of the server, without the rows of the clients.

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
    """State that one client keeps between its rounds.

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
    """The clients of one round, their state and their batches.

    Attributes:
        ids: client of each slot, int32 [C]; −1 marks an empty slot, which contributes nothing. No client appears twice.
        rows: their rows, leaves [C, ...].
        batches: named arrays [C, K, B, ...] with "mask" bool [C, K, B]; a step whose mask is all False does nothing.
        weights: weight of each client in the means of `ClientMessage`, [C], ≥ 0; None for equal weights.
    """

    ids: Array
    rows: ClientRow
    batches: Batch
    weights: Array | None = None


class ClientInfo(NamedTuple):
    """Metrics of one client's local training.

    Attributes:
        loss: mean loss over its steps, [].
        gradient_norm: norm before clipping, mean over its steps, [].
        delta_norm: ‖x_K − x⁰‖₂, the client's drift, [].
        memory_norm: ‖memory‖₂ after the round, such as of the dual or the control variate, [].
        num_steps: local steps that had data, int32 [].
        padding: fraction of the batch slots that held no sample, [].
        samples: samples that it trained on, counted with repetition, int32 [].
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


class ClientMessage(NamedTuple):
    """Message of one client; or of a cohort: the weighted means, and the unweighted sum of `total`.

    Each part is any pytree of floating-point arrays that the server update understands.

    Attributes:
        delta: U = x_K − x⁰ (client − server), like the parameters in all algorithms of the package.
        average: other values that the server averages over the cohort, weighted like `delta`.
        total: values that the server sums, unweighted: changes of rows, so that its running sum stays that of all rows.
        model_state: the client's model state after the round, under the policy "average"; else empty.
    """

    delta: Params
    average: PyTree = ()
    total: PyTree = ()
    model_state: PyTree = ()


class ClientUpdate(NamedTuple):
    """Result of one client's round: the message it sends, the row it keeps, and metrics."""

    message: ClientMessage
    row: ClientRow
    info: ClientInfo


class RoundInfo(NamedTuple):
    """Metrics of one round.

    Attributes:
        ids: client of each slot, int32 [C], as in `Cohort`.
        client: means over the clients that were used, each field as in `ClientInfo`; NaN where none was.
        clients: the same of every slot, leaves [C, ...]; values in unused slots have no meaning.
        used: bool [C], slots whose results entered the means.
        excluded: bool [C], slots whose client returned a NaN or an infinity: not in the mean, row left as it was.
        num_used: clients whose results entered the means, int32 [].
        inconsistency: mean ‖Uᵢ‖₂² over the clients used, weighted, less ‖Ū‖₂², at least 0, []; NaN where none was. It
            is the mean of ‖Uᵢ − Ū‖₂² where Ū, as the server receives it, is the mean of what clients computed.
        learning_rate: client learning rate ηₜ of the round.
    """

    ids: Array
    client: ClientInfo
    clients: ClientInfo
    used: Array
    excluded: Array
    num_used: Array
    inconsistency: Scalar
    learning_rate: Scalar


class CohortResult(NamedTuple):
    """Result of a plan.

    Attributes:
        message: weighted sums over the clients used, and the unweighted sum of `ClientMessage.total`; float32 or wider.
        weight: sum of the weights of the clients used, [].
        rows: the new rows [C, ...]; unused clients keep theirs.
        clients: metrics of every slot, leaves [C, ...].
        used: bool [C], see `RoundInfo`.
        excluded: bool [C], see `RoundInfo`.
    """

    message: ClientMessage
    weight: Scalar
    rows: ClientRow
    clients: ClientInfo
    used: Array
    excluded: Array


Fetch = Callable[[Batch], Batch]
"""`fetch(part) -> batch`: from one step of `Cohort.batches`, named arrays [B, ...], to the loss function's batch."""


def identity_fetch(batch: Batch) -> Batch:
    """Return the batch itself: `Cohort.batches` holds the samples."""
    return batch


ClientFn = Callable[[Cohort, Key], ClientUpdate]
"""`client(member, key) -> update` of one slice of a cohort: id [], row, batches [K, B, ...]."""


class Plan(Protocol):
    """Schedule of a cohort over time and devices. A plan is a static, hashable value."""

    def __call__(self, client: ClientFn, cohort: Cohort, key: Key, /) -> CohortResult:
        """Run `client` on every slot with the key folded with its id, and reduce the messages to their sums."""
        ...


class Received(NamedTuple):
    """Input of the server update.

    Attributes:
        message: means and sums, see `ClientMessage`.
        num_used: |Sₜ|, floating-point [].
        num_clients: N, floating-point [].
    """

    message: ClientMessage
    num_used: Scalar
    num_clients: Scalar


class ServerUpdate(NamedTuple):
    """How the server uses the cohort's message: two pure functions.

    Attributes:
        init: `init(params) -> extra`.
        apply: `apply(params, extra, received) -> (params, extra)`.
    """

    init: Callable[[Params], PyTree]
    apply: Callable[[Params, PyTree, Received], tuple[Params, PyTree]]


class Noise(Protocol):
    """Assumptions of the noise on a cohort's sum; `jaxfed.privacy.Central` is one."""

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
    """How the messages of a cohort become one message for the server.

    Attributes:
        combine: `combine(result, cohort, key) -> (message, used)`: the message for the server update, and the clients
            that count as participants, bool [C]; the rows of the others stay as they were.
        gathers: whether `result.message` holds every client's message, leaves [C, ...], instead of their sums.
        name: for records.
        least: clients that it needs; a round with fewer uses none.
        noise: assumptions of its noise, None without noise. With noise the server also applies the message of a round
            without clients, because the noise must not reveal that no client took part; and a deployment draws cohorts,
            and the key of `combine`, from entropy of the server.
    """

    combine: Callable[[CohortResult, Cohort, Key], tuple[ClientMessage, Array]]
    gathers: bool = False
    name: str = "mean"
    least: int = 1
    noise: Noise | None = None


class Parts(NamedTuple):
    """What an algorithm is composed of, for code that wraps one, such as `jaxfed.uplink`.

    Attributes:
        learning_rate: `learning_rate(round) -> ηₜ`.
        advance: `advance(memory, change) -> memory`: moves the part of a client's memory that the server sums up by
            `change`, which is like `ClientMessage.total`.
        aggregate: how the messages of a cohort become one.
        averages_state: whether clients send model state.
        loss_fn: what clients minimise; None if unknown.
        max_norm: upper bound of a message's norm; None if there is none.
        secret: whether clients add noise that must stay secret.
        uplinks: how many times messages are transformed, each time with other keys.
        coding: how an array of a message is encoded, from its encoding in memory (`jaxfed.messages.Coding`).
        personal: `personal(server, row) -> (params, model_state)`: the model that a client itself uses: the server's,
            or what it keeps (Ditto, FedRep, FedBN); None if unknown.
        fixed: what made messages that transforms must not change; empty where they may.
    """

    learning_rate: Callable[[Array], Scalar]
    advance: Callable[[PyTree, PyTree], PyTree]
    aggregate: Aggregate
    averages_state: bool = False
    loss_fn: AnyLossFn | None = None
    max_norm: float | None = None
    secret: bool = False
    uplinks: int = 0
    coding: Callable[[Any], Any] = lambda before: before
    personal: Callable[[Server, ClientRow], tuple[Params, PyTree]] | None = None
    fixed: str = ""


class StepFn(Protocol):
    """One round of an algorithm; pure, so it may be jitted (with `plan` static) and differentiated."""

    def __call__(
        self, server: Server, cohort: Cohort, key: Key, *, plan: Plan = ..., fetch: Fetch = ...
    ) -> tuple[Server, ClientRow, RoundInfo]:
        """Return the server after the round, the cohort's new rows [C, ...] and the round's metrics.

        With `fetch` the cohort's batches may hold indices, and samples are gathered step by step.
        """
        ...


class FederatedAlgorithm(NamedTuple):
    """A federated algorithm as pure functions.

    Attributes:
        init: `init(params, num_clients, model_state=()) -> Server`.
        init_client: `init_client(params, model_state=()) -> ClientRow` of a client that was never drawn, from the
            initial parameters.
        step: `step(server, cohort, key) -> (server, rows, info)`, one round. The key is the run's, the same in every
            round: round, client id and local step are folded in here (`jaxfed.core.keys`).
        client_update: `client_update(server, member, key, fetch=...) -> ClientUpdate`: the client's half of `step`, for
            deployments; member is one slice of a cohort. If `parts.secret`, it takes `noise_key` as well: None derives
            the noise from `key`, as a simulation does.
        server_update: `server_update(server, message, num_used) -> Server`: the server's half, from the cohort's
            message.
        hyperparameters: arguments of the factory, for records and for the check of a resumed run.
        parts: what it is composed of, for code that wraps it; `jaxfed.algorithms.parts.compose` fills it in.
    """

    init: Callable[..., Server]
    init_client: Callable[..., ClientRow]
    step: StepFn
    client_update: Callable[..., ClientUpdate]
    server_update: Callable[[Server, ClientMessage, Array], Server]
    hyperparameters: Mapping[str, Any] = MappingProxyType({})
    parts: Parts | None = None
