"""``jaxspec convert``: published checkpoints into the checkpoint layer's format, and back; GGUF to published ones."""

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
    """Convert a published checkpoint or llama2.c file to a checkpoint with digests; that or GGUF to a published one.

    Args:
        source: folder with config.json and safetensors, .gguf file, .bin file of llama2.c, or folder that this command
            wrote.
        out: new folder.
        json: print one JSON object as the last line.
    """
    from jaxspec.loading.store import convert as convert_model

    check_writable(out)
    report({"wrote": convert_model(source, out), "path": str(out)}, json)
