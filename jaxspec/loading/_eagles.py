"""EAGLE and EAGLE-3 files: which network they hold."""

from typing import Any, NamedTuple

from jaxspec.drafts.eagle import Eagle
from jaxspec.drafts.eagle3 import Eagle3, default_taps
from jaxspec.loading._draft_files import DraftFiles
from jaxspec.loading._llama import activation_of
from jaxspec.loading._rope import rotary_of
from jaxspec.loading._unsupported import SLIDING
from jaxspec.models.base import Model
from jaxspec.models.config import Attention, Block, DecoderConfig, Ends
from jaxspec.verify.features import Reads

#: Settings of a draft of vllm-project/speculators; all are off in other files.
FLAGS = ("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output")
#: Names of the convention of layer ids: outputs of these layers, or the residual stream before them.
AFTER, BEFORE = "after", "before"


class TapOptions(NamedTuple):
    """What a caller says of taps: the taps themselves, or how the layer ids of the file are meant."""

    taps: tuple[int, ...] | None = None
    convention: str | None = None


def is_eagle3(files: DraftFiles) -> bool:
    """Rename to the names of vllm-project/speculators; return whether the files hold an EAGLE-3 draft."""
    files.rename(r"^midlayer\.", "layers.0.")
    return "layers.0.hidden_norm.weight" in files


def is_eagle(files: DraftFiles) -> bool:
    """Rename to EAGLE's names; return whether the files hold an EAGLE draft."""
    files.rename(r"^fusion_fc\.", "fc.")
    files.rename(r"^transformer\.(layers\.0\.)?", "layers.0.")
    return "fc.weight" in files and "layers.0.mlp.down_proj.weight" in files


def read_eagle3(files: DraftFiles, target: Model, options: TapOptions) -> tuple[Eagle3, list[str]]:
    """Return the network of an EAGLE-3 draft, and what its settings came from."""
    published, inner = files.config, files.config.get("transformer_layer_config")
    flags = {name: bool(published.get(name, False)) for name in FLAGS} if inner else dict.fromkeys(FLAGS, False)
    if inner is None and published.get("norm_output") is False:
        raise ValueError("expected a draft with a norm before its head, got norm_output: false in a raw config.json")
    width, rows = files.shape("norm.weight")[0], files.shape("lm_head.weight")[0]
    config = layers_of(files, inner or published, width, 2 * width, rows)
    reads, source = _reads(files, target, options)
    sizes = target.network.config
    network = Eagle3(config, sizes.vocab_size, sizes.width, reads, **flags)
    said = ", ".join(name for name, value in flags.items() if value) or "no flags"
    return network, [source, f"{said} ({'speculators' if inner else 'raw'} config.json)", rotary_text(config)]


def read_eagle(files: DraftFiles, target: Model, options: TapOptions) -> tuple[Eagle, list[str]]:
    """Return the network of an EAGLE draft, and what its settings came from."""
    if options.taps is not None:
        raise ValueError(f"expected no taps for an EAGLE draft, which reads the final hidden state, got {options.taps}")
    width, sizes = files.shape("fc.weight")[0], target.network.config
    config = layers_of(files, files.config, width, width, sizes.vocab_size)
    has_bias = "fc.bias" in files
    if has_bias != bool(files.config.get("bias", True)):
        raise ValueError(
            f"expected fc.bias as bias of config.json says (absent: true), got it {'in' if has_bias else 'not in'} the "
            "files; config.json belongs to other weights"
        )
    if has_bias and not files.shape("fc.bias") == (width,):
        raise ValueError(f"expected fc.bias of {width} numbers, got {files.shape('fc.bias')}")
    norms = {"norm_inputs": "enorm.weight" in files, "norm_output": "pre_lm_head_layernorm.weight" in files}
    taps = (files.config.get("jaxspec") or {}).get("taps")
    network = Eagle(
        config, Reads(tuple(taps)) if taps else Reads(final=True), fc_bias=has_bias, **norms, **smaller(files)
    )
    return network, [
        f"reads {f'tap {taps}' if taps else 'the final hidden state'}, fc {'with' if has_bias else 'without'} bias",
        rotary_text(config),
    ]


def layers_of(files: DraftFiles, published: dict[str, Any], width: int, inputs: int, rows: int) -> DecoderConfig:
    """Return the configuration of a draft's layers: sizes from shapes, numbers of heads, ε and positions from the file.

    Args:
        files: of the draft.
        published: Llama's names.
        width: D' of the draft.
        inputs: features that the first layer's attention reads.
        rows: of its head.

    Raises:
        ValueError: shapes that contradict each other, or the configuration.
    """
    attention, count = "layers.0.self_attn.", int(published["num_attention_heads"])
    queries, keys = (files.shape(f"{attention}{letter}_proj.weight") for letter in "qk")
    kv_heads = int(published.get("num_key_value_heads") or count)
    size, fits = queries[0] // count, queries[0] % count == 0
    if not fits or keys[0] != kv_heads * size or queries[1] != inputs or keys[1] != inputs:
        raise ValueError(
            f"expected queries [{count}·h, {inputs}] and keys [{kv_heads}·h, {inputs}], got {queries} and {keys}; "
            "config.json belongs to other weights"
        )
    numbers = {int(found[1]) for found in files.matching(r"layers\.(\d+)\..*")}
    windowed = _windowed(published)
    return DecoderConfig(
        vocab_size=rows,
        width=width,
        num_layers=len(numbers),
        num_heads=count,
        num_kv_heads=kv_heads,
        head_size=size,
        hidden=files.shape("layers.0.mlp.down_proj.weight")[1],
        attention=Attention(
            rotary_of(published),
            window=published.get("sliding_window") if any(windowed) else None,
            windowed=windowed if any(windowed) else (),
            qkv_bias=f"{attention}q_proj.bias" in files,
            out_bias=f"{attention}o_proj.bias" in files,
            norm_heads=f"{attention}q_norm.weight" in files,
        ),
        block=Block(
            epsilon=published.get("rms_norm_eps", 1e-6),
            activation=activation_of(published),
            bias="layers.0.mlp.down_proj.bias" in files,
        ),
        ends=Ends(tied=False, embedding_scale=1.0),
    )


def smaller(files: DraftFiles) -> dict[str, Any]:
    """Return the number of tokens that the heads score, of a draft that was trained here on some of them."""
    return {"head_tokens": files.shape("d2t")[0]} if "d2t" in files else {}


def _windowed(published: dict[str, Any]) -> tuple[bool, ...]:
    """Return which layers have the sliding window; a draft's number among its target's layers is not in its files."""
    types, window = published.get("layer_types") or [], published.get("sliding_window")
    if window and published.get("use_sliding_window") and not types:
        raise ValueError(
            f"expected layer_types that say which layers have the window of {window} positions, got none; add "
            'layer_types ("sliding_attention" or "full_attention" for each layer) to config.json, or set '
            "use_sliding_window: false"
        )
    return tuple(kind == SLIDING for kind in types)


def rotary_text(config: DecoderConfig) -> str:
    """Return what to say of rotary positions."""
    rotary = config.attention.rotary
    assert rotary is not None
    return f"rotary positions of its own, θ {rotary.theta:g}" + (f", {rotary.scaling}" if rotary.scaling else "")


def _reads(files: DraftFiles, target: Model, options: TapOptions) -> tuple[Reads, str]:
    """Return what an EAGLE-3 draft reads, and where that is said."""
    eagle = files.config.get("eagle_config") or {}
    if eagle.get("use_aux_hidden_state") is False:
        return Reads(final=True), "reads the final hidden state (eagle_config of config.json)"
    columns, width = files.shape("fc.weight")[1], target.network.config.width
    taps, source = _taps(files, target, eagle, options)
    if columns != len(taps) * width:
        raise ValueError(
            f"expected fc.weight over {len(taps)} hidden states of {width} features each, got {columns} columns; "
            "pass the target that the draft was made for, or its taps="
        )
    if list(taps) != sorted(set(taps)):
        raise ValueError(f"expected ascending taps, got {taps}")
    return Reads(taps), f"taps {taps} ({source})"


def _taps(files: DraftFiles, target: Model, eagle: dict[str, Any], options: TapOptions) -> tuple[tuple[int, ...], str]:
    count = target.network.config.num_layers
    if options.taps is not None:
        return tuple(options.taps), "as passed"
    own = "eagle_aux_hidden_state_layer_ids"
    ids = eagle.get(own) or files.config.get(own)
    if ids is None:
        return default_taps(count), "default: before layers 2, L//2 and L-3"
    is_ours = "transformer_layer_config" in files.config
    guessed = AFTER if not is_ours and ids[0] == 1 else BEFORE
    convention = options.convention or guessed
    shift = int(convention == AFTER)
    source = "as passed" if options.convention else "speculators" if is_ours else "by the first id"
    return tuple(int(each) + shift for each in ids), f"ids {ids} of config.json, {convention} these layers, {source}"
