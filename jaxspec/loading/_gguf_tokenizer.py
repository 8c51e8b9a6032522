"""The tokenizer, chat template and stop tokens in a GGUF file."""

from typing import Any

from tokenizers import AddedToken, Tokenizer, models, normalizers, processors

from jaxspec.loading._gguf_file import GgufFile
from jaxspec.text import Text
from jaxspec.text.bpe import LLAMA3, SPACE, byte_pairs, piece_decoder

#: Pairs that are merged, a text of two for each.
MERGES = "tokenizer.ggml.merges"
#: Kinds of tokens, as in SentencePiece.
UNKNOWN, CONTROL, USER_DEFINED, BYTE = 2, 3, 4, 6


def text_of(file: GgufFile) -> Text:
    """Return how the model reads and writes; without a tokenizer in the file, only stop tokens and template.

    Raises:
        ValueError: a kind of tokenizer that is not read.
    """
    metadata = file.metadata
    tokens = metadata.get("tokenizer.ggml.tokens")
    ids = {
        name: metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos", "unknown", "padding", "eot")
    }
    stop = tuple(dict.fromkeys(ids[name] for name in ("eos", "eot") if ids[name] is not None))
    rest: dict[str, Any] = {
        "stop": stop,
        "template": metadata.get("tokenizer.chat_template"),
        "defaults": {"eos_token_id": list(stop)} if stop else {},
        "max_length": file.get("context_length"),
    }
    if tokens is None:
        return Text(**rest)
    names = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
    special = {name: tokens[ids[short]] for short, name in names.items() if ids[short] is not None}
    return Text.of(_tokenizer(file, tokens, special), special=special, **rest)


def _tokenizer(file: GgufFile, tokens: list[str], special: dict[str, str]) -> Tokenizer:
    kinds = {"gpt2": _byte_level, "llama": _pieces}
    kind = file.metadata.get("tokenizer.ggml.model")
    if kind not in kinds:
        raise ValueError(f"{file.path}: expected a tokenizer of kind {' or '.join(kinds)}, got {kind}")
    tokenizer = kinds[kind](file, {token: number for number, token in enumerate(tokens)}, special)
    types = file.metadata.get("tokenizer.ggml.token_type") or []
    for token, number in zip(tokens, types, strict=False):
        if number in (CONTROL, USER_DEFINED) or (number == UNKNOWN and kind == "llama"):
            tokenizer.add_tokens([AddedToken(token, normalized=False, special=number != USER_DEFINED)])
    first = kind == "llama" or file.metadata.get("tokenizer.ggml.pre") in LLAMA3
    _add_ends(file, tokenizer, special, first)
    return tokenizer


def _byte_level(file: GgufFile, vocabulary: dict[str, int], special: dict[str, str]) -> Tokenizer:
    """Return byte-pair encoding of bytes, split into words as llama.cpp's name for it says."""
    merges = [(left, right) for left, _, right in (pair.partition(" ") for pair in file.metadata[MERGES])]
    return byte_pairs(vocabulary, merges, file.metadata.get("tokenizer.ggml.pre", "default"))


def _pieces(file: GgufFile, vocabulary: dict[str, int], special: dict[str, str]) -> Tokenizer:
    """Return SentencePiece's byte-pair encoding: pairs are merged by the score of what they make, best first."""
    scores = file.metadata["tokenizer.ggml.scores"]
    pairs = [
        (-scores[number], number, token[:cut], token[cut:])
        for token, number in vocabulary.items()
        for cut in range(1, len(token))
        if token[:cut] in vocabulary and token[cut:] in vocabulary
    ]
    merges = [(left, right) for _, _, left, right in sorted(pairs)]
    unknown = special.get("unk_token")
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    first = file.metadata.get("tokenizer.ggml.add_space_prefix", True)
    tokenizer.normalizer = normalizers.Sequence(
        [*([normalizers.Prepend(SPACE)] if first else []), normalizers.Replace(" ", SPACE)]
    )
    tokenizer.decoder = piece_decoder(first)
    return tokenizer


def _add_ends(file: GgufFile, tokenizer: Tokenizer, special: dict[str, str], first: bool) -> None:
    """Make encoding add the tokens at the beginning and the end of a text that the file wants there."""
    add = {
        name: file.metadata.get(f"tokenizer.ggml.add_{name}_token", name == "bos" and first) for name in ("bos", "eos")
    }
    before, after = ([special[f"{name}_token"]] if add[name] and f"{name}_token" in special else [] for name in add)
    if before or after:
        named = [(token, tokenizer.token_to_id(token)) for token in before + after]
        form = " ".join([*before, "$A", *after])
        tokenizer.post_processor = processors.TemplateProcessing(single=form, special_tokens=named)
