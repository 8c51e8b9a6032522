"""Running layers of a network and keeping the residual stream between them."""

from typing import Any

from jaxspec.models.base import Array, Attend, Network, Params


def run_layers(
    network: Network,
    params: Params,
    x: Array,
    positions: Array,
    cache: Any,
    attend: Attend,
    layers: range,
    taps: tuple[int, ...] = (),
) -> tuple[Array, Any, dict[int, Array]]:
    """Run ``network.blocks`` over ``layers``; also return the streams r_i before layer i, for each i in ``taps``.

    Of the taps those in (start, stop] are kept, and r_0 by the range that starts at 0, so that consecutive ranges keep
    every tap once. Without taps it is one call of ``network.blocks``.

    Returns:
        x [D, B, T] after the layers, the cache, and the streams [D, B, T] by tap.
    """
    kept, start = ({0: x} if 0 in taps and layers.start == 0 else {}), layers.start
    for tap in taps:
        if layers.start < tap <= layers.stop:
            x, cache = network.blocks(params, x, positions, cache, attend, range(start, tap))
            kept[tap], start = x, tap
    if start < layers.stop or not kept:
        x, cache = network.blocks(params, x, positions, cache, attend, range(start, layers.stop))
    return x, cache, kept
