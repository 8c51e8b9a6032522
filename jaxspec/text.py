"""Between text and token ids: the tokenizer that came with a model, its chat template, what ends a sequence."""

import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from jaxspec.files import read_json, reading

#: One message of a conversation: ``{"role": "user", "content": "…"}``.
Message = dict[str, Any]
#: Files that are carried along as they are.
FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)


@dataclass(frozen=True)
class Text:
    """How a model reads and writes.

    Attributes:
        encode: text → ids, as the tokenizer's own file says, its special tokens included.
        decode: ids → text, special tokens left out.
        stop: ids that end a sequence.
        template: Jinja source that turns messages into a prompt; None: the model has no chat form.
        special: text of special tokens by name (``bos_token``), for the template.
        defaults: ``generation_config.json`` as it is.
        files: published names → where these files lie, to be carried along.
        tokenizer: the ``tokenizers`` object, where there is one.
        piece: id → the token as the tokenizer names it, None beyond its vocabulary.
        encode_marked: text in which special tokens stand already → ids; default: ``encode``.
    """

    encode: Callable[[str], np.ndarray]
    decode: Callable[[Sequence[int]], str]
    stop: tuple[int, ...] = ()
    template: str | None = None
    special: dict[str, str] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    tokenizer: Tokenizer | None = None
    piece: Callable[[int], str | None] | None = None
    encode_marked: Callable[[str], np.ndarray] | None = None

    @staticmethod
    def of(tokenizer: Tokenizer, **rest: Any) -> "Text":
        """A tokenizer of the ``tokenizers`` library."""
        return Text(
            lambda text: np.asarray(tokenizer.encode(text).ids, np.int32),
            lambda ids: tokenizer.decode(list(ids)),
            tokenizer=tokenizer,
            piece=tokenizer.id_to_token,
            encode_marked=lambda text: np.asarray(tokenizer.encode(text, add_special_tokens=False).ids, np.int32),
            **rest,
        )

    @staticmethod
    def read(folder: str | Path) -> "Text | None":
        """What a published checkpoint's folder says about text; None without a tokenizer.

        Raises:
            ValueError: a file that is damaged or says something else than text needs; names it.
            ModuleNotFoundError: ``tokenizer.model`` needs the sentencepiece library; says how to get it.
        """
        with reading(folder, "files of a tokenizer"):
            return Text._read(Path(folder))

    @staticmethod
    def _read(folder: Path) -> "Text | None":
        about = _json(folder / "special_tokens_map.json") | _json(folder / "tokenizer_config.json")
        defaults = _json(folder / "generation_config.json")
        template = folder / "chat_template.jinja"
        rest = {
            "stop": _stops(defaults, _json(folder / "config.json")),
            "template": template.read_text("utf-8") if template.is_file() else _template(about.get("chat_template")),
            "special": {name: _content(value) for name, value in about.items() if name.endswith("_token") and value},
            "defaults": defaults,
            "files": {name: folder / name for name in (*FILES, "config.json") if (folder / name).is_file()},
        }
        if (folder / "tokenizer.json").is_file():
            return Text.of(Tokenizer.from_file(str(folder / "tokenizer.json")), **rest)
        if (folder / "tokenizer.model").is_file():
            return sentencepiece(folder / "tokenizer.model", **rest)
        return None

    def stopping(self, tokens: Sequence[int]) -> "Text":
        """The same, with other tokens that end a sequence."""
        return replace(self, stop=tuple(tokens))

    def chat(self, messages: Sequence[Message]) -> np.ndarray:
        """Ids of a conversation up to where the model is to answer.

        Raises:
            ValueError: the model has no chat template, or refuses these messages.
        """
        if self.template is None:
            raise ValueError("expected a model with a chat template, got none; pass the prompt as text")
        return (self.encode_marked or self.encode)(render(self.template, messages, self.special))

    def write(self, folder: Path) -> None:
        """Carries the files along, or writes the tokenizer that there is."""
        for name, file in self.files.items():
            if name in FILES and file.resolve() != (folder / name).resolve():
                shutil.copyfile(file, folder / name)
        if not self.files and self.tokenizer is not None:
            self.tokenizer.save(str(folder / "tokenizer.json"))


def sentencepiece(path: str | Path, **rest: Any) -> Text:
    """A SentencePiece model file; encoding puts its beginning-of-sequence token first, as Llama's tokenizers do."""
    try:
        from sentencepiece import SentencePieceProcessor
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{Path(path).name} needs the sentencepiece library: pip install 'jaxfed-jaxspec[huggingface]'"
        ) from error
    with reading(path, "a SentencePiece model"):
        processor = SentencePieceProcessor(model_file=str(path))
    start = [processor.bos_id()] if processor.bos_id() >= 0 else []
    own = {"files": {"tokenizer.model": Path(path)}, "stop": (processor.eos_id(),) if processor.eos_id() >= 0 else ()}
    return Text(
        lambda text: np.asarray(start + processor.encode(text), np.int32),
        lambda ids: processor.decode([int(token) for token in ids]),
        piece=lambda token: processor.id_to_piece(token) if token < processor.get_piece_size() else None,
        encode_marked=_marked(processor),
        **own | {name: value for name, value in rest.items() if value},
    )


def _marked(processor: Any) -> Callable[[str], np.ndarray]:
    """Encodes text in which control pieces such as <s> are such; SentencePiece would spell them out."""
    control = {processor.id_to_piece(i): i for i in range(processor.get_piece_size()) if processor.is_control(i)}
    borders = re.compile("(" + "|".join(map(re.escape, control)) + ")")

    def encode(text: str) -> np.ndarray:
        parts = filter(None, borders.split(text) if control else [text])
        ids = [[control[part]] if part in control else processor.encode(part) for part in parts]
        return np.asarray([token for part in ids for token in part], np.int32)

    return encode


def render(template: str, messages: Sequence[Message], special: dict[str, str]) -> str:
    """A chat template over messages, in Jinja's sandbox.

    Raises:
        ValueError: the template refuses the messages.
        ModuleNotFoundError: jinja2 is missing; says how to get it.
    """
    try:
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("chat needs jinja2: pip install 'jaxfed-jaxspec[huggingface]'") from error

    def refuse(words: str) -> None:
        raise TemplateError(words)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    try:
        return environment.from_string(_unmarked(template)).render(
            messages=list(messages), add_generation_prompt=True, tools=None, documents=None, **special
        )
    except (TemplateError, TypeError, ArithmeticError, LookupError, AttributeError, RecursionError) as error:
        raise ValueError(f"expected messages that the chat template takes, got: {error}") from error


def _unmarked(template: str) -> str:
    """The template without the blocks that mark what a model answered, which only training reads."""
    template = re.sub(r"(\{%[-+]?\s*)generation(\s*[-+]?%\})", r"\1if true\2", template)
    return re.sub(r"(\{%[-+]?\s*)endgeneration(\s*[-+]?%\})", r"\1endif\2", template)


def _json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _stops(defaults: dict[str, Any], config: dict[str, Any]) -> tuple[int, ...]:
    found = defaults.get("eos_token_id")
    found = config.get("eos_token_id") if found is None else found
    stops = () if found is None else tuple(found) if isinstance(found, list) else (found,)
    if not all(isinstance(token, int) and not isinstance(token, bool) and 0 <= token < 2**31 for token in stops):
        raise ValueError(f"expected eos_token_id to be a token id or a list of them, got {found!r:.80}")
    return stops


def _content(value: Any) -> str:
    return str(value["content"] if isinstance(value, dict) else value)


def _template(found: Any) -> str | None:
    """A template may be one of several, by name."""
    if isinstance(found, list):
        named = {entry["name"]: entry["template"] for entry in found}
        found = named.get("default")
    if found is not None and not isinstance(found, str):
        raise ValueError(f"expected chat_template to be text, got {found!r:.80}")
    return found
