"""What every decoding method is: an ``init`` and a ``step``, and what the loop needs to know of them."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from jax.sharding import Mesh

from jaxspec.devices.sharding import DATA_AXIS, axis_size
from jaxspec.methods.checks import check_capacity, not_numbers
from jaxspec.models.base import Model
from jaxspec.text import Text
from jaxspec.verify.info import StepInfo
from jaxspec.verify.target import Request

Watch = Callable[[str, str, Any], None]
"""Called with (lane, name, outputs) for every program that a step enqueues."""


def unwatched(lane: str, name: str, outputs: Any) -> None:
    """Ignore the program: the default ``Watch``."""


def no_peers(call: Any) -> None:
    """Check nothing: the default of ``DecodingMethod.check_peers``, where there is no other process."""


class DecodingMethod(NamedTuple):
    """One way to decode; ``jaxspec.generate`` drives it.

    Attributes:
        init: (``Request``, capacity) → state; capacity: cache rows of a sequence.
        step: (state, watch) → (state, StepInfo).
        window: γ, tokens drafted a step; 0 for plain decoding.
        vocab_size: token ids lie below it.
        text: how the target reads and writes, if it came with a tokenizer.
        groups: sequences of a batch must divide by it (the ``data`` axis of the meshes).
        max_length: most tokens of a sequence that the target can tell apart, if limited: it has learned positions, or
            rotary ones that would change for longer texts.
        not_numbers: names the arrays of the target's parameters that hold NaN or infinity; reads all of them.
        check_peers: called once before decoding, with all arguments that decoding depends on; raises ValueError if the
            other process was given different ones.
        trained: whether a draft was trained: one that is never right is then reported.
    """

    init: Callable[..., Any]
    step: Callable[..., tuple[Any, StepInfo]]
    window: int
    vocab_size: int
    text: Text | None = None
    groups: int = 1
    max_length: int | None = None
    check_peers: Callable[[Any], None] = no_peers
    not_numbers: Callable[[], list[str]] = list
    trained: bool = True


def method_of(
    target: Model, init: Callable[..., Any], step: Callable[..., Any], window: int, *meshes: Mesh | None
) -> DecodingMethod:
    """Return a method whose text is the target's."""
    config, groups = target.network.config, math.lcm(*(axis_size(mesh, DATA_AXIS) for mesh in meshes))

    def checked(request: Request, capacity: int) -> Any:
        check_capacity(request, capacity, window)
        return init(request, capacity)

    method = DecodingMethod(checked, step, window, config.vocab_size, target.text, groups, config.max_length)
    return method._replace(not_numbers=partial(not_numbers, target.params))
