"""Files of Medusa's and Hydra's heads: which network they hold."""

from typing import Any

import jax
import numpy as np

from jaxspec.drafts.hydra import Hydra
from jaxspec.drafts.medusa import Medusa
from jaxspec.loading._draft_files import DraftFiles
from jaxspec.loading._eagles import TapOptions, smaller
from jaxspec.loading.families import FAMILIES
from jaxspec.loading.huggingface import rule_of
from jaxspec.models.base import Model
from jaxspec.models.config import Attention, Block, DecoderConfig, Ends, Rotary
from jaxspec.models.quantize import is_int8
from jaxspec.verify.features import Reads

PREFIX = "prefix_embeding_layer."


def is_medusa(files: DraftFiles) -> bool:
    """Rename to vLLM's names; return whether the files hold Medusa's heads."""
    files.rename(r"^medusa_head\.", "")
    blocks = files.matching(r"(\d+)\.(\d+)\.linear\.weight")
    if blocks:
        last = 1 + max(int(found[2]) for found in blocks)
        files.rename(r"^(\d+)\.(\d+)\.linear\.", r"blocks.\1.layers.\2.")
        files.rename(rf"^(\d+)\.{last}\.weight$", r"lm_heads.\1.weight")
    return bool(files.matching(r"blocks\.\d+\.layers\.\d+\.weight"))


def is_hydra(files: DraftFiles) -> bool:
    """Rename to names without numbers of dropout modules; return whether the files hold Hydra's heads."""
    found = files.matching(r"hydra_mlp\.0\.(\d+)\.linear\.weight")
    numbers = sorted(int(each[1]) for each in found)
    for number, own in enumerate(numbers):
        files.rename(rf"^hydra_mlp\.(\d+)\.{own}\.", rf"hydra_mlp.\1.at{number}.")
    files.rename(r"^(hydra_mlp\.\d+\.)at", r"\1")
    files.rename(r"^hydra_lm_head\.(\d+)\.1\.", r"hydra_lm_head.\1.")
    return bool(numbers)


def read_medusa(files: DraftFiles, target: Model, options: TapOptions) -> tuple[Medusa, list[str]]:
    """Return the network of Medusa's heads; their number from the arrays, whatever the configuration says.

    The original repeats one block; its files list it several times. vLLM's files list blocks that may differ.
    """
    _check_taps(options)
    if "model.embed_tokens.weight" in files:
        check_backbone(files, target)
    found = files.matching(r"blocks\.(\d+)\.layers\.(\d+)\.weight")
    depth, blocks = (1 + max(int(each[group]) for each in found) for group in (1, 2))
    heads = len(files.matching(r"lm_heads\.\d+\.weight"))
    repeats = 1
    if blocks > 1 and "num_heads" not in files.config:
        files.rename(rf"^blocks\.(\d+)\.layers\.(?!{blocks - 1}\.)(\d+)\.", r"blocks.\1.repeated.\2.")
        files.skip(*(each[0] for each in files.matching(r"blocks\.\d+\.repeated\..*")))
        files.rename(rf"^blocks\.(\d+)\.layers\.{blocks - 1}\.", r"blocks.\1.layers.0.")
        blocks, repeats = 1, blocks
    config = target.network.config
    has_bias, shared = "blocks.0.layers.0.bias" in files, heads < depth
    network = Medusa(config.vocab_size, config.width, depth, blocks, repeats, has_bias, shared, **stream_of(files))
    if heads not in (0, 1, depth):
        raise ValueError(f"expected an output head for each of {depth} heads, one for all, or none, got {heads}")
    said = f"{depth} heads (counted; config.json says {files.config.get('medusa_num_heads')})"
    own = "their own output heads" if heads == depth else "one output head" if heads else "the target's output head"
    return network, [f"{said}, {own}"]


def check_backbone(files: DraftFiles, target: Model) -> None:
    """Check that the whole model in the files of Medusa-2 is the target, for which alone its heads were made.

    Raises:
        ValueError: another one (names an array that differs).
    """
    families = [family for family in FAMILIES if family.model_type == files.config.get("model_type")]
    if not families:
        raise ValueError(f"expected a Medusa-2 backbone of a supported family, got {files.config.get('model_type')!r}")
    config = target.network.config
    for path, leaf in jax.tree_util.tree_leaves_with_path(target.params, is_leaf=is_int8):
        rule, names = rule_of(families[0], path, config)
        if is_int8(leaf) or (names[0] not in files and config.ends.tied):
            continue
        array = rule.join([files[name] for name in names], config)
        if array.shape != leaf.shape or not np.array_equal(array.astype(leaf.dtype), np.asarray(leaf)):
            raise ValueError(
                f"expected the target that Medusa-2 trained along with its heads, got another {names[0]}; load it from "
                "the same folder with load_huggingface"
            )


def read_hydra(files: DraftFiles, target: Model, options: TapOptions) -> tuple[Hydra, list[str]]:
    """Return the network of Hydra's heads; with a prefix layer it is Hydra++."""
    _check_taps(options)
    if files.config.get("hidden_state_offset"):
        raise ValueError(
            f"expected heads that read the final hidden state, got hidden_state_offset "
            f"{files.config['hidden_state_offset']}"
        )
    sizes = target.network.config
    found = files.matching(r"hydra_mlp\.(\d+)\.(\d+)\.linear\.weight")
    depth, modules = (1 + max(int(each[group]) for each in found) for group in (1, 2))
    inner = [each[0] for each in files.matching(r"hydra_mlp\.\d+\.([1-9]\d*)\.linear\.(weight|bias)")]
    # One module is repeated; the files list it several times.
    files.skip(*(name for name in inner if name.split(".")[2] != "1"))
    prefix = _prefix(files, sizes) if f"{PREFIX}norm.weight" in files else None
    network = Hydra(sizes.vocab_size, sizes.width, depth, modules - 1, prefix, **stream_of(files))
    return network, [f"{depth} heads of {modules} layers, {'with' if prefix else 'without'} a prefix layer"]


def _prefix(files: DraftFiles, sizes: DecoderConfig) -> DecoderConfig:
    """Return the configuration of the prefix layer: heads as the target's, θ always 10,000."""
    hidden = files.shape(f"{PREFIX}layers.0.mlp.down_proj.weight")[1]
    block = Block(epsilon=sizes.block.epsilon, activation=sizes.block.activation)
    heads = sizes.num_heads, sizes.num_kv_heads, sizes.head_size
    return DecoderConfig(
        sizes.vocab_size,
        sizes.width,
        1,
        *heads,
        hidden,
        Attention(Rotary()),
        block,
        Ends(tied=False, embedding_scale=1.0),
    )


def stream_of(files: DraftFiles) -> dict[str, Any]:
    """Return settings of heads that were trained here: on a stream below the last one, on some tokens."""
    taps = (files.config.get("jaxspec") or {}).get("taps")
    own = {"reads": Reads(tuple(taps)), "norm_inputs": "input_norm.weight" in files} if taps else {}
    return own | smaller(files)


def _check_taps(options: TapOptions) -> None:
    if options.taps is not None:
        raise ValueError(f"expected no taps for heads that read the final hidden state, got {options.taps}")
