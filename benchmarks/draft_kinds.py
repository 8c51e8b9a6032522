"""The suite ``drafts`` of decode.py: every kind of draft of the embedded pair, by chains and trees, and in Mirror-SD.

All drafts that read hidden states were trained on the same continuations for as many steps (``python -m jaxspec train
drafts``); ``plain`` is the pair's own small language model. ``nodes`` are the tokens that the target verifies a step,
the root included. Trees: ``fitted`` to the ranks' accuracy on text of training roles; ``dynamic``, with sharpness 5;
``EAGLE-2``, the same with 1. Prompts are held-out roles; decoding is greedy, batch 1, with Eigen threads; all methods
of a draft run in turns, and a ratio is the median of the turns' ratios.

``accepted_length``: drafted tokens accepted a step; ``tau`` = that + 1, tokens a step. ``draft_ms``: the draft's
program of a step, alone. ``overhead``: a step that verifies a chain as a tree over one that verifies a window.
"""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pictures
from machine import seconds_of
from matplotlib.figure import Figure
from mirror import prompts_of
from tqdm import tqdm

from jaxspec import federated, zoo
from jaxspec.cli._bench_methods import BenchSetting, Measurement, Prompts, Worker, measure, warm
from jaxspec.cli._methods import policy_named
from jaxspec.drafts import draft_for, trees
from jaxspec.drafts.beginning import first_tree, first_window, next_window
from jaxspec.drafts.proposer import Proposer
from jaxspec.drafts.records import Pending, Verification
from jaxspec.generation.requests import request_of
from jaxspec.methods import DecodeSpec, autoregressive
from jaxspec.training import rank_accuracy
from jaxspec.verify.acceptance import match
from jaxspec.verify.target import prefill
from jaxspec.zoo.heads import own_size
from jaxspec.zoo.recipe import PairRecipe, corpus

KINDS = ("plain", "eagle3", "eagle", "hydra", "medusa")
WINDOWS, NODES, BUDGETS = (3, 7, 15), (8, 16, 32), (4, 8)
AS_A_TREE = "chain 7 as a tree"
COLOURS = {"plain": "#000000", "eagle3": "#e69f00", "eagle": "#0072b2", "hydra": "#009e73", "medusa": "#cc79a7"}


class Row(NamedTuple):
    """A setting with the names of its draft and its tree, and the tokens that it verifies."""

    draft: str
    tree: str
    nodes: int
    setting: BenchSetting


def rows_of(pair: zoo.Pair, kind: str, table: np.ndarray) -> Iterator[Row]:
    """Return all settings of a draft; ``table`` is its ranks' accuracy."""
    named = BenchSetting(draft="" if kind == "plain" else kind)
    depth = most_tokens(pair, kind)
    for window in sorted({min(window, depth) for window in WINDOWS}):
        yield Row(kind, f"chain {window}", window + 1, replace(named, spec=DecodeSpec(window)))
        if window == 7:
            yield Row(kind, AS_A_TREE, 8, replace(named, spec=DecodeSpec(tree=trees.chain(7))))
        if window <= 7:
            specs = [DecodeSpec(window, policy_named("mirror", budget), 4) for budget in BUDGETS]
            yield from (Row(kind, f"chain {window}", window + 1, replace(named, spec=spec)) for spec in specs)
    for nodes in NODES:
        deep = min(depth, 7 if nodes == 8 else 12)
        growing = {"fitted": trees.fitted(table, nodes), "dynamic": trees.dynamic(8 - 4 * (deep > 2), deep, nodes, 5.0)}
        if nodes == 16:
            growing["EAGLE-2"] = replace(growing["dynamic"], sharpness=1.0)
        for name, tree in growing.items():
            yield Row(kind, f"{name} {nodes}", nodes, replace(named, spec=DecodeSpec(tree=tree)))


def most_tokens(pair: zoo.Pair, kind: str) -> int:
    """Return the longest window of a draft."""
    return 100 if kind == "plain" else pair.drafts[kind].drafter.max_window or 100


def accuracies(pair: zoo.Pair, kinds: tuple[str, ...], count: int = 96, length: int = 128) -> dict[str, np.ndarray]:
    """Return the accuracy of the ranks of every draft, on continuations of training text: [D, K] each."""
    text = corpus(PairRecipe(), pair.tokenizer).train
    starts = np.random.default_rng(1).integers(0, len(text) - 32, count)
    texts = federated.continued(pair.target, text[starts[:, None] + np.arange(32)[None]], length - 32).tokens
    drafts = {kind: pair.draft if kind == "plain" else pair.drafts[kind] for kind in kinds}
    return {
        kind: rank_accuracy(draft, pair.target, texts, prompt_length=32, depth=min(12, most_tokens(pair, kind)))
        for kind, draft in drafts.items()
    }


def draft_ms(pair: zoo.Pair, row: Row, prompt: list[int], repeats: int = 30) -> float:
    """Return milliseconds of what the draft does in a step of speculative decoding: it absorbs a verdict and drafts."""
    tree, window = row.setting.spec.tree, row.setting.spec.window
    made = draft_for(pair.target, pair.draft if row.draft == "plain" else pair.drafts[row.draft])
    drafter, params, rule = made.drafter, made.params, match()
    reader, fusion = drafter.reader(), drafter.fusion(made.params)
    request, capacity = request_of([np.asarray(prompt, np.int32)], autoregressive(pair.target), 64)
    target, features = prefill(pair.target.network, pair.target.params, request, capacity + 64, reader, fusion)
    position = target.progress.position
    if tree is None:
        _, _, state = first_window(drafter, rule, params, request, features, window, capacity)
    else:
        _, _, state = first_tree(drafter, rule, params, request, features, tree.max_depth, capacity, tree)
    size = window or tree.max_depth
    sent = jax.tree.map(lambda leaf: jnp.zeros((1, size + 1, leaf.shape[2])), features)
    path = None if tree is None else jnp.arange(size + 1)[None]
    one = jnp.ones(1, jnp.int32)
    verified = Verification(jnp.zeros((1, size), jnp.int32), position, None, one, one, sent, path)

    @jax.jit
    def run(params: Any, state: Any) -> Any:
        state, root = drafter.absorb(params, state, verified), Pending(one, position + 2)
        proposer = Proposer(rule, request.sampling, request.seen)
        if tree is None:
            return next_window(drafter, params, state, root, window, proposer)
        return drafter.grow(params, state, root, tree, proposer)

    jax.block_until_ready(run(params, state))
    times = [seconds_of(lambda: jax.block_until_ready(run(params, state))) for _ in range(repeats)]
    return 1e3 * float(np.median(times))


def measured(pair_folder: str, rows: list[Row], prompts: Prompts, new: int, rounds: int, show: Any) -> Any:
    """Return the runs of plain decoding and of all rows, in turns: by setting."""
    settings = [BenchSetting(), *(row.setting for row in rows)]
    runs: dict[BenchSetting, list[Measurement]] = {setting: [] for setting in settings}
    with Worker(pair_folder, True) as worker:
        for setting in settings:
            show(f"{rows[0].draft}: compiling")
            worker.run(warm, setting, prompts, new)
        for turn in range(rounds):
            show(f"{rows[0].draft}: round {turn + 1} of {rounds}")
            for setting in settings:
                runs[setting].append(worker.run(measure, setting, prompts[1:], new))
    return runs


def ratio(runs: list[Measurement], others: list[Measurement]) -> float:
    """Return the median over turns of the seconds of ``runs`` over those of ``others``."""
    return float(np.median([run.seconds / other.seconds for run, other in zip(runs, others, strict=True)]))


def line_of(row: Row, many: list[Measurement], plain: list[Measurement]) -> dict[str, Any]:
    """Return the figures of a row."""
    spec = row.setting.spec
    budget = {} if spec.policy is None else {"branches": spec.policy.exit.budget, "reuse_rate": many[0].reuse_rate}
    return {
        "draft": row.draft,
        "tree": row.tree,
        "method": spec.method,
        "nodes": row.nodes,
        "accepted_length": round(many[0].accepted_length, 3),
        "tau": round(many[0].accepted_length + 1, 3),
        "ratio_to_autoregressive": round(ratio(plain, many), 3),
        "step_ms": round(1e3 * float(np.median([run.step_seconds for run in many])), 3),
        "identical": all(run.tokens == plain[0].tokens for run in many),
        "tokens_compared": sum(len(tokens) for run in many for tokens in run.tokens),
        **budget,
    }


def lines_of(pair: zoo.Pair, rows: list[Row], runs: Any, prompt: list[int]) -> Iterator[dict[str, Any]]:
    """Yield the figures of all rows of a draft."""
    kind, plain = rows[0].draft, runs[BenchSetting()]
    size = own_size(pair.draft if kind == "plain" else pair.drafts[kind], pair)
    for row in rows:
        line = line_of(row, runs[row.setting], plain) | {"parameters": size}
        alone = {} if row.setting.spec.policy else {"draft_ms": round(draft_ms(pair, row, prompt), 3)}
        yield line | alone
    if of_tree := [row for row in rows if row.tree == AS_A_TREE]:
        chain = next(row for row in rows if row.tree == "chain 7")
        more = ratio(runs[of_tree[0].setting], runs[chain.setting]) - 1  # as many steps
        yield {"draft": kind, "overhead": round(more, 3)}


def suite(options: Any) -> Iterator[dict[str, Any]]:
    """Yield all lines, then draw the picture."""
    folder = options.pair or "shakespeare"
    pair = zoo.load(folder)
    tables = accuracies(pair, options.drafts or KINDS)
    prompts, lines = prompts_of(pair, options.prompts + 1), []
    with tqdm(desc="drafts", disable=options.json or not sys.stderr.isatty()) as bar:
        for kind, table in tables.items():
            yield {"draft": kind, "rank_accuracy": np.round(table[:4, :4], 3).tolist()}
            rows = list(rows_of(pair, kind, table))
            runs = measured(folder, rows, prompts, options.new_tokens, options.rounds, bar.set_postfix_str)
            for line in lines_of(pair, rows, runs, prompts[0]):
                lines.append(line)
                yield line
    draw([line for line in lines if "tau" in line], options.picture)


def draw(lines: list[dict[str, Any]], path: Path) -> None:
    """Draw tokens a step over verified tokens, by draft; and the speed of each draft at its best."""
    figure = Figure(figsize=(10.5, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    kinds = [kind for kind in COLOURS if any(line["draft"] == kind for line in lines)]
    for place, kind in enumerate(kinds):
        own = [line for line in lines if line["draft"] == kind]
        speculative = [line for line in own if line["method"] == "speculative"]
        for name, style in (("chain", ":"), ("fitted", "-"), ("dynamic", "--")):
            points = sorted({(line["nodes"], line["tau"]) for line in speculative if line["tree"].split()[0] == name})
            label = {"label": kind} if name == "fitted" else {}
            left.plot(*zip(*points, strict=True), style, marker="o", ms=3, color=COLOURS[kind], **label)
        for method, shift, alpha in (("speculative", -0.2, 1.0), ("mirror", 0.2, 0.45)):
            best = max(line["ratio_to_autoregressive"] for line in own if line["method"] == method)
            right.bar(place + shift, best, 0.4, color=COLOURS[kind], alpha=alpha)
    left.set(xlabel="tokens verified a step", ylabel="tokens a step", xscale="log")
    left.set_title("solid: fitted trees, dashed: dynamic, dotted: chains")
    left.set_xticks(ticks := [4, 8, 16, 32], [str(tick) for tick in ticks])
    left.minorticks_off()
    right.set(ylabel="× plain decoding", title="best speed; pale: Mirror-SD")
    right.set_xticks(range(len(kinds)), kinds)
    for axes in (left, right):
        pictures.plain(axes)
    figure.legend(loc="outside lower center", ncols=len(kinds), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
