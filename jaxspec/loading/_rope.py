"""Rotary positions in ``config.json``."""

import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from jaxspec.models.rotary import LinearScaling, Llama3Scaling, LongRopeScaling, Rotary, Scaling, YarnScaling

#: Contents of a ``config.json``, or a part of it.
Config = dict[str, Any]
#: θ of a file that names none.
DEFAULT_THETA = 10_000.0


def rotary_of(config: Config, shared: bool = False) -> Rotary:
    """Read rotary positions of newer (``rope_parameters``) or older files (``rope_theta``, ``rope_scaling``).

    In a file with both, ``rope_scaling`` replaces ``rope_parameters``, as in transformers.

    Args:
        config: ``config.json``.
        shared: whether the family may rotate a part of a head only.

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
    return _rotary(older or newer, theta, config, shared)


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


def _rotary(rope: Config, theta: float, config: Config, shared: bool = False) -> Rotary:
    theta = float(rope.get("rope_theta") or theta)
    name = rope.get("rope_type") or rope.get("type") or "default"
    part = float(rope.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0)
    if part != 1.0 and not shared:
        raise ValueError(f"expected rotary positions over whole heads, got partial_rotary_factor {part}")
    if name not in SCALINGS:
        raise ValueError(f"expected rope scaling of {', '.join(SCALINGS)}, got {name!r}")
    return Rotary(theta, SCALINGS[name](rope, config), part)


def _linear(rope: Config, config: Config) -> Scaling:
    return LinearScaling(float(rope["factor"]))


def _llama3(rope: Config, config: Config) -> Scaling:
    factor, low, high = (float(rope[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    return Llama3Scaling(factor, low, high, _original(rope, config))


def _yarn(rope: Config, config: Config) -> Scaling:
    length, attention = _original(rope, config), rope.get("attention_factor")
    factor = float(rope.get("factor") or config["max_position_embeddings"] / length)
    if attention is None:
        scale = lambda weight: 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0  # noqa: E731
        both = rope.get("mscale"), rope.get("mscale_all_dim")
        attention = scale(both[0]) / scale(both[1]) if all(both) else scale(1.0)
    turns = float(rope.get("beta_fast") or 32), float(rope.get("beta_slow") or 1)
    return YarnScaling(factor, length, *turns, float(attention), bool(rope.get("truncate", True)))


def _long(rope: Config, config: Config) -> Scaling:
    length, attention = _original(rope, config), rope.get("attention_factor")
    factor = float(rope.get("factor") or config["max_position_embeddings"] / length)
    if attention is None:
        attention = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(length))
    short, long = (tuple(float(each) for each in rope.get(name) or ()) for name in ("short_factor", "long_factor"))
    longest = int(config.get("max_position_embeddings") or round(length * factor))
    rest = (long, longest) if long and longest > length else ()
    return LongRopeScaling(short, length, float(attention), *rest)


def _dynamic(rope: Config, config: Config) -> Scaling:
    return LongRopeScaling((), _original(rope, config))


def _original(rope: Config, config: Config) -> int:
    """Return the positions of the first training."""
    named = rope.get("original_max_position_embeddings") or config.get("original_max_position_embeddings")
    return int(named or config["max_position_embeddings"])


#: What scales rotary frequencies, by its name. Of LongRoPE and dynamic NTK, those of texts up to the original length.
SCALINGS: dict[str, Callable[[Config, Config], Scaling | None]] = {
    "default": lambda rope, config: None,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _long,
    "dynamic": _dynamic,
}


def rope_json(rotary: Rotary) -> Config:
    """Return ``rope_parameters`` of rotary positions."""
    scaling, theta = rotary.scaling, {"rope_theta": rotary.theta}
    theta |= {} if rotary.partial_factor == 1 else {"partial_rotary_factor": rotary.partial_factor}
    if isinstance(scaling, LinearScaling):
        return theta | {"rope_type": "linear", "factor": scaling.factor}
    if isinstance(scaling, Llama3Scaling):
        names = "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"
        return theta | {"rope_type": "llama3"} | dict(zip(names, asdict(scaling).values(), strict=True))
    if isinstance(scaling, YarnScaling):
        named = "factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor", "truncate"
        return theta | {"rope_type": "yarn"} | dict(zip(named, asdict(scaling).values(), strict=True))
    if isinstance(scaling, LongRopeScaling):
        factor = (scaling.longest or scaling.max_length) / scaling.max_length
        length = {"original_max_position_embeddings": scaling.max_length, "factor": factor}
        if not scaling.factors:
            return theta | length | {"rope_type": "dynamic"}
        factors = {"short_factor": list(scaling.factors), "long_factor": list(scaling.long_factors or scaling.factors)}
        return theta | length | factors | {"rope_type": "longrope", "attention_factor": scaling.attention_factor}
    return theta | {"rope_type": "default"}
