"""SentencePiece models with added tokens: ids and texts as in ``transformers``."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders
from tokenizers.models import WordLevel

from jaxspec.core.files import reading
from jaxspec.text.bpe import SPACE, piece_decoder

#: Appended to a model file, so that its normalizer neither adds a first space nor removes spaces. In ``ModelProto``
#: field 3 is the normalizer, whose fields 3 and 4 are these switches; the last value of a field wins.
PLAIN_NORMALIZER = b"\x1a\x04\x18\x00\x20\x00"


@dataclass(frozen=True)
class Pieces:
    """A SentencePiece model and the tokens added to it.

    Attributes:
        model: bytes of the ``tokenizer.model`` file.
        added: id → token, in addition to the pieces or instead of one.
        prefix: whether a space is added before the text.
        legacy: whether a space is also added before text that follows an added token.
        start: ids added before a sequence.
        end: ids added after it.
    """

    model: bytes
    added: Mapping[int, AddedToken]
    prefix: bool
    legacy: bool
    start: tuple[int, ...] = ()
    end: tuple[int, ...] = ()

    @cached_property
    def processor(self) -> Any:
        """SentencePiece's processor of the model file."""
        return processor_of(self.model)

    @cached_property
    def inner(self) -> Any:
        """The same pieces for text within a sequence, before which no space is added."""
        return processor_of(self.model + PLAIN_NORMALIZER)

    @cached_property
    def ids(self) -> dict[str, int]:
        """Ids of the added tokens."""
        return {token.content: number for number, token in self.added.items()}

    @cached_property
    def splitter(self) -> Tokenizer:
        """Finds the added tokens; the text between two of them is one unknown word."""
        splitter = Tokenizer(WordLevel({"\0": 0}, unk_token="\0"))
        splitter.add_tokens(list(self.added.values()))
        return splitter

    @cached_property
    def decoder(self) -> decoders.Decoder:
        """Joins pieces, without the space that was added first."""
        return piece_decoder(self.prefix)

    def piece(self, token: int) -> str | None:
        """Return the token as the vocabulary spells it; None beyond the vocabulary."""
        if token in self.added:
            return self.added[token].content
        return self.processor.id_to_piece(int(token)) if 0 <= token < self.processor.get_piece_size() else None

    def encode(self, text: str) -> np.ndarray:
        """Encode to ids [T] int32, with the ids added before and after a sequence."""
        return np.asarray([*self.start, *self._ids(text), *self.end], np.int32)

    def encode_marked(self, text: str) -> np.ndarray:
        """Encode the text alone to ids [T] int32."""
        return np.asarray(list(self._ids(text)), np.int32)

    def _ids(self, text: str) -> Iterator[int]:
        split = self.splitter.encode(text, add_special_tokens=False)
        for number, (begin, end) in zip(split.ids, split.offsets, strict=True):
            if number:
                yield self.ids[str(self.splitter.id_to_token(number))]
            else:
                with_space = self.prefix and (self.legacy or begin == 0)
                yield from (self.processor if with_space else self.inner).encode(text[begin:end])

    def decode(self, tokens: Sequence[int]) -> str:
        """Decode to text without special tokens and without ids beyond the vocabulary."""
        kept = [token for token in map(int, tokens) if not (token in self.added and self.added[token].special)]
        return self.decoder.decode([name for name in map(self.piece, kept) if name is not None])


def read_pieces(path: Path, about: Mapping[str, Any], added: Mapping[int, AddedToken], named: Sequence[str]) -> Pieces:
    """Read a SentencePiece model file.

    Args:
        path: ``tokenizer.model``.
        about: ``tokenizer_config.json``; ``add_bos_token`` and ``legacy`` default to true.
        added: id → token, from ``added_tokens_decoder``.
        named: texts of special tokens.

    Raises:
        ValueError: not a SentencePiece model; an added token with another id than its piece.
        ModuleNotFoundError: the sentencepiece library is not installed.
    """
    model = path.read_bytes()
    with reading(path, "a SentencePiece model"):
        processor = processor_of(model)
    size = processor.get_piece_size()
    own = {processor.id_to_piece(number): number for number in range(size)}
    for number, token in added.items():
        check_id(token.content, own.get(token.content), number)
    control = [piece for piece, number in own.items() if processor.is_control(number) or processor.is_unknown(number)]
    special = {own[name]: name for name in [*control, *named] if name in own}
    tokens = {number: AddedToken(name, normalized=False, special=True) for number, name in special.items()}
    tokens |= {number: unnormalized(token, number in special) for number, token in added.items()}
    ids = {token.content: number for number, token in tokens.items()}
    # Whether the model adds a space before a text.
    prefix = str(processor.id_to_piece(processor.encode("a")[0])).startswith(SPACE)
    return Pieces(
        model,
        tokens,
        prefix and about.get("add_prefix_space") is not False,
        about.get("legacy") is not False,
        _end(about, ids, "bos_token", processor.bos_id(), default=True),
        _end(about, ids, "eos_token", processor.eos_id(), default=False),
    )


def processor_of(model: bytes) -> Any:
    """Return SentencePiece's processor of a model's bytes."""
    try:
        from sentencepiece import SentencePieceProcessor
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "tokenizer.model needs the sentencepiece library: pip install 'jaxfed-jaxspec[huggingface]'"
        ) from error
    return SentencePieceProcessor(model_proto=model)


def unnormalized(token: AddedToken, special: bool) -> AddedToken:
    """Return the token, matched in a text before normalization."""
    flags = {name: getattr(token, name) for name in ("single_word", "lstrip", "rstrip")}
    return AddedToken(token.content, normalized=False, special=token.special or special, **flags)


def check_id(content: str, own: int | None, added: int) -> None:
    """Raise a ValueError if the vocabulary has the token under another id than ``added``."""
    if own is not None and own != added:
        raise ValueError(
            f"expected the token {content!r} at id {added}, as in the added tokens, got id {own} in the vocabulary; "
            "the tokenizer's files belong to different models"
        )


def _end(about: Mapping[str, Any], ids: Mapping[str, int], name: str, own: int, default: bool) -> tuple[int, ...]:
    """Return the ids added at one end of a sequence."""
    adds = about.get(f"add_{name}")
    token = ids.get(content(about.get(name)), own)
    return (token,) if (default if adds is None else adds) and token >= 0 else ()


def content(value: Any) -> str:
    """Return the text of a token, which files store as text or as an object; empty for None."""
    return str((value["content"] if isinstance(value, dict) else value) or "")
