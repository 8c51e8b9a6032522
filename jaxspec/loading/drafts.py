"""Published drafts that read hidden states of the target, EAGLE, EAGLE-3, Medusa and Hydra, and tables of n-grams."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.core.files import reading
from jaxspec.drafts import Draft
from jaxspec.drafts.feature_drafter import FeatureDrafter
from jaxspec.drafts.modules import ModuleNetwork
from jaxspec.loading._draft_files import CONFIG, DraftFiles, some
from jaxspec.loading._draft_rules import INDEX, leaves_of, name_of, rule_for
from jaxspec.loading._eagles import AFTER, BEFORE, TapOptions, is_eagle, is_eagle3, read_eagle, read_eagle3
from jaxspec.loading._heads import is_hydra, is_medusa, read_hydra, read_medusa
from jaxspec.loading._ngrams import is_table, read_table
from jaxspec.loading.hub import folder_of
from jaxspec.loading.parameters import float_dtype
from jaxspec.models.base import Model, Params
from jaxspec.models.dtypes import hidden_like
from jaxspec.models.heads import token_index
from jaxspec.verify.features import check_reads


class Format(NamedTuple):
    """One kind of published drafts.

    Attributes:
        name: of the kind.
        matches: renames the arrays; returns whether they are of this kind.
        read: returns the network, and what its settings came from.
        ignored: known arrays that are not needed.
    """

    name: str
    matches: Callable[[DraftFiles], bool]
    read: Callable[[DraftFiles, Model, TapOptions], tuple[Any, list[str]]]
    ignored: str = ""


FORMATS = (
    Format("EAGLE-3", is_eagle3, read_eagle3),
    Format("Hydra", is_hydra, read_hydra, r"prefix_embeding_layer\.(embed_tokens\.weight|.*rotary_emb\.inv_freq)"),
    Format("Medusa", is_medusa, read_medusa),
    Format("EAGLE", is_eagle, read_eagle),
)


def load_draft(
    path: str | Path,
    target: Model,
    *,
    taps: Sequence[int] | None = None,
    tap_convention: str | None = None,
    dtype: Any = None,
    report: Callable[[str], None] | None = None,
) -> Draft:
    """Read a published draft that reads hidden states of its target, by the names and shapes of its arrays.

    EAGLE-3 as EAGLE, SpecForge and SGLang write it, or as vllm-project/speculators does; EAGLE; Medusa-1 and -2; Hydra
    and Hydra++; tables of n-grams as ``save_draft`` writes them. What is not in the files, such as the embedding, is
    the target's own array.

    Args:
        path: folder with ``config.json`` and ``*.safetensors``, or its name on the hub; ``*.bin`` and ``*.pt`` in a
            folder need torch.
        target: the model that the draft was made for.
        taps: i of the residual streams r_i before layer i that an EAGLE-3 draft reads; default: as in the file, or (2,
            L//2, L−3).
        tap_convention: what the file's layer ids mean: "before" these layers (vLLM, speculators) or "after" them
            (SpecForge, SGLang); default: after, if the first id of a raw file is 1.
        dtype: of the matrices; default: the target's.
        report: called with a line on what was read and where each setting came from; default: standard error.

    Raises:
        ValueError: an unknown kind, arrays that are missing, unexpected or of another shape (named), a draft of another
            target (width, vocabulary, Medusa-2 of another backbone), taps beyond the target, vocabulary maps that
            contradict each other, pickles without torch.

    Source: the formats of SafeAILab/EAGLE, vllm-project/speculators, FasterDecoding/Medusa and zankner/Hydra.
    """
    if tap_convention not in (None, AFTER, BEFORE):
        raise ValueError(f"expected tap_convention {BEFORE!r} or {AFTER!r}, got {tap_convention!r}")
    folder = folder_of(path)
    options = TapOptions(None if taps is None else tuple(int(tap) for tap in taps), tap_convention)
    with reading(folder, "a published draft"):
        if is_table(folder):
            return read_table(folder, target)
        files = DraftFiles(folder)
        format = _format_of(files)
        network, said = format.read(files, target, options)
        check_reads(target.network, network.reads)
        own_dtype = hidden_like(target).dtype if dtype is None else float_dtype(dtype)
        params, shared = _read(network, files, target, own_dtype)
        ignored = files.check_all_used(format.ignored)
    drafter = FeatureDrafter(network).for_target(target.network)
    said += [f"the target's own {', '.join(shared)}"] * bool(shared)
    said += [f"not needed: {some(ignored)}"] * bool(ignored)
    (report or _to_stderr)(f"{format.name} draft {folder}: {'; '.join(said)}")
    return Draft(drafter, params, target.text)


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr)


def is_draft(path: str | Path) -> bool:
    """Return whether a folder holds a draft that ``load_draft`` reads, by the names of its arrays; no array is read.

    Raises:
        ValueError: a folder with config.json but without weights, a damaged file, pickles without torch.
    """
    folder = Path(path)
    if not (folder / CONFIG).is_file():
        return False
    with reading(folder, "a model or a draft"):
        return is_table(folder) or _matching(DraftFiles(folder)) is not None


def _matching(files: DraftFiles) -> Format | None:
    return next((format for format in FORMATS if format.matches(files)), None)


def _format_of(files: DraftFiles) -> Format:
    if (format := _matching(files)) is not None:
        return format
    raise ValueError(
        f"expected arrays of one of {', '.join(format.name for format in FORMATS)}, got {some(sorted(files.names))}; "
        "a language model as a draft is read by load_huggingface"
    )


def _read(network: ModuleNetwork, files: DraftFiles, target: Model, dtype: Any) -> tuple[Params, list[str]]:
    """Return the parameters, and the names of those that are the target's own."""
    leaves = {leaf: _leaf(network, files, leaf, target, dtype) for leaf in leaves_of(network)}
    for leaf, like in leaves_of(network).items():
        if leaves[leaf].shape != like.shape:
            raise ValueError(
                f"expected {leaf} of shape {like.shape}, got {leaves[leaf].shape}: it is of another target; pass the "
                "one that the draft was made for"
            )
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0)))
    params = jax.tree_util.tree_map_with_path(lambda path, _: leaves[name_of(path)], shapes)
    return params, [leaf for leaf, array in leaves.items() if array is _of_target(target, leaf)]


def _leaf(network: Any, files: DraftFiles, leaf: str, target: Model, dtype: Any) -> Any:
    """Return one parameter: that of the files, or the target's own array if it is equal, or the files have none."""
    if leaf == INDEX:
        return jnp.asarray(_vocabulary(files, network))
    rule, own = rule_for(network, leaf), _of_target(target, leaf)
    if own is not None and rule.names[0] not in files:
        return own
    array = rule.join([files[name] for name in rule.names], network.config)
    if own is not None and own.shape == array.shape and np.array_equal(np.asarray(own), array.astype(own.dtype)):
        return own
    return jnp.asarray(array, jnp.float32 if "norm" in leaf else dtype)


def _of_target(target: Model, leaf: str) -> Any:
    """Return the target's array that a draft uses where it has none of its own."""
    params, kind = target.params, leaf.split(".")[0]
    if not isinstance(params, dict) or "embedding" not in params:
        return None
    return {"embedding": params["embedding"], "head": params.get("head", params["embedding"])}.get(
        kind.removesuffix("s")
    )


def _vocabulary(files: DraftFiles, network: Any) -> np.ndarray:
    """Return the index of a draft's vocabulary from offsets and marks."""
    offsets, count = files["d2t"].astype(np.int64), network.scored
    if offsets.shape != (count,):
        raise ValueError(f"expected d2t of {count} offsets, one for each row of lm_head, got {offsets.shape}")
    ids = np.arange(count) + offsets
    if len(set(ids.tolist())) != count or ids.min() < 0 or ids.max() >= network.num_tokens:
        raise ValueError(
            f"expected d2t of offsets to {count} different tokens of {network.num_tokens}, got ids from {ids.min()} to "
            f"{ids.max()}; token j of the draft is token j + d2t[j] of the target"
        )
    if "t2d" in files:
        marks = files["t2d"].astype(bool)
        if marks.shape != (network.num_tokens,):
            raise ValueError(
                f"expected t2d over the {network.num_tokens} tokens of the target, got {marks.shape}; pass the target "
                "that the draft was made for"
            )
        if set(np.flatnonzero(marks)) != set(ids.tolist()):
            raise ValueError(
                f"expected t2d to mark the {count} tokens of d2t, got {int(marks.sum())} marks, others than these; one "
                "of the two belongs to another draft"
            )
    return np.asarray(token_index(ids, network.num_tokens))
