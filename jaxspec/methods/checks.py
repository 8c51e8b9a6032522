"""Checks of arguments, made before any work starts; errors name what was expected, what was passed, the remedy."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxspec.core.arguments import whole
from jaxspec.drafts import Draft, Drafter, draft_for
from jaxspec.drafts.trees import TreePolicy
from jaxspec.methods.fallbacks import Fallback
from jaxspec.models.base import Model, Params
from jaxspec.models.dtypes import check_dtype, hidden_like
from jaxspec.verify.acceptance import Acceptance
from jaxspec.verify.target import Request


def not_numbers(params: Params) -> list[str]:
    """Return the names of the arrays that hold NaN or infinity; reads all of them."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    floating = [(path, leaf) for path, leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
    bad = [path for path, leaf in floating if not jnp.all(jnp.isfinite(leaf))]
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path in bad]


def check_pair(target: Model, draft: Model | Draft, window: int) -> tuple[Draft, int]:
    """Return the draft made for the target (``draft_for``), and a window of at least one token."""
    check_dtype(target, "target")
    made = draft_for(target, draft)
    most = made.drafter.max_window
    if most is not None and window > most:
        raise ValueError(
            f"expected a window or a tree of at most {most} levels, since the draft has {most} heads, got {window}; "
            f"pass window={most} or a tree of fewer levels"
        )
    return made, whole("window", window, 1, 2**15, "for none use jaxspec.autoregressive")


def check_tree(target: Model, drafter: Drafter, rule: Acceptance, tree: TreePolicy | None) -> None:
    """Raise ValueError for a tree that the rule, the draft or the vocabulary does not allow."""
    if tree is None:
        return
    if rule.rank is None:
        raise ValueError(
            "expected acceptance.match() with a tree, got a rule that verifies chains alone, as acceptance.ratio() "
            "does; pass acceptance=jaxspec.acceptance.match(), or leave tree=None"
        )
    if type(drafter).grow is Drafter.grow:
        raise ValueError(f"expected a draft that can grow a tree, got {type(drafter).__name__}; leave tree=None")
    vocabulary, most = target.network.config.vocab_size, tree.most_children
    if most > vocabulary:
        raise ValueError(f"expected at most {vocabulary} children of a node (the vocabulary), got {most}")


def check_fallback(drafter: Drafter, fallback: Fallback) -> None:
    """Raise ValueError for a fallback that looks tokens up, if the draft cannot run tokens that it did not draft."""
    if fallback.reads_text and type(drafter).follow is Drafter.follow:
        raise ValueError(
            f"expected a draft that can run tokens that were looked up, got {type(drafter).__name__}; use "
            "fallbacks.Full()"
        )


def check_exit(target: Model, exit_layer: int, num_candidates: int, head: Any) -> tuple[int, int]:
    """Check the exit: its layer lies in the target, κ below the vocabulary's size, its head fits; both as integers."""
    count, vocabulary = target.network.config.num_layers, target.network.config.vocab_size
    exit_layer = whole("exit_layer", exit_layer, 1, count, "these are the layers of the target")
    tracks = target.network.config.tracks
    if tracks is not None and tracks.count > 1 and exit_layer not in (meetings := tracks.meetings(count)):
        raise ValueError(f"expected an exit_layer where the target's tracks meet, of {meetings[1:]}, got {exit_layer}")
    num_candidates = check_candidates(target, num_candidates)
    try:
        logits = jax.eval_shape(partial(head, target.network), target.params, hidden_like(target))
    except (TypeError, ValueError) as error:
        raise ValueError(f"expected an exit head for this target, got another model's: {error}") from error
    if logits.shape != (vocabulary, 1, 1):
        raise ValueError(f"expected an exit head over {vocabulary} tokens, got logits of shape {logits.shape}")
    own = getattr(head, "tokens", None)
    if own is not None and num_candidates >= len(own):
        raise ValueError(
            f"expected num_candidates <= {len(own) - 1}, since the exit has {len(own)} tokens, got {num_candidates}"
        )
    return exit_layer, num_candidates


def check_meshes(target: Mesh, draft: Mesh) -> None:
    """Raise ValueError for meshes that share some devices, but not all."""
    one, other = set(target.devices.flat), set(draft.devices.flat)
    if one != other and one & other:
        raise ValueError(
            f"expected target and draft on disjoint meshes, or both on one, got {len(one & other)} devices in both; "
            "slice jax.devices() in two"
        )


def check_processes(*meshes: Mesh | None) -> None:
    """Raise ValueError unless every mesh lies in one process, one of them in this, and all have one platform."""
    owners = [{device.process_index for device in mesh.devices.flat} for mesh in meshes if mesh is not None]
    for processes in owners:
        if len(processes) > 1:
            raise ValueError(
                f"expected every mesh within one process, got one over processes {sorted(processes)}; "
                "use jax.local_devices(process_index)"
            )
    everyone, own = set().union(*owners), jax.process_index()
    if everyone and own not in everyone:
        raise ValueError(
            f"expected a mesh of this process ({own}), got meshes of {sorted(everyone)}; use jax.local_devices(), or "
            "call it in those processes alone"
        )
    platforms = {device.platform for mesh in meshes if mesh is not None for device in mesh.devices.flat}
    if len(everyone) > 1 and len(platforms) > 1:
        raise ValueError(f"expected one platform for two processes, got {sorted(platforms)}; use devices of one kind")


def check_candidates(target: Model, num_candidates: int, name: str = "num_candidates") -> int:
    """Check that κ of a message lies below the vocabulary's size; return it as an integer."""
    vocabulary = target.network.config.vocab_size
    return whole(name, num_candidates, 1, vocabulary - 1, f"the vocabulary has {vocabulary}")


#: Branches that a step may roll out for each sequence without an explicit budget.
MANY_BRANCHES = 512


def check_branches(policy: Any, count: int, window: int, num_candidates: int) -> None:
    """Raise ValueError for more than ``MANY_BRANCHES`` branches without an explicit budget."""
    if count > MANY_BRANCHES and getattr(policy.exit, "budget", 0) is None:
        raise ValueError(
            f"expected at most {MANY_BRANCHES} branches, got {count}: all κ·(γ+1) = {num_candidates}·({window}+1) "
            "candidates; give the policy a budget, such as candidates.mirror(64)"
        )


def check_capacity(request: Request, capacity: int, window: int) -> None:
    """Check that the rows of a cache hold prompts, new tokens and one window more; raise ValueError if not."""
    longest = int(np.max(np.asarray(request.lengths) + np.asarray(request.max_new_tokens)))
    needed = max(request.tokens.shape[1], longest) + window + 1
    if capacity < needed:
        raise ValueError(
            f"expected a capacity of at least {needed} rows (prompt, new tokens, a window and one), got {capacity}; "
            "take prompt + max_new_tokens + 2 * (window + 1)"
        )
