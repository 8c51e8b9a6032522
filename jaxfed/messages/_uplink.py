"""What happens to a message between client and server: delta transforms, and how a cohort's messages become one.

A transform acts on every quantity that a client sends, and the client advances its own row by what the server received:
a running sum on the server stays the sum of all clients' rows.
"""

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from jaxfed.algorithms.parts import stepping
from jaxfed.core import tree
from jaxfed.core.protocol import (
    Aggregate,
    ClientRow,
    ClientUpdate,
    Cohort,
    FederatedAlgorithm,
    Fetch,
    Insides,
    Message,
    Server,
    as_given,
)
from jaxfed.core.samplers import Sampler
from jaxfed.core.types import Key, Params
from jaxfed.layout import plans

UNWEIGHTED = (
    "expected clients that count alike and send no model state, or one of them could count for more than the noise "
    'covers; leave the weights of the sampler "uniform", and model state local or frozen'
)

STREAM = 2**32 - 1
"""Folded into a client's key for its transforms, and into the round's for the server's noise; no step, no client.

Transforms around an algorithm that has some already take the number below, and so on.
"""


@dataclasses.dataclass(frozen=True)
class Coding:
    """How one array of a message is written down.

    Attributes:
      values: numbers that are sent.
      bits: of each of them.
      extra: bits beside them: scales, indices.
      size: entries of the array.
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
    """What a client does to its message before it is sent.

    Attributes:
      init: `init(message) -> state` of a client that was never drawn, from a message of zeros.
      apply: `apply(message, state, key) -> (message, state)`: what the server receives, and what the client keeps.
      coding: how an array is written down after it, from how it was before.
      name: for records.
      max_norm: `max_norm(before) -> after`: the norm that what depends on the client's data in a message never exceeds
        after it, from that before it; None where nothing bounds it. By default None: noise for privacy is refused where
        a transform that does not say so comes after the clip.
      secret: whether it adds noise that nobody else may know. A deployment then gives it a key from entropy of the
        client's own in the place of one that is derived from the run's seed.
    """

    init: Callable[[Message], PyTree]
    apply: Callable[[Message, PyTree, Key], tuple[Message, PyTree]]
    coding: Callable[[Coding], Coding] = lambda before: before
    name: str = "transform"
    max_norm: Callable[[float | None], float | None] = lambda before: None
    secret: bool = False


def chain(*transforms: Transform) -> Transform:
    """One after the other, each with a key of its own."""

    def init(message: Message) -> tuple[PyTree, ...]:
        return tuple(each.init(message) for each in transforms)

    def apply(message: Message, state: tuple[PyTree, ...], key: Key) -> tuple[Message, tuple[PyTree, ...]]:
        after = []
        for number, (each, kept) in enumerate(zip(transforms, state, strict=True)):
            message, kept = each.apply(message, kept, jax.random.fold_in(key, number))
            after.append(kept)
        return message, tuple(after)

    def coding(before: Coding) -> Coding:
        for each in transforms:
            before = each.coding(before)
        return before

    def max_norm(before: float | None) -> float | None:
        for each in transforms:
            before = each.max_norm(before)
        return before

    secret = any(each.secret for each in transforms)
    return Transform(init, apply, coding, ", ".join(each.name for each in transforms), max_norm, secret)


def error_feedback(transform: Transform) -> Transform:
    """Keep what a lossy transform C left out and send it later: m̂ = C(m + e), e ← m + e − m̂; e is 0 at first.

    The residual e is like the message and lies in the client's row. A `jaxfed.privacy.clip` belongs after it: what a
    clip inside cuts off is kept as well, and the residual grows without bound while messages are longer than the clip.

    Source: Seide et al., 1-bit SGD, Interspeech 2014; Karimireddy et al., ICML 2019 (arXiv 1901.09847), Algorithm 2.
    """

    def init(message: Message) -> tuple[Message, PyTree]:
        return message, transform.init(message)

    def apply(message: Message, state: tuple[Message, PyTree], key: Key) -> tuple[Message, tuple[Message, PyTree]]:
        residual, inner = state
        wanted = tree.total(message, residual)
        sent, inner = transform.apply(wanted, inner, key)
        return sent, (tree.difference(wanted, sent), inner)

    name = f"error_feedback({transform.name})"
    return Transform(init, apply, transform.coding, name, lambda before: transform.max_norm(None), transform.secret)


def uplink(
    algorithm: FederatedAlgorithm, *transforms: Transform, aggregate: Aggregate | None = None
) -> FederatedAlgorithm:
    """The same algorithm with transformed messages, or with another aggregate of them.

    Transforms act in the order given on all that a client sends beside model state: U, and a dual or a control variate.
    Where the server keeps a running sum of changes of rows, the client's row moves by the change as it was received::

        m̂ᵢ = T(mᵢ),    hᵢ' = hᵢ + ĉᵢ  with ĉᵢ the change in m̂ᵢ,    server: aggregate over Sₜ of m̂ᵢ

    Args:
      algorithm: any algorithm built by `jaxfed.algorithms.parts.compose`.
      *transforms: such as `jaxfed.privacy.clip`, `jaxfed.compression.quantise`, `jaxfed.compression.top_k`.
      aggregate: `jaxfed.robust.median()`, `jaxfed.privacy.central_noise(...)` and others; None keeps the algorithm's.

    Returns:
      An algorithm whose `RoundInfo.client.sent_bytes` tells the size of a message as it is written down.

    Raises:
      ValueError: an algorithm that was not composed, or whose clients send model state, which no transform touches;
        noise for privacy where the last that changes a message is not a clip to the norm by which noise is measured.
    """
    before, transform = _insides(algorithm, bool(transforms)), chain(*transforms)
    insides = before._replace(
        aggregate=aggregate or before.aggregate,
        max_norm=transform.max_norm(before.max_norm),
        secret=before.secret or transform.secret,
        uplinks=before.uplinks + bool(transforms),
        coding=lambda array: transform.coding(before.coding(array)),
    )
    _check_noise(insides, transform.name)

    def init_client(params: Params, model_state: PyTree = ()) -> ClientRow:
        row = algorithm.init_client(params, model_state)
        message = insides.message(jax.tree.map(jnp.asarray, params))
        return row._replace(uplink=(row.uplink, transform.init(message))) if transforms else row

    def client_update(
        server: Server, member: Cohort, key: Key, fetch: Fetch = as_given, noise_key: Key | None = None
    ) -> ClientUpdate:
        more = {"noise_key": noise_key} if before.secret else {}
        if not transforms:
            return algorithm.client_update(server, member, key, fetch, **more)
        others, kept = member.rows.uplink
        inner = member._replace(rows=member.rows._replace(uplink=others))
        update = algorithm.client_update(server, inner, key, fetch, **more)
        own = noise_key if transform.secret and noise_key is not None else key
        sent, kept = transform.apply(update.message, kept, jax.random.fold_in(own, STREAM - before.uplinks))
        row = update.row._replace(memory=_advanced(insides, update, sent), uplink=(update.row.uplink, kept))
        return ClientUpdate(sent, row, update.info._replace(sent_bytes=jnp.float32(size(sent, insides))))

    step = stepping(client_update, algorithm.server_update, insides)
    told = _told(algorithm.hyperparameters, transform if transforms else None, aggregate)
    return algorithm._replace(
        init_client=init_client, step=step, client_update=client_update, hyperparameters=told, insides=insides
    )


def size(message: Message, insides: Insides) -> int:
    """Bytes of a message as the algorithm's clients write it down."""
    return sum(insides.coding(plain(leaf)).num_bytes for leaf in jax.tree.leaves(message))


def plain(leaf: Array) -> Coding:
    """An array as it lies in memory."""
    return Coding(leaf.size, 8 * leaf.dtype.itemsize, 0, leaf.size)


def index_bits(entries: int) -> int:
    """Bits that name one of so many entries."""
    return max(1, (entries - 1).bit_length())


def _advanced(insides: Insides, update: ClientUpdate, sent: Message) -> PyTree:
    """The client's memory after a round in which the server received `sent.total`."""
    if not jax.tree.leaves(sent.total):
        return update.row.memory
    return insides.advance(update.row.memory, tree.difference(sent.total, update.message.total))


def _insides(algorithm: FederatedAlgorithm, transformed: bool) -> Insides:
    if algorithm.insides is None:
        raise ValueError(
            "expected an algorithm with `insides`, got one without; build it with jaxfed.algorithms.parts.compose"
        )
    if transformed and algorithm.insides.averages_state:
        raise ValueError(
            'expected clients that send no model state, got Stateful(..., policy="average"), which no transform '
            'touches; take policy="local" or "frozen"'
        )
    return algorithm.insides


def check_cohorts(algorithm: FederatedAlgorithm, sampler: Sampler, num_clients: int, weighted: bool) -> None:
    """Raise ValueError unless the algorithm's aggregate can do with the cohorts of a run, before the run begins.

    Args:
      algorithm: the run's.
      sampler: the run's.
      num_clients: N.
      weighted: whether clients have weights.
    """
    aggregate = algorithm.insides.aggregate if algorithm.insides else plans.MEAN
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
            "give both the same, or noise and ε are those of another run"
        )


def _check_noise(insides: Insides, transforms: str) -> None:
    noise = insides.aggregate.noise
    if noise is not None and insides.max_norm != noise.max_norm:
        raise_unclipped(insides.aggregate.name, noise.max_norm, insides.max_norm, transforms)


def raise_unclipped(noise: str, expected: float, got: float | None, transforms: str = "") -> NoReturn:
    """Raise the ValueError of noise, by name, for messages of another norm than it is measured by."""
    after = f" after {transforms}" if transforms else ""
    found = f"messages whose norm nothing bounds{after}" if got is None else f"a clip to {got}"
    raise ValueError(f"expected privacy.clip({expected}) last, before {noise}, got {found}; clip after what compresses")


def _told(before: Mapping[str, Any], transform: Transform | None, aggregate: Aggregate | None) -> Mapping[str, Any]:
    """Hyperparameters with the names of what was added, so that a run is resumed with the same."""
    names = {"uplink": transform and transform.name, "aggregate": aggregate and aggregate.name}
    added = {name: "; ".join(filter(None, [before.get(name), each])) for name, each in names.items() if each}
    return MappingProxyType({**before, **added})
