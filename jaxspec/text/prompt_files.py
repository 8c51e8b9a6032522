"""Files of prompts: one text, or JSON lines of texts, conversations, or Spec-Bench's questions."""

import gzip
import json
import lzma
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxspec.text._chat import Message

#: Keys of a line that hold a prompt, first come first served: a text, or a list.
KEYS = ("prompt", "text", "question", "messages", "turns")


def read_prompts(path: str | Path) -> list[str | list[Message]]:
    """Read prompts: the whole of a text file, or the lines of a ``.jsonl`` file, which may be compressed (gz, xz).

    A line is an object with ``prompt``, ``text`` or ``question`` (a text), ``messages`` (a conversation), or ``turns``
    (Spec-Bench; the first is taken).

    Raises:
        ValueError: no prompt, or a line of another form; names the line.
        OSError: no such file.
    """
    path = Path(path)
    text = _read(path)
    if ".jsonl" not in path.suffixes:
        prompts: list[str | list[Message]] = [text] if text.strip() else []
    else:
        lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
        prompts = [_prompt(f"{path}, line {number}", line) for number, line in lines]
    if not prompts:
        raise ValueError(f"{path}: expected a prompt, got an empty file")
    return prompts


def is_prompt_file(path: str | Path) -> bool:
    """Return whether a file holds whole prompts: its first line of JSON has a key of ``KEYS``, and no ``user``."""
    if not Path(path).is_file() or ".jsonl" not in Path(path).suffixes:
        return False
    try:
        first = json.loads(next(filter(str.strip, _read(Path(path)).splitlines()), "null"))
    except ValueError:
        return False
    return isinstance(first, dict) and "user" not in first and any(key in first for key in KEYS)


def _read(path: Path) -> str:
    openers: dict[str, Any] = {".gz": gzip.open, ".xz": lzma.open}
    try:
        with openers.get(path.suffix, open)(path, "rt", encoding="utf-8") as file:
            return file.read()
    except (UnicodeDecodeError, lzma.LZMAError, gzip.BadGzipFile, EOFError) as error:
        raise ValueError(f"{path}: expected text in UTF-8, got {error}") from error


def conversation_of(prompt: str | Sequence[Message]) -> list[Message]:
    """Return the conversation that a prompt begins: a text is the message of a user."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


def said(prompt: str | Sequence[Message]) -> str:
    """Return what a user says first, without spaces around it: by this, prompts are told apart."""
    messages = conversation_of(prompt)
    return str(next((message.get("content", "") for message in messages if message.get("role") == "user"), "")).strip()


def _prompt(where: str, line: str) -> str | list[Message]:
    try:
        about: Any = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where}: expected JSON, got {error}") from error
    found = next((about[key] for key in KEYS if key in about), None) if isinstance(about, dict) else None
    if isinstance(about, dict) and "turns" in about and isinstance(found, list) and found:
        found = found[0]
    if isinstance(found, str) and found or isinstance(found, list) and all(isinstance(each, dict) for each in found):
        return found
    raise ValueError(f"{where}: expected an object with {', '.join(KEYS)}, got {line:.80}")
