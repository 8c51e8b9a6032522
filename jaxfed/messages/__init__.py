"""Messages of clients: clipping, noise, compression, and robust aggregation."""

from jaxfed.messages import compression, privacy, robust
from jaxfed.messages._uplink import Coding, Transform, chain, check_cohorts, error_feedback, uplink

__all__ = [
    "Coding",
    "Transform",
    "chain",
    "check_cohorts",
    "compression",
    "error_feedback",
    "privacy",
    "robust",
    "uplink",
]
