"""``jaxspec convert``: published checkpoints into the checkpoint layer's format, and back."""

from pathlib import Path
from typing import Annotated

import tyro

from jaxspec.cli.checks import check_writable
from jaxspec.cli.shared import Flag, report


def convert(
    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")],
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")],
    json: Flag = False,  # noqa: A002  the flag is called --json
) -> None:
    """Convert a published checkpoint or llama2.c file to a checkpoint with digests, or such a checkpoint back.

    Args:
        source: folder with config.json and safetensors, .bin file of llama2.c, or folder written by this command.
        out: new folder.
        json: print one JSON object as the last line.
    """
    from jaxspec.loading.store import convert as convert_model

    check_writable(out)
    report({"wrote": convert_model(source, out), "path": str(out)}, json)
