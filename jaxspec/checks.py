"""Checks of arguments, made before any work starts: what was expected, what came, the remedy."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxspec.types import Model


def check_window(window: int) -> None:
    """A window of at least one token."""
    if window < 1:
        raise ValueError(
            f"expected window >= 1 drafted token a step, got {window}; for none use jaxspec.autoregressive"
        )


def check_exit(target: Model, exit_layer: int, num_candidates: int, head: Any) -> None:
    """An exit layer inside the target, candidates that its vocabulary can fill, and a head made for its features."""
    count, vocabulary = target.network.config.num_layers, target.network.config.vocab_size
    if not 1 <= exit_layer <= count:
        raise ValueError(f"expected 1 <= exit_layer <= {count} (layers of the target), got {exit_layer}")
    tracks = target.network.config.tracks
    if tracks is not None and tracks.count > 1 and exit_layer not in (meetings := tracks.meetings(count)):
        raise ValueError(f"expected an exit_layer where the target's tracks meet, of {meetings[1:]}, got {exit_layer}")
    if not 1 <= num_candidates < vocabulary:
        raise ValueError(f"expected 1 <= num_candidates < {vocabulary} (the vocabulary), got {num_candidates}")
    try:
        logits = jax.eval_shape(partial(head, target.network), target.params, _hidden(target))
    except (TypeError, ValueError) as error:
        raise ValueError(f"expected an exit head for this target, got another model's: {error}") from error
    if logits.shape != (vocabulary, 1, 1):
        raise ValueError(f"expected an exit head over {vocabulary} tokens, got logits of shape {logits.shape}")


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
    if not 1 <= num_candidates < vocabulary:
        raise ValueError(
            f"expected 1 <= num_candidates < {vocabulary} (the vocabulary) of the policy, got {num_candidates}"
        )


#: Branches that a step may roll out for each sequence without being asked to.
MANY_BRANCHES = 512


def check_branches(policy: Any, count: int, window: int, num_candidates: int) -> None:
    """Branches that nobody meant to roll out: all candidates of an exit's message, without a budget."""
    if count > MANY_BRANCHES and getattr(policy.exit, "budget", 0) is None:
        raise ValueError(
            f"expected at most {MANY_BRANCHES} branches, got {count}: all κ·(γ+1) = {num_candidates}·({window}+1) "
            "candidates; give the policy a budget, such as candidates.mirror(64)"
        )
