"""Is a step of plain decoding on a TPU faster with its column doubled (``models.products``) or as it is?"""

import os
import time
from typing import Any, NamedTuple
from unittest import mock

import jax
import numpy as np
from jax.sharding import Mesh

from jaxspec.devices.sharding import put_model
from jaxspec.generation.requests import request_of
from jaxspec.methods import autoregressive
from jaxspec.models.base import Model
from jaxspec.models.products import SWITCH
from jaxspec.verify.programs import target_plain
from jaxspec.verify.target import Target


class ColumnTimes(NamedTuple):
    """Seconds of a step of plain decoding, medians: the column as it is, and doubled."""

    single: float
    doubled: float

    @property
    def advice(self) -> str:
        """Which is faster, in a sentence."""
        ratio = self.single / self.doubled
        if ratio >= 1:
            return f"Doubled columns make a step {ratio:.2f} times as fast here."
        return f"Doubled columns make a step {1 / ratio:.2f} times as slow here: set {SWITCH}=0."


def column_times(target: Model, mesh: Mesh | None = None, runs: int = 15, capacity: int = 512) -> ColumnTimes:
    """Time a step of plain decoding both ways, in turns.

    On devices that are no TPUs both are the same program.

    Args:
        target: network and parameters.
        mesh: where it runs. Default: the first device.
        runs: steps of each.
        capacity: rows of the cache, at least ``runs`` + 20.
    """
    method, placed = autoregressive(target, mesh), put_model(target, mesh)
    request, _ = request_of([np.arange(1, 9, dtype=np.int32) % method.vocab_size], method, capacity - 16)
    plain: Any = target_plain  # its cache of programs does not know the switch
    seconds: list[list[float]] = []
    sides = []
    for value in ("0", "1"):
        with mock.patch.dict(os.environ, {SWITCH: value}):
            state = method.init(request, capacity)
            step = jax.jit(plain.__wrapped__, static_argnames="target", donate_argnames="state")
            program = step.lower(Target(placed.network), placed.params, state).compile()
        sides.append((program, state))
        seconds.append([])
    for number in range(runs + 1):
        for side, (program, state) in enumerate(sides):
            start = time.perf_counter()
            state, _ = jax.block_until_ready(program(placed.params, state))
            sides[side] = program, state
            seconds[side] += [time.perf_counter() - start] if number else []
    return ColumnTimes(*(float(np.median(times)) for times in seconds))
