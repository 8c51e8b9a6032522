"""``jaxspec convert``: published checkpoints into the checkpoint layer and back."""

from pathlib import Path
from typing import Annotated

import tyro

from jaxspec.cli.checks import check_writable
from jaxspec.cli.shared import Flag, report


def convert(
    source: Annotated[Path, tyro.conf.Positional],
    out: Annotated[Path, tyro.conf.Positional],
    json: Flag = False,  # noqa: A002  the flag is called --json
) -> None:
    """Write a published checkpoint (or llama2.c file) as a verified checkpoint, or one of ours as a published one.

    Args:
        source: folder with config.json and safetensors, llama2.c .bin file, or directory that this command wrote.
        out: new folder.
        json: end with one JSON object on one line.
    """
    from jaxspec.loading.store import convert as convert_model

    check_writable(out)
    report({"wrote": convert_model(source, out), "path": str(out)}, json)
