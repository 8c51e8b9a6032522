"""The methods by which a draft learns from clients' text: rows of a table, all with the same hyperparameters."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import jaxfed
from jaxfed.messages.compression import quantise, top_k
from jaxfed.messages.privacy import Central, Guarantee, central_noise, clip, epsilon
from jaxspec.training import LossFn


@dataclass(frozen=True)
class FedSpeedSettings:
    """What FedSpeed has beyond FedAvg: w = 1/λ, ρ, α, and over whom it averages duals; FedDyn has the same w."""

    prox_weight: float = 0.1
    ascent_radius: float = 0.01
    merge_weight: float = 0.5
    dual_mean: Literal["cohort", "population"] = "population"


@dataclass(frozen=True)
class Federation:
    """How a draft is federated.

    Attributes:
        rounds: communication rounds T.
        cohort_size: clients a round.
        local_steps: K.
        batch_size: sequences a local step.
        learning_rates: grid, the same for every method.
        fedspeed: what FedSpeed has beyond FedAvg.
        clip_norm: largest gradient norm of a local step, for every method.
        learning_rate_decay: factor of the learning rate from round to round, for every method.
        evaluate_every: rounds between two evaluations on validation roles.
        seed: of cohorts and batches.
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
    """Every whole number of a dataclass but its seed counts something.

    Raises:
        ValueError: one is below 1.
    """
    for name, value in vars(settings).items():
        if isinstance(value, int) and name != "seed" and value < 1:
            raise ValueError(f"expected {name} >= 1, got {value}")


#: (loss_fn, settings, learning_rate) → algorithm.
Build = Callable[[LossFn, Federation, float], jaxfed.FederatedAlgorithm]


@dataclass(frozen=True)
class Method:
    """How a draft is trained.

    Attributes:
        name: of its row.
        build: (loss_fn, settings, learning_rate) → algorithm.
        training: "federated"; "pooled": one client holds all text, as many samples, the best step by validation counts;
            "alone": every client trains a draft of its own, on the batches that it would have had in a federation.
        noise_multiplier: z, of a private one, whose cohorts are drawn by coin flips.
        max_norm: C, of a private one: the clip of its messages.
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
                "noise is measured by the clip"
            )

    def algorithm(
        self, loss_fn: LossFn, settings: Federation, rate: float, num_clients: int
    ) -> jaxfed.FederatedAlgorithm:
        """What `build` makes, under the noise of a private one."""
        built, noise = self.build(loss_fn, settings, rate), self.mechanism(settings, num_clients)
        return built if noise is None else jaxfed.uplink(built, clip(noise.max_norm), aggregate=central_noise(noise))

    def sampler(self, settings: Federation, num_clients: int) -> Any:
        """Who takes part in a round: ``cohort_size`` clients, in the mean if every client flips a coin."""
        if self.noise_multiplier is None:
            return jaxfed.FixedSize(settings.cohort_size)
        return jaxfed.CoinFlips(settings.cohort_size / num_clients)

    def mechanism(self, settings: Federation, num_clients: int, delta: float | None = None) -> Central | None:
        """The noise of a private one, δ = 1/(2N) by default; None of a method without noise."""
        if self.noise_multiplier is None or self.max_norm is None:
            return None
        sampler = self.sampler(settings, num_clients)
        return Central(self.max_norm, self.noise_multiplier, sampler, num_clients, delta or 0.5 / num_clients)

    def guarantee(self, settings: Federation, num_clients: int, delta: float | None = None) -> Guarantee | None:
        """(ε, δ) of a client after all rounds, δ = 1/(2N) by default; None of a method without noise.

        Raises:
            ImportError: dp-accounting, the extra "privacy", is not installed.
        """
        noise = self.mechanism(settings, num_clients, delta)
        return None if noise is None else epsilon(noise, settings.rounds)


def fedspeed(loss_fn: LossFn, settings: Federation, rate: float, **options: Any) -> jaxfed.FederatedAlgorithm:
    """``jaxfed.fedspeed`` with these settings."""
    return jaxfed.fedspeed(loss_fn, **common(settings, rate), **asdict(settings.fedspeed) | options)


def plain(
    factory: Callable[..., jaxfed.FederatedAlgorithm], loss_fn: LossFn, settings: Federation, rate: float
) -> jaxfed.FederatedAlgorithm:
    """A factory of ``jaxfed`` with nothing but what all methods have."""
    return factory(loss_fn, **common(settings, rate))


def feddyn(loss_fn: LossFn, settings: Federation, rate: float) -> jaxfed.FederatedAlgorithm:
    """``jaxfed.feddyn`` with FedSpeed's proximal weight."""
    return jaxfed.feddyn(loss_fn, **common(settings, rate), prox_weight=settings.fedspeed.prox_weight)


def common(settings: Federation, rate: float) -> dict[str, Any]:
    """What every method has: learning rate, its decay and the clip."""
    names = ("clip_norm", "learning_rate_decay")
    return {"client_learning_rate": rate, **{name: getattr(settings, name) for name in names}}


def private(name: str, max_norm: float, noise_multiplier: float) -> Method:
    """FedSpeed with differential privacy of clients: messages clipped to C, noise N(0, (z·C)²) on their sum.

    Its duals are averaged over the cohort, since noise in a population's running sum would never leave it; every client
    takes part by a coin flip of its own (Poisson sampling).

    Args:
        name: of the row.
        max_norm: C.
        noise_multiplier: z; ``Method.guarantee`` says what it buys.
    """
    build = partial(fedspeed, dual_mean="cohort")
    return Method(name, build, noise_multiplier=noise_multiplier, max_norm=max_norm)


def transformed(name: str, *transforms: Any) -> Method:
    """FedSpeed whose messages go through ``jaxfed.uplink`` transforms."""

    def build(loss_fn: LossFn, settings: Federation, rate: float) -> jaxfed.FederatedAlgorithm:
        return jaxfed.uplink(fedspeed(loss_fn, settings, rate), *transforms)

    return Method(name, build)


_ROWS = (
    Method("fedspeed", fedspeed),
    Method("fedavg", partial(plain, jaxfed.fedavg)),
    Method("scaffold", partial(plain, jaxfed.scaffold)),
    Method("feddyn", feddyn),
    Method("local-only", partial(plain, jaxfed.fedavg), "alone"),
    Method("centralised", partial(plain, jaxfed.fedavg), "pooled"),
    private("fedspeed-dp", max_norm=0.5, noise_multiplier=1.0),
    transformed("fedspeed-int8", quantise(8)),
    transformed("fedspeed-topk", top_k(0.1)),
)
#: By name.
METHODS: dict[str, Method] = {method.name: method for method in _ROWS}


def method_of(method: str | Method) -> Method:
    """The method of that name, or the one given.

    Raises:
        ValueError: there is no such name.
    """
    if isinstance(method, Method):
        return method
    if method not in METHODS:
        raise ValueError(f"expected a method, one of {', '.join(METHODS)}, got {method!r}")
    return METHODS[method]
