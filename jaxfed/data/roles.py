"""The Shakespeare roles: natural clients of federated text experiments, embedded in the package (public domain).

37 plays by speaking role, 1,347 roles, 4.35 million characters of a 77-character alphabet. A role is one client.
"""

import codecs
import json
import lzma
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path


@dataclass(frozen=True)
class Role:
    """One speaking role of one play.

    Attributes:
        id: row number in the data file; the stable name of a client.
        user: ``play:ROLE``.
        text: all speeches of the role, in order, separated by newlines.
    """

    id: int
    user: str
    text: str

    @property
    def play(self) -> str:
        """The play the role belongs to."""
        return self.user.split(":", 1)[0]


def read_roles(path: str | Path | None = None, min_chars: int = 0) -> tuple[Role, ...]:
    """Read roles from ``.jsonl`` or ``.jsonl.xz`` (default: the embedded Shakespeare file), by id.

    Args:
        path: file with one JSON object per line, keys ``user`` and ``text``.
        min_chars: roles with fewer characters are left out; ids do not change by that.

    Raises:
        ValueError: a line is no JSON object with ``user`` and ``text``; the message names file and line.
    """
    source = resources.files("jaxfed.data") / "shakespeare" / "roles.jsonl.xz" if path is None else Path(path)
    raw = source.read_bytes()
    lines = lines_of(lzma.decompress(raw) if raw[:6] == b"\xfd7zXZ\x00" else raw)
    roles = (_role(number, line, str(source)) for number, line in enumerate(lines))
    return tuple(role for role in roles if len(role.text) >= min_chars)


def lines_of(raw: bytes) -> list[bytes]:
    """Split the lines of a JSON Lines file, with or without a byte order mark.

    Only a line feed ends a line: ``splitlines`` would also cut at characters that JSON allows inside a string (U+2028).
    """
    raw = raw.removeprefix(codecs.BOM_UTF8).removesuffix(b"\n")
    return raw.split(b"\n") if raw else []


def _role(number: int, line: bytes, source: str) -> Role:
    try:
        record = json.loads(line.decode())
        user, text = record["user"], record["text"]
        if not isinstance(user, str) or not isinstance(text, str):
            raise TypeError("user and text must be strings")
        return Role(number, user, text)
    except (ValueError, KeyError, TypeError) as error:
        got = line[:60].decode(errors="replace")
        raise ValueError(
            f"{source}, line {number + 1}: expected a JSON object with 'user' and 'text', got {got!r}; remove or "
            "repair the line"
        ) from error


def split_roles(roles: Iterable[Role], held_out: Iterable[int]) -> tuple[tuple[Role, ...], tuple[Role, ...]]:
    """Split by role: (roles that stay in, roles whose id is in ``held_out``), both in order of id.

    Raises:
        ValueError: an id of ``held_out`` is not among ``roles``.
    """
    roles, out = tuple(roles), set(held_out)
    unknown = out - {role.id for role in roles}
    if unknown:
        raise ValueError(f"expected ids of the {len(roles)} roles, got unknown ids {sorted(unknown)[:5]}")
    return tuple(r for r in roles if r.id not in out), tuple(r for r in roles if r.id in out)


def split_text(text: str, fraction: float = 0.8) -> tuple[str, str]:
    """Split within a role: (first part, unseen rest), cut at the last line break before ``fraction`` of the text.

    Raises:
        ValueError: ``fraction`` is outside (0, 1), or a part would be empty.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"expected a fraction inside (0, 1), got {fraction}")
    cut = text.rfind("\n", 0, int(len(text) * fraction)) + 1 or int(len(text) * fraction)
    if not 0 < cut < len(text):
        raise ValueError(f"expected a text long enough to be cut in two, got {len(text)} characters")
    return text[:cut], text[cut:]
