"""Messages of clients: clipping, noise, compression, robust aggregation, and attacks to test it with."""

from jaxfed.messages import attacks, compression, privacy, robust
from jaxfed.messages._adaptive import adaptive_clip
from jaxfed.messages._uplink import Coding, Transform, chain, check_cohorts, error_feedback, uplink

__all__ = [
    "Coding",
    "Transform",
    "adaptive_clip",
    "attacks",
    "chain",
    "check_cohorts",
    "compression",
    "error_feedback",
    "privacy",
    "robust",
    "uplink",
]
