"""Clipping whose norm follows a quantile of the messages' norms."""

from types import MappingProxyType
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, PyTree

from jaxfed.algorithms.parts import make_step, received_as
from jaxfed.core import tree
from jaxfed.core.checks import check_range
from jaxfed.core.protocol import ClientMessage, ClientUpdate, Cohort, FederatedAlgorithm, Fetch, Server, identity_fetch
from jaxfed.core.types import Key, Params, Scalar


class AdaptiveNorm(NamedTuple):
    """What the server keeps: the algorithm's own part, and the norm C."""

    inner: PyTree
    norm: Scalar


def adaptive_clip(
    algorithm: FederatedAlgorithm, *, quantile: float = 0.5, first_norm: float = 0.1, rate: float = 0.2
) -> FederatedAlgorithm:
    """Return the same algorithm with messages clipped to a norm C that follows a quantile of their norms.

    Every client sends m̂ = m·min(1, C/(‖m‖ + 1e-6)) and bᵢ, 1 where ‖m‖ ≤ C, else 0; the server moves C geometrically:

        C ← C·exp(−η_C·(mean over Sₜ of bᵢ − γ))

    C is in `server.extra.norm`. It depends on the clients' data without noise, so that this is no part of a private
    algorithm; transforms around it would act on bᵢ too, and are refused.

    Args:
        algorithm: any algorithm built by `jaxfed.algorithms.parts.compose`, without transforms; a robust aggregate, by
            `jaxfed.uplink(algorithm, aggregate=...)`, goes inside.
        quantile: γ in [0, 1].
        first_norm: C of the first round, > 0.
        rate: η_C > 0.

    Raises:
        ValueError: a number out of range, or an algorithm that was not composed or has transforms.

    Source: Andrew et al., Differentially Private Learning with Adaptive Clipping, NeurIPS 2021 (arXiv 1905.03871),
    Algorithm 1 without noise.
    """
    check_range("quantile", quantile, least=0.0, most=1.0)
    check_range("first_norm", first_norm, above=0.0)
    check_range("rate", rate, above=0.0)
    parts = algorithm.parts
    if parts is None:
        raise ValueError(
            "expected an algorithm with `parts`, got one without; build it with jaxfed.algorithms.parts.compose"
        )
    if parts.uplinks or parts.aggregate.noise is not None:
        raise ValueError(
            "expected an algorithm without transforms of messages and noise, got one with; adaptive_clip clips alone"
        )

    def init(params: Params, num_clients: int, model_state: PyTree = ()) -> Server:
        server = algorithm.init(params, num_clients, model_state)
        return server._replace(extra=AdaptiveNorm(server.extra, jnp.float32(first_norm)))

    def client_update(
        server: Server, member: Cohort, key: Key, fetch: Fetch = identity_fetch, **options: Any
    ) -> ClientUpdate:
        update = algorithm.client_update(_inner(server), member, key, fetch, **options)
        message = update.message
        factor, below = _factor(message._replace(model_state=()), server.extra.norm)
        sent = tree.scale(factor, message._replace(model_state=()))._replace(model_state=message.model_state)
        return received_as(update, sent._replace(average=AdaptiveNorm(sent.average, below)), parts)

    def server_update(server: Server, message: ClientMessage, num_used: Array) -> Server:
        inner, share = message.average
        after = algorithm.server_update(_inner(server), message._replace(average=inner), num_used)
        moved = server.extra.norm * jnp.exp(-rate * (share.astype(jnp.float32) - quantile))
        return after._replace(extra=AdaptiveNorm(after.extra, jnp.where(num_used > 0, moved, server.extra.norm)))

    changed = parts._replace(max_norm=None, fixed="adaptive_clip")
    if parts.personal is not None:
        personal = parts.personal
        changed = changed._replace(personal=lambda server, row: personal(_inner(server), row))
    named = {"adaptive_clip": f"quantile {quantile}, first norm {first_norm}, rate {rate}"}
    return algorithm._replace(
        init=init,
        client_update=client_update,
        server_update=server_update,
        step=make_step(client_update, server_update, changed),
        parts=changed,
        hyperparameters=MappingProxyType({**algorithm.hyperparameters, **named}),
    )


def _inner(server: Server) -> Server:
    return server._replace(extra=server.extra.inner)


def _factor(message: ClientMessage, norm: Scalar) -> tuple[Scalar, Scalar]:
    """Return the factor of the clip, and 1 where the message is not clipped, else 0; float32 []."""
    length = tree.norm(message).astype(jnp.float32)
    return jnp.minimum(1.0, norm / (length + 1e-6)), (length <= norm).astype(jnp.float32)
