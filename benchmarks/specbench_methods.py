"""The methods of specbench.py: each a draft, a way to build it, and settings of which the fastest is taken."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

import jaxspec
from jaxspec import candidates
from jaxspec.analysis.specbench import fastest
from jaxspec.drafts import trees
from jaxspec.methods.protocol import DecodingMethod

PLAIN = "autoregressive"

Build = Callable[[jaxspec.Model, Any, Any], DecodingMethod]


class Method(NamedTuple):
    """A method: the name of its draft (none: ""), from target, draft and a setting to it, and settings to try."""

    draft: str
    build: Build
    settings: tuple[Any, ...]


def chain(target: jaxspec.Model, draft: Any, window: int) -> DecodingMethod:
    """Speculative decoding with a window."""
    return jaxspec.speculative(target, draft, window)


def tree(target: jaxspec.Model, draft: Any, sizes: tuple[int, ...]) -> DecodingMethod:
    """Speculative decoding with a tree of given children at each depth."""
    return jaxspec.speculative(target, draft, tree=trees.static(sizes))


def dynamic(target: jaxspec.Model, draft: Any, sizes: tuple[int, ...]) -> DecodingMethod:
    """Speculative decoding with the tree of EAGLE-2: (top_k, depth, nodes)."""
    return jaxspec.speculative(target, draft, tree=trees.dynamic(*sizes))


def either(target: jaxspec.Model, draft: Any, setting: Any) -> DecodingMethod:
    """A window or a dynamic tree."""
    return (chain if isinstance(setting, int) else dynamic)(target, draft, setting)


def ahead(policy: Any) -> Build:
    """Mirror-SD's loop with a policy; the setting is the window."""
    return lambda target, draft, window: jaxspec.mirror(target, draft, window=window, policy=policy)


WINDOWS, GROWN, FANS = (2, 3, 4, 6), ((3, 3, 8), (4, 4, 16)), ((2, 1, 1), (3, 2, 1))
METHODS: dict[str, Method] = {
    PLAIN: Method("", lambda target, draft, devices: on_devices(target, devices), (1, 2)),
    "prompt lookup": Method("", lambda target, draft, window: jaxspec.lookup(target, window), (3, 5, 8)),
    "table of n-grams": Method("ngram", chain, (3, 5, 7)),
    "speculative": Method("plain", chain, WINDOWS),
    "Medusa": Method("medusa", tree, FANS),
    "Hydra": Method("hydra", tree, FANS),
    "EAGLE": Method("eagle", chain, WINDOWS),
    "EAGLE-2": Method("eagle", dynamic, GROWN),
    "EAGLE-3": Method("eagle3", either, (*WINDOWS, *GROWN)),
    "PEARL": Method("plain", ahead(candidates.pearl()), WINDOWS[:3]),
    "SSD": Method("plain", ahead(candidates.saguaro(4)), WINDOWS[:3]),
    "Mirror-SD": Method("plain", ahead(candidates.mirror(4)), WINDOWS[:3]),
    "Mirror-SD, EAGLE-3": Method("eagle3", ahead(candidates.mirror(4)), WINDOWS[:3]),
    "hybrid": Method("plain", ahead(candidates.hybrid(4, 4)), WINDOWS[:3]),
}


def on_devices(target: jaxspec.Model, count: int) -> DecodingMethod:
    """Plain decoding, tensor-parallel over some devices."""
    return jaxspec.autoregressive(target, jaxspec.mesh_of(jax.devices()[:count]))


def available(drafts: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """Return the named methods whose draft there is."""
    return [name for name, method in METHODS.items() if name in names and (not method.draft or method.draft in drafts)]


def best_setting(target: jaxspec.Model, drafts: Mapping[str, Any], name: str, **measured: Any) -> Any:
    """Return the setting of a method that answers questions fastest; options of ``specbench.fastest``."""
    settings = [each for each in METHODS[name].settings if _fits(target, name, each)]
    return fastest({each: built(target, drafts, name, each) for each in settings}, runs=1, **measured)


def built(target: jaxspec.Model, drafts: Mapping[str, Any], name: str, setting: Any) -> DecodingMethod:
    """Return a method with a setting, which may come from JSON."""
    method = METHODS[name]
    return method.build(target, drafts.get(method.draft), tuple(setting) if isinstance(setting, list) else setting)


def _fits(target: jaxspec.Model, name: str, setting: Any) -> bool:
    """Return whether the target's heads can be divided among the devices of plain decoding."""
    return name != PLAIN or (setting <= jax.device_count() and target.network.config.num_kv_heads % setting == 0)
