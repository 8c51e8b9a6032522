"""The axis along which each parameter is divided, among devices of a mesh or among tracks of a layer."""

from typing import Any

import jax
from jax.sharding import PartitionSpec

from jaxspec.models.base import Params
from jaxspec.models.quantize import Int8, is_int8

#: Tensor parallelism (Megatron) over heads and hidden features, with two all-reduces for each layer; embedding and head
#: over the vocabulary. Experts are divided whole. Leaves without a name here are replicated.
AXES = {
    "embedding": PartitionSpec("model"),
    "head": PartitionSpec("model"),
    "qkv": PartitionSpec("model"),
    "qkv_bias": PartitionSpec("model"),
    "sinks": PartitionSpec("model"),
    "out": PartitionSpec(None, "model"),
    "gate_up": PartitionSpec(None, "model"),
    "gate_up_bias": PartitionSpec(None, "model"),
    "down": PartitionSpec(None, "model"),
    "expert_gate_up": PartitionSpec("model"),
    "expert_gate_up_bias": PartitionSpec("model"),
    "expert_down": PartitionSpec("model"),
    "expert_down_bias": PartitionSpec("model"),
}


def partition(params: Params) -> Params:
    """Return a partition specification for every leaf; scales of eight-bit weights are divided like their features."""

    def spec(path: tuple, leaf: Any) -> Any:
        own = AXES.get(str(getattr(path[-1], "key", "")), PartitionSpec())
        if not isinstance(leaf, Int8):
            return own
        return Int8(own, PartitionSpec(*own[: leaf.scale.ndim]))  # type: ignore[arg-type]

    return jax.tree_util.tree_map_with_path(spec, params, is_leaf=is_int8)
