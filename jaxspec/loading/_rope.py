"""Rotary positions in ``config.json``."""

from dataclasses import asdict
from typing import Any

from jaxspec.models.config import LinearScaling, Llama3Scaling, Rotary

#: Contents of a ``config.json``, or a part of it.
Config = dict[str, Any]
#: θ of a file that names none.
DEFAULT_THETA = 10_000.0


def rotary_of(config: Config) -> Rotary:
    """Read rotary positions of newer (``rope_parameters``) or older files (``rope_theta``, ``rope_scaling``).

    In a file with both, ``rope_scaling`` replaces ``rope_parameters``, as in transformers.

    Raises:
        ValueError: an unknown kind of scaling, partial rotary heads, different positions for each type of layer, or a
            ``rope_theta`` that the replacement would drop.
    """
    newer, older = config.get("rope_parameters") or {}, config.get("rope_scaling") or {}
    if nested := sorted(kind for kind, inner in newer.items() if isinstance(inner, dict)):
        raise ValueError(f"expected rope_parameters that are the same for all layers, got {', '.join(nested)}")
    theta = float(older.get("rope_theta") or config.get("rope_theta") or DEFAULT_THETA)
    if older and newer.get("rope_theta", theta) != theta and "rope_theta" not in older:
        raise ValueError(
            f"expected rope_parameters and rope_scaling of one rope_theta, got {newer['rope_theta']} and, next to "
            f"rope_scaling, {theta}; remove one of the two from config.json"
        )
    return _rotary(older or newer, theta, config)


def rotary_by_layer(config: Config, kind: str, theta: float) -> Rotary:
    """Read rotary positions of one type of layers; ``rope_scaling`` applies to full attention, as in transformers.

    Args:
        config: ``config.json``; its ``rope_parameters``, if there are any, by type of layer.
        kind: "full_attention" or "sliding_attention".
        theta: used if ``rope_parameters`` has none.

    Raises:
        ValueError: as ``rotary_of``, or ``rope_parameters`` that are not by type of layer.
    """
    newer, older = config.get("rope_parameters") or {}, config.get("rope_scaling") or {}
    if flat := sorted(name for name, inner in newer.items() if not (inner is None or isinstance(inner, dict))):
        raise ValueError(f"expected rope_parameters by type of layer (full_attention, …), got {', '.join(flat)}")
    rope = (newer.get(kind) or {}) | (older if kind == "full_attention" else {})
    return _rotary(rope, theta, config)


def _rotary(rope: Config, theta: float, config: Config) -> Rotary:
    theta = float(rope.get("rope_theta") or theta)
    name = rope.get("rope_type") or rope.get("type") or "default"
    part = rope.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    if part != 1.0:
        raise ValueError(f"expected rotary positions over whole heads, got partial_rotary_factor {part}")
    if name == "default":
        return Rotary(theta)
    if name == "linear":
        return Rotary(theta, LinearScaling(float(rope["factor"])))
    if name == "llama3":
        factor, low, high = (float(rope[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
        length = rope.get("original_max_position_embeddings") or config["max_position_embeddings"]
        return Rotary(theta, Llama3Scaling(factor, low, high, int(length)))
    raise ValueError(f"expected rope scaling default, linear or llama3, got {name!r}")


def rope_json(rotary: Rotary) -> Config:
    """Return ``rope_parameters`` of rotary positions."""
    scaling, theta = rotary.scaling, {"rope_theta": rotary.theta}
    if isinstance(scaling, LinearScaling):
        return theta | {"rope_type": "linear", "factor": scaling.factor}
    if isinstance(scaling, Llama3Scaling):
        names = "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"
        return theta | {"rope_type": "llama3"} | dict(zip(names, asdict(scaling).values(), strict=True))
    return theta | {"rope_type": "default"}
