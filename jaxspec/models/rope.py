"""Rotary positions as ``config.json`` says them."""

from dataclasses import asdict
from typing import Any

from jaxspec.config import LinearScaling, Llama3Scaling, Rotary

#: What a ``config.json`` holds, or a part of it.
Config = dict[str, Any]


def rotary_of(config: Config, kind: str = "full_attention") -> Rotary:
    """Rotary positions as newer (``rope_parameters``) or older files (``rope_theta``, ``rope_scaling``) say them.

    Raises:
        ValueError: a kind of scaling that is not known, or heads that turn in part.
    """
    newer = config.get("rope_parameters") or {}
    given = newer.get(kind, newer) or config.get("rope_scaling") or {}
    theta = float(given.get("rope_theta") or config.get("rope_theta") or 10_000.0)
    name = given.get("rope_type") or given.get("type") or "default"
    part = given.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    if part != 1.0:
        raise ValueError(f"expected rotary positions over whole heads, got partial_rotary_factor {part}")
    if name == "default":
        return Rotary(theta)
    if name == "linear":
        return Rotary(theta, LinearScaling(float(given["factor"])))
    if name == "llama3":
        factor, low, high = (float(given[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
        return Rotary(theta, Llama3Scaling(factor, low, high, int(given["original_max_position_embeddings"])))
    raise ValueError(f"expected rope scaling default, linear or llama3, got {name!r}")


def rope_json(rotary: Rotary) -> Config:
    """The newer form of rotary positions."""
    scaling, theta = rotary.scaling, {"rope_theta": rotary.theta}
    if isinstance(scaling, LinearScaling):
        return theta | {"rope_type": "linear", "factor": scaling.factor}
    if isinstance(scaling, Llama3Scaling):
        names = "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"
        return theta | {"rope_type": "llama3"} | dict(zip(names, asdict(scaling).values(), strict=True))
    return theta | {"rope_type": "default"}
