"""Between text and token ids: a model's tokenizer, its chat template and its stop tokens."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer
from tokenizers.processors import TemplateProcessing

from jaxspec.core.files import read_json, reading
from jaxspec.text._chat import Message, render
from jaxspec.text._pieces import check_id, content, read_pieces
from jaxspec.text.bpe import CLASSES, byte_pairs

#: Files that are copied unchanged.
FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)

#: Name under which ``transformers`` reads ``tokenizer.json`` as it is.
CLASS = "PreTrainedTokenizerFast"


@dataclass(frozen=True)
class Text:
    """How a model reads and writes.

    Attributes:
        encode: text → ids, with the special tokens that the tokenizer adds; None: no tokenizer.
        decode: ids → text, without special tokens and ids beyond the vocabulary; None: no tokenizer.
        stop: ids that end a sequence.
        template: Jinja source that turns messages into a prompt; None: no chat template.
        special: text of special tokens by name (``bos_token``), for the template.
        defaults: contents of ``generation_config.json``.
        files: published names → paths of the files, which ``write`` copies.
        tokenizer: the ``tokenizers`` object, if there is one.
        piece: id → the token as the vocabulary spells it, None beyond the vocabulary.
        encode_marked: text that already has its special tokens → ids; default: ``encode``.
        special_ids: text of a special token, which ``decode`` omits → its id.
        max_length: tokens of the longest text that the model was made for; None: unknown.
    """

    encode: Callable[[str], np.ndarray] | None = None
    decode: Callable[[Sequence[int]], str] | None = None
    stop: tuple[int, ...] = ()
    template: str | None = None
    special: dict[str, str] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    tokenizer: Tokenizer | None = None
    piece: Callable[[int], str | None] | None = None
    encode_marked: Callable[[str], np.ndarray] | None = None
    special_ids: dict[str, int] = field(default_factory=dict)
    max_length: int | None = None

    @staticmethod
    def of(tokenizer: Tokenizer, **rest: Any) -> "Text":
        """Make a ``Text`` from a tokenizer of the ``tokenizers`` library, without its truncation and padding."""
        tokenizer = unlimited(tokenizer)
        added = tokenizer.get_added_tokens_decoder()
        return Text(
            lambda text: np.asarray(tokenizer.encode(text).ids, np.int32),
            lambda ids: tokenizer.decode(list(ids)),
            tokenizer=tokenizer,
            piece=tokenizer.id_to_token,
            encode_marked=lambda text: np.asarray(tokenizer.encode(text, add_special_tokens=False).ids, np.int32),
            special_ids={token.content: number for number, token in added.items() if token.special},
            **rest,
        )

    @staticmethod
    def read(folder: str | Path) -> "Text | None":
        """Read the tokenizer files of a published checkpoint; None if the folder has none.

        Without ``tokenizer.json`` and ``tokenizer.model`` there may still be stop tokens and a chat template.

        Raises:
            ValueError: a file that is damaged or has unexpected contents; names it.
            ModuleNotFoundError: ``tokenizer.model`` needs the sentencepiece library, which is not installed.
        """
        with reading(folder, "files of a tokenizer"):
            return Text._read(Path(folder))

    @staticmethod
    def _read(folder: Path) -> "Text | None":
        about = _json(folder / "special_tokens_map.json") | _json(folder / "tokenizer_config.json")
        defaults = _json(folder / "generation_config.json")
        template, config = folder / "chat_template.jinja", _json(folder / "config.json")
        tokens = {name: value for name, value in about.items() if name[-6:] == "_token" and name[:4] != "add_"}
        rest: dict[str, Any] = {
            "stop": _stops(defaults, config),
            "template": template.read_text("utf-8") if template.is_file() else _template(about.get("chat_template")),
            "special": {name: content(value) for name, value in tokens.items() if value},
            "defaults": defaults,
            "files": {name: folder / name for name in (*FILES, "config.json") if (folder / name).is_file()},
            "max_length": _max_length(config),
        }
        named = _named(about)
        added = _added(about, _json(folder / "added_tokens.json"), named)
        if (folder / "tokenizer.json").is_file():
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            tokenizer.no_truncation()
            tokenizer.no_padding()
            return Text.of(_marked(tokenizer, added, named), **rest)._ended(tokenizer.token_to_id)
        if not (folder / "tokenizer.model").is_file() and (folder / "merges.txt").is_file():
            tokenizer = _byte_pairs(folder, about, rest["special"])
            return Text.of(_marked(tokenizer, added, named), **rest)._ended(tokenizer.token_to_id)
        if (folder / "tokenizer.model").is_file():
            return sentencepiece(folder / "tokenizer.model", about, added, named, **rest)
        return Text(**rest) if rest["stop"] or rest["template"] else None

    def _ended(self, id_of: Callable[[str], int | None], default: int = -1) -> "Text":
        """Return a copy with its ``eos_token``, or else the default, as stop token if its files name none."""
        end = id_of(self.special["eos_token"]) if "eos_token" in self.special else None
        end = default if end is None else end
        return self if self.stop or end < 0 else self.stopping([end])

    def stopping(self, tokens: Sequence[int]) -> "Text":
        """Return a copy with other stop tokens."""
        return replace(self, stop=tuple(tokens))

    def completed(self, other: "Text") -> "Text":
        """Return a copy with the stop tokens and chat template of ``other`` where it has none."""
        chat: dict[str, Any] = (
            {} if self.template else {"template": other.template, "special": other.special | self.special}
        )
        return replace(self, stop=self.stop or other.stop, defaults=self.defaults or other.defaults, **chat)

    def chat(self, messages: Sequence[Message]) -> np.ndarray:
        """Encode a conversation, up to the model's answer.

        Raises:
            ValueError: no tokenizer, no chat template, or messages that the template rejects.
        """
        if self.template is None:
            raise ValueError("expected a model with a chat template, got none; pass the prompt as text")
        encode = self.encode_marked or self.encode
        if encode is None:
            raise ValueError("expected a model with a tokenizer, got none; pass tokenizer=, or the prompt as token ids")
        return encode(render(self.template, messages, self.special))

    def write(self, folder: Path) -> None:
        """Copy the files; without files, write the tokenizer, its special tokens and the chat template."""
        for name, file in self.files.items():
            if name in FILES and file.resolve() != (folder / name).resolve():
                shutil.copyfile(file, folder / name)
        if not self.files and self.tokenizer is not None:
            self.tokenizer.save(str(folder / "tokenizer.json"))
        if not self.files and self.template is not None:
            (folder / "chat_template.jinja").write_text(self.template, "utf-8")
        if not self.files and (self.template is not None or self.special):
            about = self.special if self.tokenizer is None else {"tokenizer_class": CLASS, **self.special}
            (folder / "tokenizer_config.json").write_text(json.dumps(about), "utf-8")


def unlimited(tokenizer: Tokenizer) -> Tokenizer:
    """Return the tokenizer, or a copy without truncation and padding if it has either."""
    if tokenizer.truncation is None and tokenizer.padding is None:
        return tokenizer
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.no_truncation()
    copy.no_padding()
    return copy


def sentencepiece(
    path: str | Path,
    about: dict[str, Any] | None = None,
    added: dict[int, AddedToken] | None = None,
    named: Sequence[str] = (),
    **rest: Any,
) -> Text:
    """Read a SentencePiece model file.

    Encoding adds the beginning-of-sequence token first, as Llama's tokenizers do, unless ``add_bos_token`` is false.

    Args:
        path: ``tokenizer.model``.
        about: contents of ``tokenizer_config.json``.
        added: id → token of ``added_tokens_decoder``.
        named: texts of special tokens.
        rest: other fields of ``Text``.

    Raises:
        ValueError: not a SentencePiece model; an added token with another id than its piece.
        ModuleNotFoundError: the sentencepiece library is not installed.
    """
    pieces = read_pieces(Path(path), about or {}, added or {}, named)
    text = Text(
        pieces.encode,
        pieces.decode,
        piece=pieces.piece,
        encode_marked=pieces.encode_marked,
        special_ids={name: number for name, number in pieces.ids.items() if pieces.added[number].special},
        **{"files": {"tokenizer.model": Path(path)}} | {name: value for name, value in rest.items() if value},
    )
    return text._ended(pieces.ids.get, pieces.processor.eos_id())


def _byte_pairs(folder: Path, about: dict[str, Any], special: dict[str, str]) -> Tokenizer:
    """Return the tokenizer of ``vocab.json`` and ``merges.txt``, by the class that ``tokenizer_config.json`` names."""
    named = str(about.get("tokenizer_class") or "GPT2Tokenizer").removesuffix("Fast")
    if named not in CLASSES:
        raise ValueError(
            f"{folder}: expected tokenizer.json, or vocab.json and merges.txt of {' or '.join(CLASSES)}, got {named}; "
            "write tokenizer.json with transformers: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        )
    lines = (folder / "merges.txt").read_text("utf-8").split("\n")
    pairs = [line.partition(" ") for line in lines if line.strip() and not line.startswith("#version")]
    tokenizer = byte_pairs(
        read_json(folder / "vocab.json"), [(left, right) for left, _, right in pairs], CLASSES[named]
    )
    if about.get("add_bos_token") and "bos_token" in special:
        first = special["bos_token"]
        tokenizer.post_processor = TemplateProcessing(
            single=f"{first} $A", special_tokens=[(first, tokenizer.token_to_id(first))]
        )
    return tokenizer


def _marked(tokenizer: Tokenizer, added: dict[int, AddedToken], named: Sequence[str]) -> Tokenizer:
    """Return the tokenizer with the tokens that only its other files add or mark as special."""
    present = tokenizer.get_added_tokens_decoder()
    for number, token in sorted(added.items()):
        if repr(present.get(number)) != repr(token):
            check_id(token.content, tokenizer.token_to_id(token.content), number)
            tokenizer.add_tokens([token])
            check_id(token.content, tokenizer.token_to_id(token.content), number)
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    plain = [name for name in named if name not in special and tokenizer.token_to_id(name) is not None]
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in plain])
    return tokenizer


def _named(about: dict[str, Any]) -> list[str]:
    """Return the texts of the special tokens that files name."""
    names = [value for name, value in about.items() if name.endswith("_token")]
    more = [about.get(name) or [] for name in ("additional_special_tokens", "extra_special_tokens")]
    names += [value for each in more for value in (each.values() if isinstance(each, dict) else each)]
    return [text for text in dict.fromkeys(content(value) for value in names if isinstance(value, str | dict)) if text]


def _added(about: dict[str, Any], older: dict[str, Any], named: Sequence[str]) -> dict[int, AddedToken]:
    """Return id → token of ``added_tokens_decoder``, or of the older ``added_tokens.json``."""
    if "added_tokens_decoder" not in about:
        return {older[name]: AddedToken(name, normalized=name not in named, special=name in named) for name in older}
    tokens = about["added_tokens_decoder"].items()
    return {int(number): AddedToken(**{k: v for k, v in token.items() if k != "__type"}) for number, token in tokens}


def _json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _stops(defaults: dict[str, Any], config: dict[str, Any]) -> tuple[int, ...]:
    ids = defaults.get("eos_token_id")
    ids = config.get("eos_token_id") if ids is None else ids
    stops = () if ids is None else tuple(ids) if isinstance(ids, list) else (ids,)
    if not all(isinstance(token, int) and not isinstance(token, bool) and 0 <= token < 2**31 for token in stops):
        raise ValueError(f"expected eos_token_id to be a token id or a list of them, got {ids!r:.80}")
    return stops


def _max_length(config: dict[str, Any]) -> int | None:
    most = config.get("max_position_embeddings")
    return most if isinstance(most, int) and not isinstance(most, bool) and 0 < most < 2**31 else None


def _template(value: Any) -> str | None:
    """Return the chat template, or of several the one named "default"."""
    if isinstance(value, list):
        value = {entry["name"]: entry["template"] for entry in value}.get("default")
    if value is not None and not isinstance(value, str):
        raise ValueError(f"expected chat_template to be text, got {value!r:.80}")
    return value
