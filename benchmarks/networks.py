"""The timed networks: in JAX with jaxfed's or XLA's convolutions, and the same networks in torch."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from flax import nnx

from jaxfed import models

BATCH, VOCABULARY, CONTEXT = 50, 65, 16


@dataclass(frozen=True)
class TimedNetwork:
    """A network to time.

    Attributes:
        build: `build(native)` -> (params, apply); `native` selects XLA's own convolutions.
        shape: of one sample, channels last; integers below `VOCABULARY` if `tokens`.
        classes: number of labels.
        twin: name and arguments of the same network in `torch_loop`.
        local_steps: K by cohort size, so that a round takes about a second.
        plans: names of the plans tried, "map native" for native convolutions.
        tokens: whether samples are tokens.
    """

    build: Callable[[bool], tuple[Any, models.ApplyFn]]
    shape: tuple[int, ...]
    classes: int
    twin: tuple[str, tuple[int, ...]]
    local_steps: Mapping[int, int]
    plans: tuple[str, ...] = ("map", "chunked(2)", "chunked(5)", "vmap")
    tokens: bool = False

    def batches(self, cohort: int, steps: int) -> dict[str, np.ndarray]:
        """Return random samples [C, K, B, ...]."""
        draw, lead = np.random.default_rng(0), (cohort, steps, BATCH)
        x = draw.integers(0, VOCABULARY, (*lead, *self.shape), np.int32) if self.tokens else None
        x = draw.standard_normal((*lead, *self.shape), np.float32) if x is None else x
        return {"x": x, "y": draw.integers(0, self.classes, lead, np.int32), "mask": np.ones(lead, bool)}


def flax(name: str, *args: Any, **options: Any) -> Callable[[bool], tuple[Any, models.ApplyFn]]:
    """Return the `build` of a network of `jaxfed.models`; drawn on the CPU, where it compiles faster."""

    @functools.cache
    def build(native: bool) -> tuple[Any, models.ApplyFn]:
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            module = getattr(models, name)(*args, **options, rngs=nnx.Rngs(0))
        for _, part in nnx.iter_modules(module):
            if native and isinstance(part, nnx.Conv):
                part.conv_general_dilated = jax.lax.conv_general_dilated
        params, apply = models.functional(module)
        return jax.device_put(params, jax.local_devices()[0]), apply

    return build


NETWORKS = {
    "mlp": TimedNetwork(
        flax("MLP", (784, 200, 200, 10), activation=jax.nn.relu), (784,), 10, ("mlp", ()), {10: 50, 100: 10}
    ),
    "char": TimedNetwork(
        flax("NextCharacter", VOCABULARY, CONTEXT), (CONTEXT,), VOCABULARY, ("character", (VOCABULARY, CONTEXT)),
        {10: 100, 100: 20}, tokens=True,
    ),
    "lenet": TimedNetwork(flax("LeNet"), (28, 28, 1), 10, ("lenet", ()), {10: 4, 100: 1}, ("map", "chunked(2)")),
    "resnet18": TimedNetwork(
        flax("ResNet18"), (32, 32, 3), 10, ("resnet18", ()), {10: 1}, ("map", "chunked(2)")
    ),
}  # fmt: skip

ON_GPU = {
    **NETWORKS,
    "mlp": replace(NETWORKS["mlp"], plans=("map", "chunked(5)", "vmap")),
    "lenet": replace(
        NETWORKS["lenet"], local_steps={10: 20}, plans=("map", "chunked(5)", "vmap", "map native", "vmap native")
    ),
    "resnet18": replace(
        NETWORKS["resnet18"], local_steps={10: 5}, plans=("map", "chunked(5)", "vmap", "map native")
    ),
}  # fmt: skip
