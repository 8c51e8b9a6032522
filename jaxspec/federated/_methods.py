"""The methods by which a draft is trained on the clients' text: one row each, all with the same hyperparameters."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import jaxfed
from jaxfed.core.stateful import AnyLossFn
from jaxfed.messages.compression import quantise, top_k
from jaxfed.messages.privacy import Central, Guarantee, central_noise, clip, epsilon


@dataclass(frozen=True)
class FedSpeedSettings:
    """Hyperparameters of FedSpeed that FedAvg does not have; FedDyn uses the same ``prox_weight``.

    Attributes:
        prox_weight: w = 1/λ.
        ascent_radius: ρ.
        merge_weight: α.
        dual_mean: clients over whose duals the server takes the mean.
    """

    prox_weight: float = 0.1
    ascent_radius: float = 0.01
    merge_weight: float = 0.5
    dual_mean: Literal["cohort", "population"] = "population"


@dataclass(frozen=True)
class Federation:
    """Hyperparameters of the federated training; all methods share them.

    Attributes:
        rounds: communication rounds T.
        cohort_size: clients per round.
        local_steps: optimiser steps K of a client per round.
        batch_size: sequences per local step.
        learning_rates: grid of client learning rates.
        fedspeed: hyperparameters of FedSpeed alone.
        clip_norm: largest gradient norm of a local step.
        learning_rate_decay: factor of the learning rate per round.
        evaluate_every: rounds between two evaluations on the validation clients.
        seed: seed of cohorts and batches.
    """

    rounds: int = 10
    cohort_size: int = 8
    local_steps: int = 4
    batch_size: int = 4
    learning_rates: tuple[float, ...] = (0.5, 1.0)
    fedspeed: FedSpeedSettings = FedSpeedSettings()
    clip_norm: float = 1.0
    learning_rate_decay: float = 1.0
    evaluate_every: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        check_counts(self)
        if not self.learning_rates or not all(0 < rate < float("inf") for rate in self.learning_rates):
            raise ValueError(f"expected learning_rates > 0, at least one, got {self.learning_rates}")


def check_counts(settings: Any) -> None:
    """Check that every integer field of a dataclass, except its seed, is at least 1.

    Raises:
        ValueError: a field is below 1.
    """
    for name, value in vars(settings).items():
        if isinstance(value, int) and name != "seed" and value < 1:
            raise ValueError(f"expected {name} >= 1, got {value}")


#: (loss_fn, settings, learning_rate) → algorithm.
Build = Callable[[AnyLossFn, Federation, float], jaxfed.FederatedAlgorithm]


@dataclass(frozen=True)
class FederatedMethod:
    """A way to train a draft.

    Attributes:
        name: key in ``METHODS``.
        build: (loss_fn, settings, learning_rate) → algorithm.
        training: "federated"; "pooled": one client holds all text, with as many samples in total, and the best
            evaluated parameters are kept; "alone": every client trains its own draft, on the batches that it would have
            in a federation.
        noise_multiplier: z, for differential privacy; cohorts are then drawn by Poisson sampling.
        max_norm: C, for differential privacy: the clipping norm of messages.
    """

    name: str
    build: Build
    training: Literal["federated", "pooled", "alone"] = "federated"
    noise_multiplier: float | None = None
    max_norm: float | None = None

    def __post_init__(self) -> None:
        if (self.noise_multiplier is None) != (self.max_norm is None):
            raise ValueError(
                f"expected noise_multiplier and max_norm or neither, got {self.noise_multiplier} and {self.max_norm}; "
                "the standard deviation of the noise is their product"
            )

    def algorithm(
        self, loss_fn: AnyLossFn, settings: Federation, rate: float, num_clients: int
    ) -> jaxfed.FederatedAlgorithm:
        """Build the algorithm; a private method also clips messages and adds noise to their sum."""
        built, noise = self.build(loss_fn, settings, rate), self.mechanism(settings, num_clients)
        return built if noise is None else jaxfed.uplink(built, clip(noise.max_norm), aggregate=central_noise(noise))

    def sampler(self, settings: Federation, num_clients: int) -> Any:
        """Return the cohort sampler: a fixed ``cohort_size``, or the same in the mean for a private method."""
        if self.noise_multiplier is None:
            return jaxfed.FixedSize(settings.cohort_size)
        return jaxfed.CoinFlips(settings.cohort_size / num_clients)

    def mechanism(self, settings: Federation, num_clients: int, delta: float | None = None) -> Central | None:
        """Return the noise of a private method, δ = 1/(2N) by default; None for a method without noise."""
        if self.noise_multiplier is None or self.max_norm is None:
            return None
        sampler = self.sampler(settings, num_clients)
        return Central(self.max_norm, self.noise_multiplier, sampler, num_clients, delta or 0.5 / num_clients)

    def guarantee(self, settings: Federation, num_clients: int, delta: float | None = None) -> Guarantee | None:
        """Return (ε, δ) of a client after all rounds, δ = 1/(2N) by default; None for a method without noise.

        Raises:
            ImportError: dp-accounting, the extra "privacy", is not installed.
        """
        noise = self.mechanism(settings, num_clients, delta)
        return None if noise is None else epsilon(noise, settings.rounds)


def _common(settings: Federation, rate: float) -> dict[str, Any]:
    decay = settings.learning_rate_decay
    return {"client_learning_rate": rate, "clip_norm": settings.clip_norm, "learning_rate_decay": decay}


def _fedspeed(loss_fn: AnyLossFn, settings: Federation, rate: float, **options: Any) -> jaxfed.FederatedAlgorithm:
    return jaxfed.fedspeed(loss_fn, **_common(settings, rate), **asdict(settings.fedspeed) | options)


def _feddyn(loss_fn: AnyLossFn, settings: Federation, rate: float) -> jaxfed.FederatedAlgorithm:
    return jaxfed.feddyn(loss_fn, **_common(settings, rate), prox_weight=settings.fedspeed.prox_weight)


def _plain(
    factory: Callable[..., jaxfed.FederatedAlgorithm], loss_fn: AnyLossFn, settings: Federation, rate: float
) -> jaxfed.FederatedAlgorithm:
    return factory(loss_fn, **_common(settings, rate))


def private(name: str, max_norm: float, noise_multiplier: float) -> FederatedMethod:
    """Make FedSpeed with client-level differential privacy: messages clipped to C, noise N(0, (z·C)²) on their sum.

    Duals are averaged over the cohort, because noise in a running sum over the population would never leave it. Clients
    are drawn independently (Poisson sampling).

    Args:
        name: of the method.
        max_norm: C.
        noise_multiplier: z; ``FederatedMethod.guarantee`` gives the resulting ε.
    """
    build = partial(_fedspeed, dual_mean="cohort")
    return FederatedMethod(name, build, noise_multiplier=noise_multiplier, max_norm=max_norm)


def transformed(name: str, *transforms: Any) -> FederatedMethod:
    """Make FedSpeed whose messages go through ``jaxfed.uplink`` transforms."""

    def build(loss_fn: AnyLossFn, settings: Federation, rate: float) -> jaxfed.FederatedAlgorithm:
        return jaxfed.uplink(_fedspeed(loss_fn, settings, rate), *transforms)

    return FederatedMethod(name, build)


_ROWS = (
    FederatedMethod("fedspeed", _fedspeed),
    FederatedMethod("fedavg", partial(_plain, jaxfed.fedavg)),
    FederatedMethod("scaffold", partial(_plain, jaxfed.scaffold)),
    FederatedMethod("feddyn", _feddyn),
    FederatedMethod("local-only", partial(_plain, jaxfed.fedavg), "alone"),
    FederatedMethod("centralised", partial(_plain, jaxfed.fedavg), "pooled"),
    private("fedspeed-dp", max_norm=0.5, noise_multiplier=1.0),
    transformed("fedspeed-int8", quantise(8)),
    transformed("fedspeed-topk", top_k(0.1)),
)
METHODS: dict[str, FederatedMethod] = {method.name: method for method in _ROWS}
"""The methods by name."""


def method_of(method: str | FederatedMethod) -> FederatedMethod:
    """Return the method with this name; a method object is returned as it is.

    Raises:
        ValueError: the name is unknown.
    """
    if isinstance(method, FederatedMethod):
        return method
    if method not in METHODS:
        raise ValueError(f"expected a method, one of {', '.join(METHODS)}, got {method!r}")
    return METHODS[method]


def one_draft(method: str | FederatedMethod) -> FederatedMethod:
    """Return the method as ``method_of`` does.

    Raises:
        ValueError: the name is unknown, or the method makes a draft for every client.
    """
    method = method_of(method)
    if method.training == "alone":
        raise ValueError(
            f"expected a method that makes one draft, got {method.name!r}, which makes one for every client; "
            "evaluate it with jaxspec.federated.run"
        )
    return method
