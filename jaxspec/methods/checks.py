"""Checks of arguments, made before any work starts: what was expected, what came, the remedy."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxspec.core.arguments import whole
from jaxspec.models.base import Model, Params


def not_numbers(params: Params) -> list[str]:
    """Names of the arrays that hold NaN or infinity; reads all of them."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    floating = [(path, leaf) for path, leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
    bad = [path for path, leaf in floating if not jnp.all(jnp.isfinite(leaf))]
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path in bad]


#: Types in which a network can compute.
FLOATS = ("float32", "bfloat16", "float16", "float64")


def check_dtype(model: Model, name: str) -> None:
    """Hidden states of a type that is wide enough."""
    dtype = _hidden(model).dtype
    if dtype.name not in FLOATS:
        raise ValueError(f"expected a {name} that computes in one of {', '.join(FLOATS)}, got {dtype}; cast its params")


def check_pair(target: Model, draft: Model, window: int) -> int:
    """Hidden states of both that are wide enough, and a window of at least one token, which is returned."""
    check_dtype(target, "target")
    check_dtype(draft, "draft")
    return whole("window", window, 1, 2**15, "for none use jaxspec.autoregressive")


def check_exit(target: Model, exit_layer: int, num_candidates: int, head: Any) -> tuple[int, int]:
    """An exit layer inside the target and candidates that its vocabulary can fill, as integers; a head that fits it."""
    count, vocabulary = target.network.config.num_layers, target.network.config.vocab_size
    exit_layer = whole("exit_layer", exit_layer, 1, count, "these are the layers of the target")
    tracks = target.network.config.tracks
    if tracks is not None and tracks.count > 1 and exit_layer not in (meetings := tracks.meetings(count)):
        raise ValueError(f"expected an exit_layer where the target's tracks meet, of {meetings[1:]}, got {exit_layer}")
    num_candidates = whole("num_candidates", num_candidates, 1, vocabulary - 1, f"the vocabulary has {vocabulary}")
    try:
        logits = jax.eval_shape(partial(head, target.network), target.params, _hidden(target))
    except (TypeError, ValueError) as error:
        raise ValueError(f"expected an exit head for this target, got another model's: {error}") from error
    if logits.shape != (vocabulary, 1, 1):
        raise ValueError(f"expected an exit head over {vocabulary} tokens, got logits of shape {logits.shape}")
    return exit_layer, num_candidates


def _hidden(target: Model) -> Any:
    """Shape and dtype of the hidden state of one token."""
    return jax.eval_shape(target.network.embed, target.params, jax.ShapeDtypeStruct((1, 1), jnp.int32))


def check_meshes(target: Mesh, draft: Mesh) -> None:
    """Meshes without a common device, for overlap, or the same one for both, without."""
    one, other = (set(mesh.devices.flat) for mesh in (target, draft))
    if one != other and one & other:
        raise ValueError(
            f"expected target and draft on disjoint meshes, or both on one, got {len(one & other)} devices in both; "
            "slice jax.devices() in two"
        )


def check_processes(*meshes: Mesh | None) -> None:
    """Meshes of one process each, and this process among theirs; between two processes, of one platform."""
    found = [{device.process_index for device in mesh.devices.flat} for mesh in meshes if mesh is not None]
    for processes in found:
        if len(processes) > 1:
            raise ValueError(
                f"expected every mesh within one process, got one over processes {sorted(processes)}; "
                "use jax.local_devices(process_index)"
            )
    everyone, own = set().union(*found), jax.process_index()
    if everyone and own not in everyone:
        raise ValueError(
            f"expected a mesh of this process ({own}), got meshes of {sorted(everyone)}; use jax.local_devices(), or "
            "call it in those processes alone"
        )
    platforms = {device.platform for mesh in meshes if mesh is not None for device in mesh.devices.flat}
    if len(everyone) > 1 and len(platforms) > 1:
        raise ValueError(f"expected one platform for two processes, got {sorted(platforms)}; use devices of one kind")


def check_candidates(target: Model, num_candidates: int) -> None:
    """Candidates of the draft's own that its vocabulary can fill."""
    vocabulary = target.network.config.vocab_size
    whole("num_candidates of the policy", num_candidates, 1, vocabulary - 1, f"the vocabulary has {vocabulary}")


#: Branches that a step may roll out for each sequence without being asked to.
MANY_BRANCHES = 512


def check_branches(policy: Any, count: int, window: int, num_candidates: int) -> None:
    """Branches that nobody meant to roll out: all candidates of an exit's message, without a budget."""
    if count > MANY_BRANCHES and getattr(policy.exit, "budget", 0) is None:
        raise ValueError(
            f"expected at most {MANY_BRANCHES} branches, got {count}: all κ·(γ+1) = {num_candidates}·({window}+1) "
            "candidates; give the policy a budget, such as candidates.mirror(64)"
        )
