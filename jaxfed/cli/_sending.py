"""Options of messages: clipping, noise, compression, aggregate."""

import dataclasses

import jaxfed
from jaxfed.cli._options import Rounds
from jaxfed.core.checks import check_choice
from jaxfed.core.samplers import Sampler
from jaxfed.messages import compression, privacy, robust

AGGREGATES = {
    "median": robust.median,
    "trimmed_mean": lambda: robust.trimmed_mean(0.2),
    "krum": lambda: robust.krum(1, selected=3),
    "geometric_median": robust.geometric_median,
}


@dataclasses.dataclass(frozen=True)
class Sending:
    """What clients send; by default whole messages, averaged.

    Attributes:
        clip: largest norm of a message, after compression.
        noise_multiplier: z of the noise N(0, (z·clip)²) that the server adds to a round's sum; clients are then drawn
            by coin flips, and (ε, δ) is printed at the end. Noise and coins depend on the seed: keep it secret.
        bits: bits of an entry, rounded stochastically.
        top_k: fraction of the entries that is sent, the largest; the rest is added to the next message.
        aggregate: mean, median, trimmed_mean (cuts a fifth on both sides), krum (keeps three, tolerates one faulty
            client) or geometric_median.
    """

    clip: float | None = None
    noise_multiplier: float | None = None
    bits: int | None = None
    top_k: float | None = None
    aggregate: str = "mean"


def with_sending(algorithm: jaxfed.FederatedAlgorithm, sending: Sending, schedule: Rounds) -> jaxfed.FederatedAlgorithm:
    """Return the algorithm with these messages.

    Raises:
        ValueError: an unknown aggregate (nearest name suggested), noise without a clip or with another aggregate, or a
            number out of range.
    """
    check_choice("aggregate", sending.aggregate, ["mean", *AGGREGATES])
    if sending.noise_multiplier is not None and (sending.clip is None or sending.aggregate != "mean"):
        raise ValueError("expected --clip and --aggregate mean with --noise-multiplier: noise is measured by the clip")
    transforms = [] if sending.top_k is None else [compression.top_k(sending.top_k)]
    transforms += [] if sending.bits is None else [compression.quantise(sending.bits)]
    transforms += [] if sending.clip is None else [privacy.clip(sending.clip)]
    aggregate = None if sending.aggregate == "mean" else AGGREGATES[sending.aggregate]()
    if (noise := mechanism(sending, schedule)) is not None:
        aggregate = privacy.central_noise(noise)
    return jaxfed.uplink(algorithm, *transforms, aggregate=aggregate) if transforms or aggregate else algorithm


def sampler_of(sending: Sending, schedule: Rounds) -> Sampler:
    """Return the sampler of cohorts: of fixed size, or under noise by coin flips."""
    noise = mechanism(sending, schedule)
    return jaxfed.FixedSize(schedule.cohort_size) if noise is None else noise.sampler


def mechanism(sending: Sending, schedule: Rounds) -> privacy.Central | None:
    """Return the noise, at δ = 0.1/N, for a cohort drawn by coin flips; None without noise."""
    if sending.noise_multiplier is None or sending.clip is None:
        return None
    sampler, delta = jaxfed.CoinFlips(schedule.cohort_size / schedule.clients), 0.1 / schedule.clients
    return privacy.Central(sending.clip, sending.noise_multiplier, sampler, schedule.clients, delta)


def guarantee(sending: Sending, schedule: Rounds) -> privacy.Guarantee | None:
    """Return the (ε, δ) of the run; None without noise."""
    noise = mechanism(sending, schedule)
    return privacy.epsilon(noise, schedule.rounds) if noise is not None and noise.noise_multiplier else None
