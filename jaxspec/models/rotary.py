"""Rotary positions: frequencies of a head's features, and the published ways to stretch them to longer texts."""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LinearScaling:
    """Position interpolation: every rotary frequency is divided by ``factor``."""

    factor: float

    def __call__(self, frequencies: np.ndarray, theta: float) -> np.ndarray:
        """Scale frequencies [n]."""
        return frequencies / self.factor


@dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3.1: wavelengths above original_length / low are scaled, those below original_length / high are kept.

    Between them the two are blended by b = (original_length / wavelength − low) / (high − low).
    """

    factor: float
    low: float
    high: float
    original_length: int

    def __call__(self, frequencies: np.ndarray, theta: float) -> np.ndarray:
        """Scale frequencies [n]."""
        turns = self.original_length * frequencies / (2 * math.pi)
        blend = np.clip((turns - self.low) / (self.high - self.low), 0.0, 1.0)
        return (1 - blend) * frequencies / self.factor + blend * frequencies


@dataclass(frozen=True)
class YarnScaling:
    """YaRN: frequencies of many turns over the original length are kept, those of few are divided by ``factor``.

    Between the feature that makes ``beta_fast`` turns and the one that makes ``beta_slow``, the two are blended
    linearly. Cosines and sines are multiplied by ``attention_factor``.

    Attributes:
        factor: of the length.
        original_length: L, positions of the first training.
        beta_fast: turns over L from which on a frequency is kept.
        beta_slow: turns over L up to which it is divided.
        attention_factor: factor of cosines and sines.
        truncate: whether the two features are rounded to whole ones.

    Source: Peng et al. (arXiv 2309.00071).
    """

    factor: float
    original_length: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0
    truncate: bool = True

    def __call__(self, frequencies: np.ndarray, theta: float) -> np.ndarray:
        """Scale frequencies [n]."""
        count = len(frequencies)
        first, last = (self._feature(turns, theta, count) for turns in (self.beta_fast, self.beta_slow))
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, 2 * count - 1)
        blend = np.clip((np.arange(count) - first) / max(last - first, 0.001), 0.0, 1.0)
        return blend * frequencies / self.factor + (1 - blend) * frequencies

    def _feature(self, turns: float, theta: float, count: int) -> float:
        """Return the feature whose frequency makes so many turns over the original length."""
        return count * math.log(self.original_length / (2 * math.pi * turns)) / math.log(theta)


@dataclass(frozen=True)
class LongRopeScaling:
    """Frequencies divided by factors of their own, up to ``max_length`` positions: LongRoPE's short factors.

    Attributes:
        factors: one for each frequency; empty: none is divided (dynamic NTK).
        max_length: positions beyond which other factors would hold.
        attention_factor: factor of cosines and sines.
        long_factors: those of longer texts, if they are known.
        longest: positions up to which these hold.

    Source: Ding et al. (arXiv 2402.13753).
    """

    factors: tuple[float, ...]
    max_length: int
    attention_factor: float = 1.0
    long_factors: tuple[float, ...] = ()
    longest: int | None = None

    def __call__(self, frequencies: np.ndarray, theta: float) -> np.ndarray:
        """Scale frequencies [n]."""
        return frequencies / np.asarray(self.factors) if self.factors else frequencies

    def for_long_texts(self) -> "LongRopeScaling":
        """Return the long factors, for all texts.

        Raises:
            ValueError: they are not known, or hold already.
        """
        if self.longest is None or not self.long_factors:
            raise ValueError(f"expected a model with factors for texts of more than {self.max_length} tokens, got none")
        return LongRopeScaling(self.long_factors, self.longest, self.attention_factor)


Scaling = LinearScaling | Llama3Scaling | YarnScaling | LongRopeScaling


@dataclass(frozen=True)
class Rotary:
    """Rotary positions: the halves of a head are rotated by position · θ^(−2i/head_size), optionally scaled.

    Attributes:
        theta: θ.
        scaling: of the frequencies.
        partial_factor: share of a head's features that are rotated, the first ones; they count as the head.
    """

    theta: float = 10_000.0
    scaling: Scaling | None = None
    partial_factor: float = 1.0

    def frequencies(self, head_size: int) -> np.ndarray:
        """Return the rotation angle of one position: [rotated features / 2] float32."""
        size = int(head_size * self.partial_factor)
        plain = 1.0 / (self.theta ** (np.arange(0, size, 2, dtype=np.float64) / size))
        return np.asarray(plain if self.scaling is None else self.scaling(plain, self.theta), np.float32)

    @property
    def attention_factor(self) -> float:
        """Factor of cosines and sines."""
        return getattr(self.scaling, "attention_factor", 1.0)

    @property
    def max_length(self) -> int | None:
        """Positions beyond which the frequencies would change, if any."""
        return getattr(self.scaling, "max_length", None)
