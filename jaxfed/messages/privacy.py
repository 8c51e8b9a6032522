"""Differential privacy of clients: clipped messages, Gaussian noise at the server or the client, and an accountant.

`Central` and `Local` hold the values that noise and ε have in common: pass the same one to the noise, to `epsilon`
and to `noise_for`.
"""

import dataclasses
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from jaxfed.core import keys, tree
from jaxfed.core.checks import check_range, python_fields
from jaxfed.core.protocol import Aggregate, ClientMessage, Cohort, CohortResult
from jaxfed.core.samplers import CoinFlips, FixedSize, Sampler
from jaxfed.core.types import Key
from jaxfed.messages._uplink import UNWEIGHTED, Transform, raise_unclipped

INTERVAL = 1e-3
"""Steps in which privacy losses are counted: ten times the library's default, much quicker, still a bound."""

MOST_NOISE = 1e4
"""Largest z that `noise_for` tries."""


@dataclasses.dataclass(frozen=True)
class Central:
    """Noise that the server adds to the sum of a cohort's clipped messages; clients trust the server with these.

    Attributes:
        max_norm: C > 0, the clip of every message.
        noise_multiplier: z ≥ 0; the noise is N(0, (z·C)²) in every entry.
        sampler: how cohorts are drawn: `CoinFlips(P)` or `FixedSize(size)`. `simulate` takes the same, as does `serve`.
        num_clients: N.
        delta: δ in (0, 1/N].

    Raises:
        ValueError: a value out of range, or another sampler.
    """

    max_norm: float
    noise_multiplier: float
    sampler: Sampler
    num_clients: int
    delta: float

    def __post_init__(self) -> None:
        check_range("max_norm", self.max_norm, above=0.0)
        check_range("noise_multiplier", self.noise_multiplier, least=0.0)
        check_range("num_clients", self.num_clients, least=1, whole=True)
        check_range("delta", self.delta, above=0.0, most=1.0 / self.num_clients)
        if not isinstance(self.sampler, CoinFlips | FixedSize):
            raise ValueError(f"expected CoinFlips or FixedSize, got {self.sampler}, for which there is no accounting")
        if isinstance(self.sampler, CoinFlips) and self.sampler.rule != "independent":
            raise ValueError(
                f"expected independent coin flips, got {self.sampler}, which draws again if the cohort is empty; "
                'leave out rule="reference"'
            )
        self.sampler.num_slots(self.num_clients)
        python_fields(self)

    @property
    def expected_clients(self) -> float:
        """Expected number of clients in a round, n: P·N of `CoinFlips(P)`, the size of `FixedSize`."""
        if isinstance(self.sampler, FixedSize):
            return float(self.sampler.cohort_size)
        assert isinstance(self.sampler, CoinFlips)
        return float(f"{self.sampler.participation * self.num_clients:.9g}")


@dataclasses.dataclass(frozen=True)
class Local:
    """Noise that a client adds to its own clipped message, for a server that is not trusted.

    Attributes:
        max_norm: C > 0, the clip of every message.
        noise_multiplier: z > 0; the noise is N(0, (z·C)²) in every entry.
        delta: δ in (0, 1].

    Raises:
        ValueError: a value out of range.
    """

    max_norm: float
    noise_multiplier: float
    delta: float

    def __post_init__(self) -> None:
        check_range("max_norm", self.max_norm, above=0.0)
        check_range("noise_multiplier", self.noise_multiplier, above=0.0)
        check_range("delta", self.delta, above=0.0, most=1.0)
        python_fields(self)


Mechanism = TypeVar("Mechanism", Central, Local)


def clip(max_norm: float) -> Transform:
    """Clip a message: m̂ = m · min(1, C/(‖m‖₂ + 1e-6)), with one norm over all that the client sends.

    With noise it comes last, after compression, which may increase the norm. It only rescales, so the encoded size of a
    quantised or sparse message stays the same. What it cuts off is lost: the residual of a `top_k` before it holds only
    what `top_k` left out. In bfloat16 and float16 the clip is slightly below C, so that C holds after rounding.

    Args:
        max_norm: C > 0.

    Raises:
        ValueError: `max_norm` out of range.

    Source: McMahan et al., Learning Differentially Private Recurrent Language Models, ICLR 2018 (arXiv 1710.06963).
    """
    check_range("max_norm", max_norm, above=0.0)

    def apply(message: ClientMessage, state: PyTree, key: Key) -> tuple[ClientMessage, PyTree]:
        narrow = [leaf.dtype for leaf in jax.tree.leaves(message) if leaf.dtype != tree.wide(leaf.dtype)]
        rounding = max([float(jnp.finfo(dtype).eps) for dtype in narrow], default=0.0)
        clipped = tree.clip(tree.widened(message), max_norm * (1.0 - rounding))
        return optax.tree.cast_like(clipped, message), state

    def bound(before: float | None) -> float:
        return max_norm if before is None else min(before, max_norm)

    return Transform(None, apply, name=f"clip({max_norm})", max_norm=bound)


def local_noise(mechanism: Local) -> Transform:
    """Add noise on the client: m̂ = m + N(0, (z·C)²) in every entry; put the `clip` to C directly before it.

    Transforms after it, such as `jaxfed.compression.quantise`, cost no privacy. In a simulation the noise depends on
    the run's seed, in a deployment on entropy of the client.

    Args:
        mechanism: C and z. One message is (ε, δ)-private against its replacement by any other.

    Raises:
        ValueError: from `jaxfed.uplink`, unless `clip(C)` comes directly before it.
    """
    name = f"local_noise({mechanism.max_norm}, {mechanism.noise_multiplier})"

    def apply(message: ClientMessage, state: PyTree, key: Key) -> tuple[ClientMessage, PyTree]:
        return tree.noised(message, mechanism.max_norm * mechanism.noise_multiplier, key), state

    def bound(before: float | None) -> float:
        if before != mechanism.max_norm:
            raise_unclipped(name, mechanism.max_norm, before)
        return mechanism.max_norm  # of the part that depends on the client's data, not of the noise

    return Transform(None, apply, name=name, max_norm=bound, secret=True)


def central_noise(mechanism: Central) -> Aggregate:
    """Add noise on the server: S = Σ over Sₜ of mᵢ + N(0, (z·C)²); sums become S, and means S / n.

    The divisor n is a constant, so that the mean does not reveal the number of participants. In a simulation the noise
    depends on the run's seed, in a deployment noise and cohorts depend on entropy of the server.

    Args:
        mechanism: C, z and how clients are drawn; see `epsilon` for its guarantee. `clip(C)` comes last in the
            uplink.

    Noise in a running sum accumulates. Use algorithms whose server has none: FedAvg, FedProx, FedSAM, or FedSpeed and
    FedDyn with `dual_mean="cohort"`.

    Raises:
        ValueError: from `jaxfed.uplink`, where the messages' norms are not bounded by C; from `jaxfed.simulate`, for
            another sampler or population, or clients with weights.

    Source: McMahan et al., ICLR 2018 (arXiv 1710.06963), Algorithm 1, estimator f̃_f.
    """
    deviation, expected = mechanism.max_norm * mechanism.noise_multiplier, mechanism.expected_clients

    def combine(result: CohortResult, cohort: Cohort, key: Key) -> tuple[ClientMessage, Array]:
        if cohort.weights is not None or jax.tree.leaves(result.message.model_state):
            raise ValueError(UNWEIGHTED)
        noisy = tree.noised(result.message, deviation, keys.noise_key(key))
        delta, average = tree.scale(1.0 / expected, (noisy.delta, noisy.average))
        return noisy._replace(delta=delta, average=average), result.used

    name = f"central_noise({mechanism.max_norm}, {mechanism.noise_multiplier}, {expected})"
    return Aggregate(combine, name=name, noise=mechanism)


@dataclasses.dataclass(frozen=True)
class Guarantee:
    """An (ε, δ)-differential privacy guarantee.

    Attributes:
        epsilon: ε.
        delta: δ.
        neighbours: the relation of the two populations that are hard to distinguish.
        sampling: how clients were drawn.
    """

    epsilon: float
    delta: float
    neighbours: str
    sampling: str

    def __str__(self) -> str:
        return f"({self.epsilon:.3g}, {self.delta:.0e})-DP, {self.neighbours}, {self.sampling}"


def epsilon(mechanism: Central | Local, rounds: int) -> Guarantee:
    """Compute the (ε, δ) guarantee of `clip` and noise for each client, against observers who do not know the noise.

    Of `Central`, against an observer of the server's models:

    - `CoinFlips(P)`: Poisson sampling, one client added or removed, by privacy loss distributions. An empty
      round has noise like any other.
    - `FixedSize`: sampling without replacement, one client replaced by another (twice the sensitivity), by Rényi
      divergences.

    Of `Local`, against the server itself: of a client that participated in `rounds` rounds; a message may be replaced
    by any other, so its sensitivity is 2C.

    Args:
        mechanism: what adds the noise.
        rounds: T. A round that is repeated after a stop, with new noise, counts again.

    Raises:
        ImportError: dp-accounting, the extra "privacy", is not installed.
        ValueError: an argument out of range.
    """
    check_range("noise_multiplier", mechanism.noise_multiplier, above=0.0)
    check_range("rounds", rounds, least=0, whole=True)
    accounting = _accounting()
    relation, z = accounting.NeighboringRelation, mechanism.noise_multiplier
    if isinstance(mechanism, Local):
        each = accounting.GaussianDpEvent(z / 2.0)
        accountant = accounting.pld.PLDAccountant(relation.REPLACE_ONE, INTERVAL)
        labels = "any message replaced by any other", f"{rounds} messages, each seen"
    elif isinstance(mechanism.sampler, CoinFlips):
        participation = mechanism.sampler.participation
        each = accounting.PoissonSampledDpEvent(participation, accounting.GaussianDpEvent(z))
        accountant = accounting.pld.PLDAccountant(relation.ADD_OR_REMOVE_ONE, INTERVAL)
        labels = "one client added or removed", f"Poisson sampling with probability {participation:g}"
    else:
        size, number = int(mechanism.expected_clients), mechanism.num_clients
        each = accounting.SampledWithoutReplacementDpEvent(number, size, accounting.GaussianDpEvent(z / 2.0))
        accountant = accounting.rdp.RdpAccountant(neighboring_relation=relation.REPLACE_ONE)
        labels = "one client replaced", f"{size} of {number} without replacement"
    spent = accountant.compose(each, rounds).get_epsilon(mechanism.delta) if rounds else 0.0
    return Guarantee(float(spent), mechanism.delta, *labels)


def noise_for(target_epsilon: float, mechanism: Mechanism, rounds: int, tolerance: float = 1e-2) -> Mechanism:
    """Return the same mechanism with the smallest z, to `tolerance`, by which `epsilon` is at most `target_epsilon`.

    Args:
        target_epsilon: ε > 0.
        mechanism: all but z, which is ignored.
        rounds: T.
        tolerance: of z, > 0; no z below 0.05 is tried.

    Raises:
        ImportError: see `epsilon`.
        ValueError: an argument out of range, or an ε that no noise reaches by this accountant.
    """
    check_range("target_epsilon", target_epsilon, above=0.0)
    check_range("tolerance", tolerance, above=0.0)

    def enough(noise_multiplier: float) -> bool:
        noisy = dataclasses.replace(mechanism, noise_multiplier=noise_multiplier)
        return epsilon(noisy, rounds).epsilon <= target_epsilon

    high = 1.0
    while not enough(high):
        high *= 2.0
        if high > MOST_NOISE:
            raise ValueError(
                f"expected a target_epsilon that noise reaches, got {target_epsilon}: a noise_multiplier of "
                f"{MOST_NOISE:g} is not enough; allow more, or play fewer rounds"
            )
    low = high / 2.0 if high > 1.0 else 0.05
    while high - low > tolerance and low < (middle := (low + high) / 2.0) < high:
        low, high = (low, middle) if enough(middle) else (middle, high)
    return dataclasses.replace(mechanism, noise_multiplier=high)


def _accounting() -> Any:
    try:
        import dp_accounting
    except ImportError as missing:
        raise ImportError('expected dp-accounting; pip install "jaxfed-jaxspec[privacy]"') from missing
    return dp_accounting
