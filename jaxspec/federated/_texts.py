"""Read the users' own texts: one client per user of a JSON Lines file, per file of a folder, or per text file."""

from pathlib import Path

from jaxfed.data.roles import read_roles


def read_texts(path: str | Path) -> dict[str, str]:
    """Read the clients' texts, by client name.

    Args:
        path: a ``.jsonl`` (or ``.jsonl.xz``) file with an object {"user": ..., "text": ...} on every line, one client
            per user; or a folder, one client per ``.txt`` file; or one ``.txt`` file.

    Raises:
        ValueError: a line is not such an object, or there is no text at all.
        OSError: the file does not exist.
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
