"""Fresh drafts that read hidden states of a target, to be trained."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.drafts.base import Draft
from jaxspec.drafts.eagle import Eagle
from jaxspec.drafts.eagle3 import Eagle3, default_taps
from jaxspec.drafts.feature_drafter import FeatureDrafter
from jaxspec.drafts.hydra import Hydra
from jaxspec.drafts.medusa import Medusa
from jaxspec.drafts.modules import ModuleNetwork
from jaxspec.models.base import Array, Model, Params
from jaxspec.models.config import Attention, Block, DecoderConfig, Ends, Rotary
from jaxspec.models.dtypes import hidden_like
from jaxspec.models.heads import head_over, token_index
from jaxspec.verify.features import Reads, check_reads

Kind = Literal["eagle3", "eagle", "medusa", "hydra", "hydra++"]
KINDS: tuple[str, ...] = get_args(Kind)


class _Wishes(NamedTuple):
    """What a caller asks for: what is read, the draft's vocabulary, the number of heads, sizes of a layer."""

    reads: Reads
    vocabulary: np.ndarray | None
    heads: int
    layer: DecoderConfig


def init_draft(
    kind: Kind,
    target: Model,
    *,
    taps: Sequence[int] | None = None,
    vocabulary: Sequence[int] | np.ndarray | None = None,
    heads: int = 4,
    layer: DecoderConfig | None = None,
    key: Array | None = None,
) -> Draft:
    """Return a draft that reads hidden states of a target, with fresh parameters.

    The embedding is the target's own array, without its scale; what scores tokens starts as the target's head. A layer
    of the draft has the target's rotary positions, in Llama's form.

    Args:
        kind: eagle (also EAGLE-2, which grows trees), eagle3, medusa, hydra, or hydra++.
        target: is not changed.
        taps: i of the residual streams r_i before layer i that the draft reads, for Mirror-SD all up to the exit layer.
            Default: eagle3 (2, L//2, L−3), others the final hidden state. Others read one stream, and norm it.
        vocabulary: ids of the tokens that it drafts (``frequent_tokens``); default: all. Among published formats only
            EAGLE-3's has this; ``load_draft`` reads it for the others too.
        heads: of medusa and hydra, the longest window.
        layer: sizes of the draft's layer; default: the target's. Of another width, for eagle3 alone, the draft has an
            embedding and a head of its own.
        key: of the random parameters; default: of seed 0.

    Raises:
        ValueError: an unknown kind, taps that the target lacks or a number of them that the kind does not read, fewer
            than 7 layers without taps for eagle3, ids that are not different tokens of the target, no head, a layer of
            another width for others than eagle3, a target without an embedding of its width.
    """
    if kind not in KINDS:
        raise ValueError(f"expected a kind out of {', '.join(KINDS)}, got {kind!r}")
    if heads < 1:
        raise ValueError(f"expected heads >= 1, got {heads}")
    _check_ends(target)
    sizes = _layer(target.network.config, layer or target.network.config)
    if kind != "eagle3" and sizes.width != target.network.config.width:
        raise ValueError(f"expected a layer of the target's width for {kind}, got {sizes.width}")
    wishes = _Wishes(_reads(kind, target, taps), _ids(target, vocabulary), heads, sizes)
    network, params = _MAKERS[kind](target, wishes)
    fresh, dtype = network.init(jax.random.key(0) if key is None else key), hidden_like(target).dtype
    fresh = jax.tree.map(lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, fresh)
    return Draft(FeatureDrafter(network).for_target(target.network), {**fresh, **params}, target.text)


def frequent_tokens(tokens: np.ndarray, count: int, num_tokens: int) -> np.ndarray:
    """Return the ``count`` ids below ``num_tokens`` that are most frequent in ``tokens``, ascending; −1 is padding."""
    flat = np.ravel(tokens)
    frequency = np.bincount(flat[flat >= 0], minlength=num_tokens)
    return np.sort(np.argsort(-frequency, kind="stable")[:count]).astype(np.int32)


def _eagle3(target: Model, wishes: _Wishes) -> tuple[ModuleNetwork, Params]:
    config, ids = target.network.config, wishes.vocabulary
    count = config.vocab_size if ids is None else len(ids)
    network = Eagle3(replace(wishes.layer, vocab_size=count), config.vocab_size, config.width, wishes.reads)
    if wishes.layer.width == config.width:
        return network, {"embedding": target.params["embedding"], "head": head_over(target, ids)} | _index(target, ids)
    return network, _index(target, ids)


def _eagle(target: Model, wishes: _Wishes) -> tuple[ModuleNetwork, Params]:
    early, ids = not wishes.reads.final, wishes.vocabulary
    network = Eagle(wishes.layer, wishes.reads, norm_inputs=early, norm_output=early, head_tokens=_count(ids))
    return network, {"embedding": target.params["embedding"], "head": head_over(target, ids)} | _index(target, ids)


def _medusa(target: Model, wishes: _Wishes) -> tuple[ModuleNetwork, Params]:
    config, count, ids = target.network.config, wishes.heads, wishes.vocabulary
    early, small = not wishes.reads.final, _count(ids)
    network = Medusa(config.vocab_size, config.width, count, reads=wishes.reads, norm_inputs=early, head_tokens=small)
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0)))["blocks"]
    still = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, hidden_like(target).dtype), shapes)
    return network, {"blocks": still, "heads": [head_over(target, ids)] * count} | _index(target, ids)


def _hydra(target: Model, wishes: _Wishes, repeats: int = 0, has_prefix: bool = False) -> tuple[ModuleNetwork, Params]:
    config, count, ids = target.network.config, wishes.heads, wishes.vocabulary
    prefix, early = wishes.layer if has_prefix else None, not wishes.reads.final
    network = Hydra(
        config.vocab_size, config.width, count, repeats, prefix, wishes.reads, early, head_tokens=_count(ids)
    )
    params = {"embedding": target.params["embedding"], "heads": [head_over(target, ids)] * count}
    return network, params | _index(target, ids)


#: From a kind to its network, and those parameters that do not start at random. Hydra++ has heads of four layers.
_MAKERS: dict[str, Callable[[Model, _Wishes], tuple[Any, Params]]] = {
    "eagle3": _eagle3,
    "eagle": _eagle,
    "medusa": _medusa,
    "hydra": _hydra,
    "hydra++": lambda target, wishes: _hydra(target, wishes, 3, has_prefix=True),
}


def _layer(target: DecoderConfig, sizes: DecoderConfig) -> DecoderConfig:
    """Return the configuration of one layer of Llama's form, with the target's vocabulary, rotary positions and ε."""
    return DecoderConfig(
        target.vocab_size,
        sizes.width,
        1,
        sizes.num_heads,
        sizes.num_kv_heads,
        sizes.head_size,
        sizes.hidden,
        Attention(target.attention.rotary or Rotary()),
        Block(epsilon=target.block.epsilon),
        Ends(tied=False, embedding_scale=1.0),
    )


def _count(ids: np.ndarray | None) -> int | None:
    return None if ids is None else len(ids)


def _index(target: Model, ids: np.ndarray | None) -> Params:
    return {} if ids is None else {"index": token_index(ids, target.network.config.vocab_size)}


def _check_ends(target: Model) -> None:
    config, params = target.network.config, target.params
    table = params.get("embedding") if isinstance(params, dict) else None
    if table is None or table.shape != (config.vocab_size, config.width):
        raise ValueError(
            f"expected a target with an embedding of {config.vocab_size} tokens by its width {config.width}, got "
            f"{'none' if table is None else table.shape}; draft with a language model instead"
        )


def _reads(kind: str, target: Model, taps: Sequence[int] | None) -> Reads:
    if taps is None:
        reads = Reads(default_taps(target.network.config.num_layers)) if kind == "eagle3" else Reads(final=True)
    else:
        reads = Reads(tuple(int(tap) for tap in taps))
    if taps is not None and not (len(taps) == 1 or (taps and kind == "eagle3")):
        raise ValueError(f"expected {'taps' if kind == 'eagle3' else 'one tap'} for {kind}, got {tuple(taps)}")
    check_reads(target.network, reads)
    return reads


def _ids(target: Model, vocabulary: Sequence[int] | np.ndarray | None) -> np.ndarray | None:
    """Return the ids of a vocabulary smaller than the target's, ascending; None for all."""
    if vocabulary is None:
        return None
    ids, count = np.unique(np.asarray(vocabulary)), target.network.config.vocab_size
    whole = np.issubdtype(ids.dtype, np.integer) and len(ids) > 0
    if not whole or len(ids) != len(vocabulary) or ids[0] < 0 or ids[-1] >= count:
        raise ValueError(
            f"expected a vocabulary of different ids from 0 to {count - 1}, got {len(vocabulary)} ids, {len(ids)} of "
            "them different"
        )
    return None if len(ids) == count else ids.astype(np.int32)
