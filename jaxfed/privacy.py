"""Differential privacy of clients: clipped messages, Gaussian noise at the server or the client, and an accountant."""

import dataclasses
from typing import Any

import jax
from jaxtyping import Array, PyTree

from jaxfed import tree
from jaxfed.algorithm import Aggregate, Cohort, CohortResult, Message
from jaxfed.checks import check_range
from jaxfed.samplers import CoinFlips, FixedSize, Sampler
from jaxfed.types import Key
from jaxfed.uplink import STREAM, Transform

INTERVAL = 1e-3
"""Steps in which privacy losses are counted: ten times the library's default, much quicker, still a bound."""


def clip(max_norm: float) -> Transform:
    """m̂ = m · min(1, C/(‖m‖₂ + 1e-6)), the norm over all that the client sends together.

    Args:
      max_norm: C > 0.

    Raises:
      ValueError: `max_norm` out of range.

    Source: McMahan et al., Learning Differentially Private Recurrent Language Models, ICLR 2018 (arXiv 1710.06963).
    """
    check_range("max_norm", max_norm, above=0.0)

    def apply(message: Message, state: PyTree, key: Key) -> tuple[Message, PyTree]:
        del key
        return tree.clip(message, max_norm), state

    return Transform(lambda message: (), apply, name=f"clip({max_norm})")


def local_noise(max_norm: float, noise_multiplier: float) -> Transform:
    """m̂ = m + N(0, (z·C)²) in every entry, drawn by the client: a server that nobody trusts sees no more than this.

    Args:
      max_norm: C, that of the `clip` before it.
      noise_multiplier: z > 0. One message is (ε, δ)-private against its replacement by any other: `local_epsilon`.

    Raises:
      ValueError: an argument out of range.
    """
    check_range("max_norm", max_norm, above=0.0)
    check_range("noise_multiplier", noise_multiplier, above=0.0)

    def apply(message: Message, state: PyTree, key: Key) -> tuple[Message, PyTree]:
        return tree.total(message, tree.normal_like(message, max_norm * noise_multiplier, key)), state

    return Transform(lambda message: (), apply, name=f"local_noise({max_norm}, {noise_multiplier})")


def central_noise(max_norm: float, noise_multiplier: float, expected_clients: float) -> Aggregate:
    """(Σ over Sₜ of mᵢ + N(0, (z·C)²)) / n for what is averaged, and Σ over Sₜ of mᵢ + N(0, (z·C)²) for sums.

    The divisor n is a constant, so that the mean does not tell how many took part.

    Args:
      max_norm: C, that of the `clip` in the same uplink: without one nothing bounds a message.
      noise_multiplier: z ≥ 0; `epsilon` says what it buys.
      expected_clients: n, clients that are expected in a round: P·N of `CoinFlips(P)`, the size of `FixedSize`.

    Noise in a population's running sum never leaves it. Take algorithms whose servers keep none: FedAvg, FedProx,
    FedSAM, or FedSpeed and FedDyn with `dual_mean="cohort"`.

    Raises:
      ValueError: an argument out of range; at the first round, clients with weights or that send model state.

    Source: McMahan et al., ICLR 2018 (arXiv 1710.06963), Algorithm 1, estimator f̃_f.
    """
    check_range("max_norm", max_norm, above=0.0)
    check_range("noise_multiplier", noise_multiplier, least=0.0)
    check_range("expected_clients", expected_clients, above=0.0)

    def combine(result: CohortResult, cohort: Cohort, key: Key) -> tuple[Message, Array]:
        if cohort.weights is not None or jax.tree.leaves(result.message.model_state):
            raise ValueError(
                "expected clients that count alike and send no model state, or one of them could count for more than "
                'the noise covers; leave client_weights "uniform" and model state local or frozen'
            )
        noise = tree.normal_like(result.message, max_norm * noise_multiplier, jax.random.fold_in(key, STREAM))
        noisy = tree.total(result.message, noise)
        delta, average = tree.scale(1.0 / expected_clients, (noisy.delta, noisy.average))
        return noisy._replace(delta=delta, average=average), result.used

    told = f"central_noise({max_norm}, {noise_multiplier}, {expected_clients})"
    return Aggregate(combine, name=told, always=True)


@dataclasses.dataclass(frozen=True)
class Guarantee:
    """(ε, δ)-differential privacy, of whom, and under which sampling.

    Attributes:
      epsilon: ε.
      delta: δ.
      neighbours: which two populations are told apart no better than this.
      sampling: how clients were drawn.
    """

    epsilon: float
    delta: float
    neighbours: str
    sampling: str

    def __str__(self) -> str:
        return f"({self.epsilon:.3g}, {self.delta:.0e})-DP, {self.neighbours}, {self.sampling}"


def epsilon(noise_multiplier: float, sampler: Sampler, num_clients: int, rounds: int, delta: float) -> Guarantee:
    """What `clip` and `central_noise` guarantee of every client after so many rounds.

    Args:
      noise_multiplier: z of `central_noise`.
      sampler: `CoinFlips(P)`: Poisson sampling, one client added or removed, by privacy loss distributions; a round
        without anybody is sent with its noise like any other. Its rule "reference" is no such sampling and refused.
        `FixedSize(C)`: sampling without replacement, one client replaced by another (twice the sensitivity), by Rényi
        divergences.
      num_clients: N.
      rounds: T.
      delta: δ, below 1/N.

    Raises:
      ImportError: dp-accounting, the extra "privacy", is not installed.
      ValueError: an argument out of range, or another sampler.
    """
    check_range("noise_multiplier", noise_multiplier, above=0.0)
    check_range("rounds", rounds, least=0)
    check_range("delta", delta, above=0.0, most=1.0 / num_clients)
    accounting = _accounting()
    relation = accounting.NeighboringRelation
    if isinstance(sampler, CoinFlips) and sampler.rule == "independent":
        each = accounting.PoissonSampledDpEvent(sampler.participation, accounting.GaussianDpEvent(noise_multiplier))
        accountant = accounting.pld.PLDAccountant(relation.ADD_OR_REMOVE_ONE, INTERVAL)
        words = "one client added or removed", f"Poisson sampling with probability {sampler.participation:g}"
    elif isinstance(sampler, FixedSize):
        sampler.num_slots(num_clients)
        gaussian = accounting.GaussianDpEvent(noise_multiplier / 2.0)
        each = accounting.SampledWithoutReplacementDpEvent(num_clients, sampler.cohort_size, gaussian)
        accountant = accounting.rdp.RdpAccountant(neighboring_relation=relation.REPLACE_ONE)
        words = "one client replaced", f"{sampler.cohort_size} of {num_clients} without replacement"
    else:
        raise ValueError(f"expected CoinFlips or FixedSize, got {sampler}, whose sampling is not understood here")
    spent = accountant.compose(each, rounds).get_epsilon(delta) if rounds else 0.0
    return Guarantee(float(spent), delta, *words)


def noise_for(
    target_epsilon: float, sampler: Sampler, num_clients: int, rounds: int, delta: float, tolerance: float = 1e-2
) -> float:
    """The smallest z, to `tolerance`, with `epsilon(z, ...)` at most `target_epsilon`; arguments as there.

    Raises:
      ImportError: see `epsilon`.
      ValueError: see `epsilon`.
    """
    check_range("target_epsilon", target_epsilon, above=0.0)

    def spent(noise_multiplier: float) -> float:
        return epsilon(noise_multiplier, sampler, num_clients, rounds, delta).epsilon

    high = 1.0
    while spent(high) > target_epsilon:
        high *= 2.0
    low = high / 2.0 if high > 1.0 else 0.05
    while high - low > tolerance:
        middle = (low + high) / 2.0
        low, high = (low, middle) if spent(middle) <= target_epsilon else (middle, high)
    return high


def local_epsilon(noise_multiplier: float, rounds: int, delta: float) -> Guarantee:
    """What `clip` and `local_noise` guarantee of a client that took part in so many rounds, against the server itself.

    A message may be replaced by any other, so its sensitivity is 2C.

    Raises:
      ImportError: dp-accounting, the extra "privacy", is not installed.
      ValueError: an argument out of range.
    """
    check_range("noise_multiplier", noise_multiplier, above=0.0)
    check_range("rounds", rounds, least=1)
    check_range("delta", delta, above=0.0, most=1.0)
    accounting = _accounting()
    accountant = accounting.pld.PLDAccountant(accounting.NeighboringRelation.REPLACE_ONE, INTERVAL)
    spent = accountant.compose(accounting.GaussianDpEvent(noise_multiplier / 2.0), rounds).get_epsilon(delta)
    return Guarantee(float(spent), delta, "any message replaced by any other", f"{rounds} messages, each seen")


def _accounting() -> Any:
    try:
        import dp_accounting
    except ImportError as missing:
        raise ImportError('expected dp-accounting; pip install "jaxfed-jaxspec[privacy]"') from missing
    return dp_accounting
