"""The first window or tree after the prompts, and the next window after a verdict."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxspec.drafts.base import Drafter
from jaxspec.drafts.proposer import Proposer
from jaxspec.drafts.records import Pending, Window, as_window
from jaxspec.drafts.trees import TreePolicy
from jaxspec.models.base import Params
from jaxspec.verify.acceptance import Acceptance
from jaxspec.verify.message import Message
from jaxspec.verify.target import Request


@partial(jax.jit, static_argnames=("drafter", "acceptance", "window", "capacity", "branches", "num_candidates"))
def first_window(
    drafter: Drafter,
    acceptance: Acceptance,
    params: Params,
    request: Request,
    features: Any,
    window: int,
    capacity: int,
    branches: int = 1,
    num_candidates: int = 0,
) -> tuple[Window, Message | None, Any]:
    """Run the prompts through the draft and draft the first window."""
    state = drafter.begin(params, request, features, capacity, window * branches)
    last = jnp.take_along_axis(request.tokens, request.lengths[:, None] - 1, axis=1)[:, 0]
    proposer = Proposer(acceptance, request.sampling, request.seen, num_candidates)
    return next_window(drafter, params, state, Pending(last, request.lengths - 1), window, proposer)


@partial(jax.jit, static_argnames=("drafter", "acceptance", "window", "capacity", "policy"))
def first_tree(
    drafter: Drafter,
    acceptance: Acceptance,
    params: Params,
    request: Request,
    features: Any,
    window: int,
    capacity: int,
    policy: TreePolicy,
) -> tuple[Window, None, Any]:
    """Run the prompts through the draft and draft the first tree; ``window`` is its depth."""
    state = drafter.begin(params, request, features, capacity, 0)
    last = jnp.take_along_axis(request.tokens, request.lengths[:, None] - 1, axis=1)[:, 0]
    proposer = Proposer(acceptance, request.sampling, request.seen)
    drawn, state = drafter.grow(params, state, Pending(last, request.lengths - 1), policy, proposer)
    return Window(drawn, None), None, state


def next_window(
    drafter: Drafter, params: Params, state: Any, root: Pending, window: int, proposer: Proposer
) -> tuple[Window, Message | None, Any]:
    """Draft one window after ``root`` and commit it; the proposer has ``seen`` marks [B, V]."""
    own = proposer._replace(seen=proposer.seen.as_branch())
    drafted, state = drafter.propose(params, state, root, window, own)
    return *as_window(own.told(drafted)), drafter.commit(state, drafted, root.position)
