"""The suite ``mirror-trees`` of decode.py: would Mirror-SD gain by verifying a tree instead of a window?

Under Mirror-SD the draft continues the R likeliest verdicts before the verdict is there. A verdict is a place of what
is verified and the token behind it; the exit's distributions alone, sharpened (β = 5), give each a
chance: their product along the path to the place, and of the token there. ``covered``: how often the verdict is among
the R likeliest, in speculative decoding with that chain or tree. ``rollout_ms``: the draft's time for R continuations
of the same shape, as one batch. The next step of a tree needs R trees: the time grows with nodes times R.
"""

import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from draft_kinds import accuracies
from machine import seconds_of
from mirror import prompts_of
from tqdm import tqdm

import jaxspec
from jaxspec import zoo
from jaxspec.drafts import draft_for, trees
from jaxspec.drafts.beginning import first_tree
from jaxspec.generation.requests import request_of
from jaxspec.methods import autoregressive
from jaxspec.training import hidden_states
from jaxspec.verify.acceptance import match
from jaxspec.verify.target import prefill

BUDGETS = (4, 8, 16, 32)
KINDS = ("plain", "eagle3")
#: β, of the exit's distributions.
SHARPNESS = 5.0


class Step(NamedTuple):
    """What was verified in a step and what came of it.

    Attributes:
        texts: the text followed by each node's path, padded with zeros: [N, T].
        ends: index of each node's own token: [N].
        parents: of each node.
        verdict: the accepted path's last node, and the token behind it.
    """

    texts: np.ndarray
    ends: np.ndarray
    parents: np.ndarray
    verdict: tuple[int, int]


def decoded(method: Any, policy: trees.TreePolicy, prompt: list[int], new: int) -> Iterator[Step]:
    """Decode greedily and yield every step, but those that pass the end."""
    request, capacity = request_of([np.asarray(prompt, np.int32)], method, new)
    state, text = method.init(request, capacity), list(prompt)
    while len(text) < len(prompt) + new:
        tree = jax.device_get(policy.tree(state.window.tokens))
        state, info = method.step(state)
        tokens, depth, paths = tree.tokens[0], tree.depth[0], tree.paths[0]
        texts = np.zeros((len(tokens), len(prompt) + new + policy.max_depth), np.int32)
        for node, path in enumerate(paths):
            line = [*text, *tokens[path[1 : depth[node] + 1]]]
            texts[node, : len(line)] = line
        accepted, emitted = int(info.num_verified[0]), info.tokens[0]
        if len(text) + accepted + 1 <= len(prompt) + new:
            line = [*text, *emitted[:accepted]]
            same = (texts[:, : len(line)] == line).all(axis=1) & (depth == accepted)
            parents = paths[np.arange(len(paths)), np.maximum(depth - 1, 0)]
            yield Step(texts, len(text) - 1 + depth, parents, (int(np.argmax(same)), int(emitted[accepted])))
        text += emitted[: accepted + 1].tolist()


def rank_of(step: Step, exit_logs: Callable[[np.ndarray, np.ndarray], Any]) -> int:
    """Return how many verdicts are likelier, by the exit, than the one that came."""
    logs = np.asarray(exit_logs(step.texts, step.ends), np.float64)
    chance, behind = np.zeros(len(logs)), logs.copy()
    for node in range(1, len(logs)):
        parent, token = step.parents[node], step.texts[node, step.ends[node]]
        chance[node] = chance[parent] + logs[parent, token]
        behind[parent, token] = -np.inf  # then the walk goes on
    behind += chance[:, None]
    return int((behind > behind[step.verdict]).sum())


def exit_of(pair: zoo.Pair) -> Callable[[np.ndarray, np.ndarray], Any]:
    """Return the exit's log-probabilities at one place of each text: [N, V]."""
    network, layer = pair.target.network, pair.exit_layer

    @jax.jit
    def logs(params: Any, texts: Any, ends: Any) -> Any:
        x = hidden_states(network, params, texts, (layer,))[0]
        x = jnp.take_along_axis(x, ends[None, :, None], axis=2)
        return jax.nn.log_softmax(SHARPNESS * network.logits(params, x)[:, :, 0], axis=0).T

    return partial(logs, pair.target.params)


def rollout_ms(pair: zoo.Pair, draft: Any, policy: trees.TreePolicy, prompt: list[int], budget: int) -> float:
    """Return milliseconds in which the draft grows ``budget`` such trees as one batch."""
    made, rule = draft_for(pair.target, draft), match()
    drafter, own = made.drafter, made.params
    request, capacity = request_of([np.asarray(prompt, np.int32)] * budget, autoregressive(pair.target), 64)
    reader = drafter.reader()
    _, sent = prefill(pair.target.network, pair.target.params, request, capacity, reader, drafter.fusion(own))
    whole = partial(first_tree, drafter, rule, own, window=policy.max_depth, capacity=capacity)
    one = trees.chain(1)
    run = lambda tree: jax.block_until_ready(whole(request, sent, policy=tree))  # noqa: E731
    for tree in (policy, one):
        run(tree)
    times = [[seconds_of(lambda tree=tree: run(tree)) for tree in (policy, one)] for _ in range(15)]
    both = np.median(times, axis=0)  # the prompt's pass is in both
    return 1e3 * float(both[0] - both[1])


def suite(options: Any) -> Iterator[dict[str, Any]]:
    """Yield a line for every draft, shape and budget."""
    pair = zoo.load(options.pair or "shakespeare")
    kinds, prompts = options.drafts or KINDS, prompts_of(pair, options.prompts)
    logs = exit_of(pair)
    for kind, table in accuracies(pair, kinds).items():
        draft = pair.draft if kind == "plain" else pair.drafts[kind]
        shapes = {f"chain {window}": trees.chain(window) for window in (7, 15)}
        shapes |= {f"fitted {nodes}": trees.fitted(table, nodes) for nodes in (8, 16, 32)}
        for name, policy in tqdm(shapes.items(), desc=kind, disable=options.json or not sys.stderr.isatty()):
            method = jaxspec.speculative(pair.target, draft, tree=policy)
            steps = [step for prompt in prompts for step in decoded(method, policy, prompt, options.new_tokens)]
            ranks = np.asarray([rank_of(step, logs) for step in steps])
            tau = np.mean([step.ends[step.verdict[0]] - step.ends[0] + 1 for step in steps])
            for budget in BUDGETS:
                yield {
                    "draft": kind,
                    "tree": name,
                    "nodes": policy.size,
                    "tau": round(float(tau), 3),
                    "steps": len(steps),
                    "branches": budget,
                    "covered": round(float(np.mean(ranks < budget)), 3),
                    "rollout_rows": budget * policy.size,
                    "rollout_ms": round(rollout_ms(pair, draft, policy, prompts[0], budget), 3),
                }
