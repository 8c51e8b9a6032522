"""Attacks: clients that send what they should not, to test aggregates with. All act on the messages of a cohort.

An attack knows the messages of all clients, the strongest attacker that aggregates are judged by.
"""

from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from jaxfed.algorithms.parts import make_step
from jaxfed.core import keys, tree
from jaxfed.core.checks import check_range
from jaxfed.core.protocol import ClientMessage, Cohort, CohortResult, FederatedAlgorithm
from jaxfed.core.types import Key
from jaxfed.layout import plans

Forge = Callable[[ClientMessage, Array, Key], ClientMessage]
"""`forge(messages, honest, key) -> messages`, leaves [C, ...]: what an attacker in each slot would send."""


class Attack(NamedTuple):
    """What dishonest clients send.

    Attributes:
        forge: see `Forge`; `honest` bool [C] marks the clients used that are no attackers.
        name: for records.
    """

    forge: Forge
    name: str


def sign_flip(factor: float = 1.0) -> Attack:
    """Send −s·m instead of m.

    Args:
        factor: s > 0.
    """
    check_range("factor", factor, above=0.0)
    return Attack(lambda messages, honest, key: tree.scale(-factor, messages), f"sign_flip({factor})")


def gaussian(deviation: float = 1.0) -> Attack:
    """Send independent noise N(0, σ²) instead of m.

    Args:
        deviation: σ > 0.
    """
    check_range("deviation", deviation, above=0.0)

    def forge(messages: ClientMessage, honest: Array, key: Key) -> ClientMessage:
        return tree.noised(optax.tree.zeros_like(messages), deviation, key)

    return Attack(forge, f"gaussian({deviation})")


def little_is_enough(deviations: float = 1.0) -> Attack:
    """Send μ − z·σ in every entry, with mean and standard deviation over the honest clients of the round (ALIE).

    All attackers send the same, within the spread of the others, so that a median or a distance hardly sees them.

    Args:
        deviations: z > 0.

    Source: Baruch et al., A Little Is Enough: Circumventing Defenses for Distributed Learning, NeurIPS 2019.
    """
    check_range("deviations", deviations, above=0.0)

    def forge(messages: ClientMessage, honest: Array, key: Key) -> ClientMessage:
        wide = tree.widened(messages)
        mean = tree.masked_mean(wide, honest)
        squares = jax.tree.map(lambda leaf, middle: jnp.square(leaf - middle[None]), wide, mean)
        deviation = jax.tree.map(jnp.sqrt, tree.masked_mean(squares, honest))
        sent = optax.tree.sub(mean, tree.scale(deviations, deviation))
        return jax.tree.map(
            lambda one, leaf: jnp.broadcast_to(one.astype(leaf.dtype)[None], leaf.shape), sent, messages
        )

    return Attack(forge, f"little_is_enough({deviations})")


def attacked(algorithm: FederatedAlgorithm, attack: Attack, clients: Sequence[int]) -> FederatedAlgorithm:
    """Return the same algorithm, where some clients send what an attack makes of their messages.

    Wrap what is attacked: `attacked(jaxfed.uplink(algorithm, aggregate=jaxfed.robust.median()), sign_flip(), [3, 7])`.
    The attackers' own rows follow what they have trained.

    Args:
        algorithm: any algorithm built by `jaxfed.algorithms.parts.compose`, or `jaxfed.uplink` of one.
        attack: such as `sign_flip()`.
        clients: ids of the attackers.

    Raises:
        ValueError: no attackers, ids below 0, or an algorithm that was not composed.
    """
    ids = np.unique(np.asarray(clients, np.int32))
    if not ids.size or ids[0] < 0:
        raise ValueError(f"clients: expected ids ≥ 0 of the attackers, got {clients!r}")
    if algorithm.parts is None:
        raise ValueError(
            "expected an algorithm with `parts`, got one without; build it with jaxfed.algorithms.parts.compose"
        )
    inner = algorithm.parts.aggregate

    def combine(result: CohortResult, cohort: Cohort, key: Key) -> tuple[ClientMessage, Array]:
        attackers = jnp.isin(cohort.ids, ids) & result.used
        forged = attack.forge(result.message, result.used & ~attackers, keys.attack_key(key))
        result = result._replace(message=tree.where(attackers, forged, result.message))
        return inner.combine(result if inner.gathers else plans.summed(result, cohort), cohort, key)

    name = f"{inner.name}; {attack.name} by {ids.tolist()}"
    parts = algorithm.parts._replace(aggregate=inner._replace(combine=combine, gathers=True, name=name))
    recorded = MappingProxyType({**algorithm.hyperparameters, "attack": f"{attack.name} by {ids.tolist()}"})
    step = make_step(algorithm.client_update, algorithm.server_update, parts)
    return algorithm._replace(step=step, parts=parts, hyperparameters=recorded)
