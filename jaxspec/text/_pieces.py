"""SentencePiece models with the tokens that were added to them, read and written as ``transformers`` does."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders
from tokenizers.models import WordLevel

from jaxspec.core.files import reading

#: What SentencePiece writes for a space.
SPACE = "▁"
#: Appended to a model file: its normalizer neither puts a space first nor removes any. In the protocol buffer
#: ``ModelProto`` field 3 is the normalizer, of which fields 3 and 4 are these switches; the last value of a field wins.
PLAIN_NORMALIZER = b"\x1a\x04\x18\x00\x20\x00"


@dataclass(frozen=True)
class Pieces:
    """A SentencePiece model and the tokens added to it.

    Attributes:
        model: bytes of the ``tokenizer.model`` file.
        added: id → token, in addition to the pieces or in the place of one.
        prefix: whether a space is put before the text.
        legacy: whether one is also put before text that follows an added token.
        start: ids put before a sequence.
        end: ids put after it.
    """

    model: bytes
    added: Mapping[int, AddedToken]
    prefix: bool
    legacy: bool
    start: tuple[int, ...] = ()
    end: tuple[int, ...] = ()

    @cached_property
    def processor(self) -> Any:
        """SentencePiece's own, as the model file says."""
        return processor_of(self.model)

    @cached_property
    def inner(self) -> Any:
        """The same pieces for text within a sequence, before which no space is put."""
        return processor_of(self.model + PLAIN_NORMALIZER)

    @cached_property
    def ids(self) -> dict[str, int]:
        """Ids of the added tokens."""
        return {token.content: number for number, token in self.added.items()}

    @cached_property
    def splitter(self) -> Tokenizer:
        """Finds the added tokens; all between two of them is one unknown word."""
        made = Tokenizer(WordLevel({"\0": 0}, unk_token="\0"))
        made.add_tokens(list(self.added.values()))
        return made

    @cached_property
    def decoder(self) -> decoders.Decoder:
        """Joins pieces: spaces, bytes, and without the space that was put first."""
        first = [decoders.Strip(" ", 1, 0)] if self.prefix else []
        return decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *first])

    def piece(self, token: int) -> str | None:
        """A token's name; None beyond the vocabulary."""
        if token in self.added:
            return self.added[token].content
        return self.processor.id_to_piece(int(token)) if 0 <= token < self.processor.get_piece_size() else None

    def encode(self, text: str) -> np.ndarray:
        """Ids [T] int32, with what is put before and after a sequence."""
        return np.asarray([*self.start, *self._ids(text), *self.end], np.int32)

    def encode_marked(self, text: str) -> np.ndarray:
        """Ids [T] int32 of the text alone."""
        return np.asarray(list(self._ids(text)), np.int32)

    def _ids(self, text: str) -> Iterator[int]:
        split = self.splitter.encode(text, add_special_tokens=False)
        for found, (begin, end) in zip(split.ids, split.offsets, strict=True):
            if found:
                yield self.ids[str(self.splitter.id_to_token(found))]
            else:
                own = self.prefix and (self.legacy or begin == 0)
                yield from (self.processor if own else self.inner).encode(text[begin:end])

    def decode(self, tokens: Sequence[int]) -> str:
        """Text without special tokens and without ids beyond the vocabulary."""
        names = [self.piece(int(token)) for token in tokens if not self._is_special(int(token))]
        return self.decoder.decode([name for name in names if name is not None])

    def _is_special(self, token: int) -> bool:
        return token in self.added and self.added[token].special


def read_pieces(path: Path, about: Mapping[str, Any], added: Mapping[int, AddedToken], named: Sequence[str]) -> Pieces:
    """A SentencePiece model file.

    Args:
        path: ``tokenizer.model``.
        about: what ``tokenizer_config.json`` says; ``add_bos_token`` is true and ``legacy`` is true unless it says so.
        added: id → token, from ``added_tokens_decoder``.
        named: texts of special tokens.

    Raises:
        ValueError: no SentencePiece model; a token added under another id than its piece has.
        ModuleNotFoundError: the sentencepiece library is missing; says how to get it.
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
    prefix = own_prefix(processor) and about.get("add_prefix_space") is not False
    return Pieces(
        model,
        tokens,
        prefix,
        about.get("legacy") is not False,
        _end(about, ids, "bos_token", processor.bos_id(), default=True),
        _end(about, ids, "eos_token", processor.eos_id(), default=False),
    )


def processor_of(model: bytes) -> Any:
    """SentencePiece's processor of a model's bytes."""
    try:
        from sentencepiece import SentencePieceProcessor
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "tokenizer.model needs the sentencepiece library: pip install 'jaxfed-jaxspec[huggingface]'"
        ) from error
    return SentencePieceProcessor(model_proto=model)


def own_prefix(processor: Any) -> bool:
    """Whether the model puts a space before a text."""
    return str(processor.id_to_piece(processor.encode("a")[0])).startswith(SPACE)


def unnormalized(token: AddedToken, special: bool) -> AddedToken:
    """Found in the text as it is written."""
    flags = {name: getattr(token, name) for name in ("single_word", "lstrip", "rstrip")}
    return AddedToken(token.content, normalized=False, special=token.special or special, **flags)


def check_id(content: str, own: int | None, said: int) -> None:
    """Raises a ValueError where the vocabulary has a token under another id."""
    if own is not None and own != said:
        raise ValueError(
            f"expected the token {content!r} at id {said}, as added tokens say, got id {own} in the vocabulary; the "
            "tokenizer's files belong to different models"
        )


def _end(about: Mapping[str, Any], ids: Mapping[str, int], name: str, own: int, default: bool) -> tuple[int, ...]:
    """What is put at one end of a sequence."""
    said = about.get(f"add_{name}")
    token = ids.get(content(about.get(name)), own)
    return (token,) if (default if said is None else said) and token >= 0 else ()


def content(value: Any) -> str:
    """The text of a token, which files write as text or as an object; empty for none."""
    return str((value["content"] if isinstance(value, dict) else value) or "")
