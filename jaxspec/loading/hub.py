"""Models by their name on the Hugging Face hub: only the files that are needed, cached as every tool caches them."""

import re
from pathlib import Path

#: "owner/name".
NAME = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
#: Files of a model or draft that are read.
WANTED = ("*.json", "*.safetensors", "*.jinja", "tokenizer.model", "merges.txt")
#: Copies of the weights in other layouts, and what belongs to training.
UNWANTED = ("consolidated*", "original/*", "onnx/*", "checkpoint-*/*")


def is_hub_name(path: str | Path) -> bool:
    """Return whether this is a name on the hub: "owner/name", and no path that exists."""
    return bool(NAME.fullmatch(str(path))) and not Path(path).exists()


def folder_of(path: str | Path, revision: str | None = None) -> Path:
    """Return a folder: the path itself, or for a name on the hub the folder in its cache, downloaded if it must be.

    Args:
        path: folder, or "owner/name".
        revision: branch, tag or commit on the hub; default: its main branch.

    Raises:
        ValueError: a revision of a folder; a name that the hub does not have, that needs a login, or that cannot be
            reached and is not cached.
        ModuleNotFoundError: the huggingface_hub library is not installed.
    """
    if not is_hub_name(path):
        if revision is not None:
            raise ValueError(f"{path}: expected a name on the hub with revision {revision!r}, got a path; leave it out")
        return Path(path)
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{path}: expected a folder, got no such path; for a model on the hub install huggingface_hub: pip install "
            "'jaxfed-jaxspec[hub]'"
        ) from error
    try:
        found = snapshot_download(
            str(path), revision=revision, allow_patterns=list(WANTED), ignore_patterns=list(UNWANTED)
        )
    except GatedRepoError as error:
        raise ValueError(
            f"{path}: expected a model that may be read, got one whose licence must be accepted first: open its page, "
            "accept, then log in with: hf auth login"
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{path}: expected a folder, or a model on the hub, got neither ({reason:.200}); check the name, the "
            "network, and for a private model the login (hf auth login)"
        ) from error
    return Path(found)
