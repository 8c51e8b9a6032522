"""Users' own texts: one client for every user of a file, for every file of a folder, or for a file of plain text."""

from pathlib import Path

from jaxfed.data.roles import read_roles


def read_texts(path: str | Path) -> dict[str, str]:
    """Clients' texts by name.

    Args:
        path: ``.jsonl`` (or ``.jsonl.xz``) with an object {"user": ..., "text": ...} on every line, lines of one user
            being one client; or a folder, of which every ``.txt`` file is one client; or one ``.txt`` file.

    Raises:
        ValueError: a line that is no such object, or nobody's text there.
        OSError: no such file.
    """
    path = Path(path)
    if path.suffix == ".txt" and path.is_file():
        texts = {path.stem: path.read_text(encoding="utf-8-sig")}
    elif path.is_dir():
        texts = {file.stem: file.read_text(encoding="utf-8-sig") for file in sorted(path.glob("*.txt"))}
    else:
        texts = {}
        for role in read_roles(path):
            texts[role.user] = f"{texts[role.user]}\n{role.text}" if role.user in texts else role.text
    if not texts:
        raise ValueError(f"{path}: expected .txt files or lines of JSON with 'user' and 'text', got none")
    return texts
