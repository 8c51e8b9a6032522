"""Server updates: pairs (init, apply) that turn the cohort's message into the next parameters."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxfed.algorithms.parts import gradients
from jaxfed.algorithms.parts.optimisers import check_descends, check_optimiser
from jaxfed.core import tree
from jaxfed.core.checks import check_range, equals
from jaxfed.core.protocol import Received, ServerUpdate
from jaxfed.core.types import Params, Scalar

Pair = tuple[Params, Params]


def mean(learning_rate: float = 1.0) -> ServerUpdate:
    """xᵗ⁺¹ = xᵗ + η_g·Ū, without state."""
    return _stateless(lambda received: learning_rate)


def _stateless(rate: Callable[[Received], float | Scalar]) -> ServerUpdate:
    """xᵗ⁺¹ = xᵗ + η·Ū with η = `rate(received)`."""

    def apply(params: Params, extra: tuple[()], received: Received) -> tuple[Params, tuple[()]]:
        return _moved(params, received, rate(received)), extra

    return ServerUpdate(lambda params: (), apply)


def optimiser(transformation: optax.GradientTransformation) -> ServerUpdate:
    """Apply a whole optax optimiser to the pseudo-gradient −Ū (FedOpt, Reddi et al. 2021).

    `init` raises ValueError for one whose updates ascend.
    """

    def init(params: Params) -> optax.OptState:
        check_descends("server_optimiser", transformation, params)
        return transformation.init(params)

    def apply(params: Params, extra: optax.OptState, received: Received) -> tuple[Params, optax.OptState]:
        pseudo_gradient = jax.tree.map(jnp.negative, received.message.delta)
        with jax.numpy_dtype_promotion("standard"):
            updates, extra = transformation.update(pseudo_gradient, extra, params)
        return optax.apply_updates(params, updates), extra

    return ServerUpdate(init, apply)


def check_step(learning_rate: float, transformation: optax.GradientTransformation | None) -> None:
    """Raise ValueError for η_g out of range, or beside an optimiser; TypeError for an optimiser that is none."""
    check_range("server_learning_rate", learning_rate, above=0.0)
    check_optimiser("server_optimiser", transformation)
    if transformation is not None and not equals(learning_rate, 1.0):
        raise ValueError("server_optimiser has its own learning rate: leave server_learning_rate at 1.0")


class Stepped(NamedTuple):
    """State of `stepped`: that of the server update inside, and of the optimiser."""

    inner: Any
    moments: optax.OptState


def stepped(
    update: ServerUpdate, learning_rate: float = 1.0, transformation: optax.GradientTransformation | None = None
) -> ServerUpdate:
    """Wrap a server update xᵗ → y: xᵗ⁺¹ = xᵗ + η_g·(y − xᵗ), or an optax step along the pseudo-gradient xᵗ − y.

    With a rate of 1 and no optimiser it is the update itself.

    Args:
        update: any server update; its own state follows as without the wrapper.
        learning_rate: η_g > 0.
        transformation: a whole optax optimiser, which has its own learning rate.

    Raises:
        ValueError: η_g out of range, or beside an optimiser; from `init`, an optimiser whose updates ascend.
        TypeError: an optimiser that is none of optax.
    """
    check_step(learning_rate, transformation)
    if transformation is None:
        return update if equals(learning_rate, 1.0) else _part_of_the_way(update, learning_rate)
    step = optimiser(transformation)

    def init(params: Params) -> Stepped:
        return Stepped(update.init(params), step.init(params))

    def apply(params: Params, extra: Stepped, received: Received) -> tuple[Params, Stepped]:
        towards, inner = update.apply(params, extra.inner, received)
        change = received._replace(message=received.message._replace(delta=optax.tree.sub(towards, params)))
        params, moments = step.apply(params, extra.moments, change)
        return params, Stepped(inner, moments)

    return ServerUpdate(init, apply)


def inner_state(extra: Any) -> Any:
    """Return the state of the server update inside `stepped`; of one that is not wrapped, its own."""
    return extra.inner if isinstance(extra, Stepped) else extra


def _part_of_the_way(update: ServerUpdate, learning_rate: float) -> ServerUpdate:
    def apply(params: Params, extra: Any, received: Received) -> tuple[Params, Any]:
        towards, extra = update.apply(params, extra, received)
        return optax.tree.add(params, tree.scale(learning_rate, optax.tree.sub(towards, params))), extra

    return ServerUpdate(update.init, apply)


def normalised_mean(learning_rate: float = 1.0) -> ServerUpdate:
    """xᵗ⁺¹ = xᵗ + η_g·τ̄·mean of dᵢ (FedNova); clients send dᵢ = Uᵢ/Kᵢ in `delta` and Kᵢ in `average`, τ̄ its mean."""
    return _stateless(lambda received: learning_rate * received.message.average)


def fair_mean(learning_rate: float = 1.0) -> ServerUpdate:
    """xᵗ⁺¹ = xᵗ + η_g·Σ Δᵢ / Σ hᵢ (q-FedAvg), xᵗ where Σ hᵢ = 0; clients send Δᵢ in `delta` and hᵢ in `average`."""

    def rate(received: Received) -> Scalar:
        total = received.message.average
        return jnp.where(total > 0, learning_rate / jnp.where(total > 0, total, 1), 0)

    return _stateless(rate)


def part_mean(learning_rate: float = 1.0) -> ServerUpdate:
    """xᵗ⁺¹ = xᵗ + η_g·Ū where `delta` has only some of the leaves, None for the others, which stay (FedRep, FedBN)."""

    def apply(params: Params, extra: tuple[()], received: Received) -> tuple[Params, tuple[()]]:
        shared = jax.tree.map(
            lambda change, leaf: leaf if change is None else leaf + _scaled(change, learning_rate),
            received.message.delta,
            params,
            is_leaf=lambda leaf: leaf is None,
        )
        return shared, extra

    return ServerUpdate(lambda params: (), apply)


def cohort_dual_mean() -> ServerUpdate:
    """xᵗ⁺¹ = mean over Sₜ of (x_K + hᵢ') (FedSpeed, Algorithm 1); clients send hᵢ' in `average`."""

    def apply(params: Params, extra: tuple[()], received: Received) -> tuple[Params, tuple[()]]:
        return optax.tree.add(params, received.message.delta, received.message.average), extra

    return ServerUpdate(lambda params: (), apply)


def population_dual_mean() -> ServerUpdate:
    """xᵗ⁺¹ = mean over Sₜ of x_K + mean over all N clients of h (FedDyn's rule; absent clients keep their h).

    The server keeps the mean of all duals as a running mean, h̄ ← h̄ + 1/N · Σ over Sₜ of (hᵢ' − hᵢ), so that the
    rows of the population are never read; clients send hᵢ' − hᵢ in `total`.
    """

    def apply(params: Params, dual_mean: Params, received: Received) -> Pair:
        dual_mean = running_mean(dual_mean, received)
        return optax.tree.add(params, received.message.delta, dual_mean), dual_mean

    return ServerUpdate(optax.tree.zeros_like, apply)


def control_mean(learning_rate: float = 1.0) -> ServerUpdate:
    """xᵗ⁺¹ = xᵗ + η_g·Ū, and c ← c + 1/N · Σ over Sₜ of (cᵢ' − cᵢ) (SCAFFOLD); clients send cᵢ' − cᵢ in `total`."""

    def apply(params: Params, control: Params, received: Received) -> Pair:
        return _moved(params, received, learning_rate), running_mean(control, received)

    return ServerUpdate(optax.tree.zeros_like, apply)


def momentum_mean(learning_rate: float = 1.0) -> ServerUpdate:
    """xᵗ⁺¹ = xᵗ + η_g·Ū, and D = mean over Sₜ of −Uᵢ/(Kᵢ·ηₜ) (FedCM); clients send this direction in `average`."""

    def apply(params: Params, direction: Params, received: Received) -> Pair:
        return _moved(params, received, learning_rate), received.message.average

    return ServerUpdate(optax.tree.zeros_like, apply)


class Aligned(NamedTuple):
    """State of `aligned_dual_mean`: h̄, the mean of all duals, and s, the shared direction of the ascent steps."""

    dual_mean: Params
    ascent: Params


def aligned_dual_mean(ascent_radius: float) -> ServerUpdate:
    """`population_dual_mean`, and s = ρ·μ̄/(‖μ̄‖₂ + 1e-7) with μ̄ = mean over Sₜ of μᵢ, sent in `average` (FedSMOO)."""
    duals = population_dual_mean()

    def apply(params: Params, extra: Aligned, received: Received) -> tuple[Params, Aligned]:
        params, dual_mean = duals.apply(params, extra.dual_mean, received)
        return params, Aligned(dual_mean, gradients.normalised(received.message.average, ascent_radius))

    def init(params: Params) -> Aligned:
        return Aligned(duals.init(params), optax.tree.zeros_like(params))

    return ServerUpdate(init, apply)


def running_mean(mean_of_rows: Params, received: Received) -> Params:
    """m + 1/N · Σ over Sₜ of changes: the mean over all N clients' rows, where only the cohort's rows changed.

    It has the parameters' dtype. In bfloat16 a change below 1/256 of it is lost: keep parameters in float32, and
    compute in bfloat16 with `jaxfed.mixed_precision`.
    """
    change = tree.scale(1.0 / received.num_clients, tree.widened(received.message.total))
    return optax.tree.cast_like(optax.tree.add(tree.widened(mean_of_rows), change), mean_of_rows)


def scale_by_uncorrected_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """m ← β₁m + (1−β₁)g, v ← β₂v + (1−β₂)g², m/(√v + ε): Adam without bias correction (FedAdam); not in optax."""

    def init(params: Params) -> optax.ScaleByAdamState:
        zeros = optax.tree.zeros_like(params)
        return optax.ScaleByAdamState(jnp.int32(0), zeros, zeros)

    def update(
        updates: Params, state: optax.ScaleByAdamState, params: Params | None = None
    ) -> tuple[Params, optax.ScaleByAdamState]:
        first = optax.tree.update_moment(updates, state.mu, b1, 1)
        second = optax.tree.update_moment(updates, state.nu, b2, 2)
        direction = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), first, second)
        return direction, optax.ScaleByAdamState(state.count + 1, first, second)

    return optax.GradientTransformation(init, update)


def _moved(params: Params, received: Received, learning_rate: float | Scalar) -> Params:
    delta = received.message.delta
    return optax.tree.add(params, _scaled(delta, learning_rate))


def _scaled(change: Params, learning_rate: float | Scalar) -> Params:
    at_one = isinstance(learning_rate, float | int) and learning_rate == 1.0
    return change if at_one else tree.scale(learning_rate, change)
