"""Messages between client and server: transforms on the client, aggregates on the server.

A transform acts on every part of a client's message, and the client advances its row by the message that the server
received, so that a running sum on the server stays the sum of all clients' rows.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from jaxfed.algorithms.parts import make_step, received_as
from jaxfed.core import keys
from jaxfed.core.protocol import (
    Aggregate,
    ClientMessage,
    ClientRow,
    ClientUpdate,
    Cohort,
    FederatedAlgorithm,
    Fetch,
    Parts,
    Server,
    identity_fetch,
)
from jaxfed.core.samplers import Sampler
from jaxfed.core.types import Key, Params
from jaxfed.layout import plans

UNWEIGHTED = (
    "expected clients with equal weights and without model state in their messages, because the noise does not cover "
    'more; leave weights "uniform" and model state local or frozen'
)


@dataclasses.dataclass(frozen=True)
class Coding:
    """Encoding of one array of a message.

    Attributes:
        values: number of values that are sent.
        bits: bits of each value.
        extra: other bits, such as of scales and indices.
        size: number of entries of the array.
    """

    values: int
    bits: int
    extra: int
    size: int

    @property
    def num_bytes(self) -> int:
        """Whole bytes, rounded up."""
        return -(-(self.values * self.bits + self.extra) // 8)


class Transform(NamedTuple):
    """Transform of a client's message before it is sent.

    Attributes:
        init: `init(message) -> state` of a client that was never drawn, from a message of zeros. None if it has no
            state; the state is then ().
        apply: `apply(message, state, key) -> (message, state)`: the message that the server receives, and the state
            that the client keeps.
        coding: `coding(before) -> after`: the encoding of an array after the transform.
        name: for records.
        max_norm: `max_norm(before) -> after`: upper bound of the norm of the part of a message that depends on the
            client's data; None if there is none. The default is None, so that noise for privacy is refused after a
            transform that does not declare a bound.
        secret: whether it adds noise that must stay secret. A deployment then passes a key from the client's entropy
            instead of one that is derived from the run's seed.
    """

    init: Callable[[ClientMessage], PyTree] | None
    apply: Callable[[ClientMessage, PyTree, Key], tuple[ClientMessage, PyTree]]
    coding: Callable[[Coding], Coding] = lambda before: before
    name: str = "transform"
    max_norm: Callable[[float | None], float | None] = lambda before: None
    secret: bool = False


def chain(*transforms: Transform) -> Transform:
    """Apply transforms one after the other, each with its own key."""

    def init(message: ClientMessage) -> tuple[PyTree, ...]:
        return tuple(_initial(each, message) for each in transforms)

    def apply(message: ClientMessage, state: tuple[PyTree, ...], key: Key) -> tuple[ClientMessage, tuple[PyTree, ...]]:
        states = []
        for number, (each, before) in enumerate(zip(transforms, state, strict=True)):
            message, after = each.apply(message, before, keys.numbered_key(key, number))
            states.append(after)
        return message, tuple(states)

    def coding(before: Coding) -> Coding:
        return functools.reduce(lambda coding, each: each.coding(coding), transforms, before)

    def max_norm(before: float | None) -> float | None:
        return functools.reduce(lambda norm, each: each.max_norm(norm), transforms, before)

    secret = any(each.secret for each in transforms)
    return Transform(init, apply, coding, ", ".join(each.name for each in transforms), max_norm, secret)


def error_feedback(transform: Transform) -> Transform:
    """Keep the error of a lossy transform C and send it later: m̂ = C(m + e), e ← m + e − m̂; e is 0 at first.

    The residual e is like the message and is part of the client's row. Put a `jaxfed.privacy.clip` after it, not
    inside: the residual of a clip grows without bound while messages are longer than the clip.

    Source: Seide et al., 1-bit SGD, Interspeech 2014; Karimireddy et al., ICML 2019 (arXiv 1901.09847), Algorithm 2.
    """

    def init(message: ClientMessage) -> tuple[ClientMessage, PyTree]:
        return message, _initial(transform, message)

    def apply(
        message: ClientMessage, state: tuple[ClientMessage, PyTree], key: Key
    ) -> tuple[ClientMessage, tuple[ClientMessage, PyTree]]:
        residual, inner = state
        corrected = optax.tree.add(message, residual)
        sent, inner = transform.apply(corrected, inner, key)
        return sent, (optax.tree.sub(corrected, sent), inner)

    name = f"error_feedback({transform.name})"
    return Transform(init, apply, transform.coding, name, lambda before: transform.max_norm(None), transform.secret)


def uplink(
    algorithm: FederatedAlgorithm, *transforms: Transform, aggregate: Aggregate | None = None
) -> FederatedAlgorithm:
    """Return the same algorithm with transformed messages, or with another aggregate of them.

    Transforms act in the order of the arguments on the whole message without model state: U, and a dual or a control
    variate. Where the server keeps a running sum of changes of rows, the client's row moves by the change that the
    server received:

        m̂ᵢ = T(mᵢ),    hᵢ' = hᵢ + ĉᵢ  with ĉᵢ the change in m̂ᵢ,    server: aggregate over Sₜ of m̂ᵢ

    Args:
        algorithm: any algorithm built by `jaxfed.algorithms.parts.compose`; its messages may have any structure of
            floating-point arrays. If a transform has state, the shapes of a message must not depend on the batches.
        *transforms: such as `jaxfed.privacy.clip`, `jaxfed.compression.quantise`, `jaxfed.compression.top_k`.
        aggregate: `jaxfed.robust.median()`, `jaxfed.privacy.central_noise(...)` and others; None keeps the algorithm's.

    Returns:
        An algorithm whose `RoundInfo.client.sent_bytes` is the size of the encoded message.

    Raises:
        ValueError: an algorithm that was not composed, or whose clients send model state, which no transform changes;
            noise for privacy where the last transform that changes a message is not a clip to the norm by which the
            noise is scaled.
    """
    before, transform = _parts(algorithm, bool(transforms)), chain(*transforms)
    parts = before._replace(
        aggregate=aggregate or before.aggregate,
        max_norm=transform.max_norm(before.max_norm),
        secret=before.secret or transform.secret,
        uplinks=before.uplinks + bool(transforms),
        coding=lambda array: transform.coding(before.coding(array)),
    )
    _check_noise(parts, transform.name)

    def init_client(params: Params, model_state: PyTree = ()) -> ClientRow:
        row = algorithm.init_client(params, model_state)
        if not transforms:
            return row
        stateful = any(each.init for each in transforms)
        zeros = optax.tree.zeros_like(message_like(algorithm, params, model_state)) if stateful else ClientMessage(())
        return row._replace(uplink=(row.uplink, _initial(transform, zeros)))

    def client_update(
        server: Server, member: Cohort, key: Key, fetch: Fetch = identity_fetch, noise_key: Key | None = None
    ) -> ClientUpdate:
        noise = {"noise_key": noise_key} if before.secret else {}
        if not transforms:
            return algorithm.client_update(server, member, key, fetch, **noise)
        inner, state = member.rows.uplink
        member = member._replace(rows=member.rows._replace(uplink=inner))
        update = algorithm.client_update(server, member, key, fetch, **noise)
        of_client = noise_key if transform.secret and noise_key is not None else key
        sent, state = transform.apply(update.message, state, keys.transform_key(of_client, before.uplinks))
        update = received_as(update, sent, parts)
        row = update.row._replace(uplink=(update.row.uplink, state))
        return update._replace(row=row, info=update.info._replace(sent_bytes=jnp.float32(size(sent, parts))))

    step = make_step(client_update, algorithm.server_update, parts)
    recorded = _recorded(algorithm.hyperparameters, transform if transforms else None, aggregate)
    return algorithm._replace(
        init_client=init_client, step=step, client_update=client_update, hyperparameters=recorded, parts=parts
    )


def message_like(algorithm: FederatedAlgorithm, params: Params, model_state: PyTree = ()) -> ClientMessage:
    """Return shapes and dtypes of one client's message, by tracing a round of K = 0 steps, without samples.

    Raises:
        ValueError: a client function that reads samples; the shapes of its message are not known without them.
    """

    def update(params: Params, model_state: PyTree) -> ClientMessage:
        row = algorithm.init_client(params, model_state)
        member = Cohort(jnp.int32(0), row, {"mask": jnp.zeros((0, 1), bool)})
        return algorithm.client_update(algorithm.init(params, 1, model_state), member, jax.random.key(0)).message

    try:
        return jax.eval_shape(update, params, model_state)
    except (KeyError, IndexError) as error:
        raise ValueError(
            "expected a message whose shapes are known without samples, got a client function that reads samples "
            f"({error}); use transforms without state, such as privacy.clip and compression.quantise"
        ) from error


def size(message: ClientMessage, parts: Parts) -> int:
    """Return the bytes of a message in the encoding of the algorithm's clients."""
    return sum(parts.coding(in_memory(leaf)).num_bytes for leaf in jax.tree.leaves(message))


def in_memory(leaf: Array) -> Coding:
    """Return the encoding of an array in memory."""
    return Coding(leaf.size, 8 * leaf.dtype.itemsize, 0, leaf.size)


def index_bits(entries: int) -> int:
    """Return the bits of an index of one of so many entries."""
    return max(1, (entries - 1).bit_length())


def _initial(transform: Transform, message: ClientMessage) -> PyTree:
    return transform.init(message) if transform.init else ()


def _parts(algorithm: FederatedAlgorithm, transformed: bool) -> Parts:
    if algorithm.parts is None:
        raise ValueError(
            "expected an algorithm with `parts`, got one without; build it with jaxfed.algorithms.parts.compose"
        )
    if transformed and algorithm.parts.fixed:
        raise ValueError(
            f"expected messages that transforms may change, got those of {algorithm.parts.fixed}, which hold more than "
            "what clients learnt; leave the transforms out"
        )
    if transformed and algorithm.parts.averages_state:
        raise ValueError(
            'expected clients that send no model state, got Stateful(..., policy="average"), which no transform '
            'changes; use policy="local" or "frozen"'
        )
    return algorithm.parts


def check_cohorts(algorithm: FederatedAlgorithm, sampler: Sampler, num_clients: int, weighted: bool) -> None:
    """Raise ValueError unless the algorithm's aggregate accepts the cohorts of a run, before the run begins.

    Args:
        algorithm: the run's.
        sampler: the run's.
        num_clients: N.
        weighted: whether clients have weights.
    """
    aggregate = algorithm.parts.aggregate if algorithm.parts else plans.MEAN
    if (slots := sampler.num_slots(num_clients)) < aggregate.least:
        raise ValueError(
            f"expected cohorts of {aggregate.least} clients or more for {aggregate.name}, got {slots} slots; "
            "draw more clients"
        )
    if (noise := aggregate.noise) is None:
        return
    if weighted:
        raise ValueError(UNWEIGHTED)
    if (sampler, num_clients) != (noise.sampler, noise.num_clients):
        built = f"{noise.sampler} of {noise.num_clients} clients"
        raise ValueError(
            f"expected the sampling that {aggregate.name} was built for, {built}, got {sampler} of {num_clients}; "
            "use the same in both, because noise and ε depend on it"
        )


def _check_noise(parts: Parts, transforms: str) -> None:
    noise = parts.aggregate.noise
    if noise is not None and parts.max_norm != noise.max_norm:
        raise_unclipped(parts.aggregate.name, noise.max_norm, parts.max_norm, transforms)


def raise_unclipped(noise: str, expected: float, got: float | None, transforms: str = "") -> NoReturn:
    """Raise the ValueError of noise, by name, for messages with another norm than the noise is scaled by."""
    after = f" after {transforms}" if transforms else ""
    what = f"messages without a bound of their norm{after}" if got is None else f"a clip to {got}"
    raise ValueError(f"expected privacy.clip({expected}) last, before {noise}, got {what}; clip after compression")


def _recorded(before: Mapping[str, Any], transform: Transform | None, aggregate: Aggregate | None) -> Mapping[str, Any]:
    """Return hyperparameters with the names of the transforms and the aggregate, which a resumed run must have too."""
    names = {"uplink": transform and transform.name, "aggregate": aggregate and aggregate.name}
    added = {name: "; ".join(filter(None, [before.get(name), each])) for name, each in names.items() if each}
    return MappingProxyType({**before, **added})
