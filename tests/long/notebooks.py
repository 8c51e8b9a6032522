"""Run the notebooks. ``make notebooks`` runs them in full and writes their outputs into the files."""

import argparse
import ast
import base64
import io
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.environment import one_device

# isort: split
import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from PIL import Image
from traitlets import default
from traitlets.config import Config

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
#: tqdm warns that ipywidgets is missing; its bars are off in the notebooks.
QUIET = {"PYTHONWARNINGS": "ignore:IProgress not found"}


class Kernel(AsyncKernelManager):
    """A kernel of this interpreter, even if others are registered under its name; it opens no network port."""

    transport = "ipc"

    @default("kernel_spec_manager")
    def _native_only(self) -> KernelSpecManager:
        return KernelSpecManager(kernel_dirs=[])


def parameters(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Return the cell tagged "parameters"."""
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    return cell


def names(source: str) -> set[str]:
    """Return the names that a cell assigns."""
    targets = [target for node in ast.parse(source).body if isinstance(node, ast.Assign) for target in node.targets]
    return {node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)}


def pictures(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """Return the outputs that are pictures."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return [output for output in outputs if "image/png" in output.get("data", ())]


def executed(path: Path, constants: Mapping[str, Any]) -> nbformat.NotebookNode:
    """Run a notebook with this interpreter and the packages of this checkout, in a temporary folder.

    Args:
        path: of the notebook.
        constants: values set after the cell of parameters, which must assign the same names.

    Returns:
        The notebook with outputs.

    Raises:
        ValueError: a constant is not a parameter.
        CellExecutionError: a cell failed; with its traceback.
    """
    notebook = nbformat.read(path, as_version=4)
    cell = parameters(notebook)
    if unknown := constants.keys() - names(cell.source):
        raise ValueError(f"{path.name}: expected parameters out of {sorted(names(cell.source))}, got {sorted(unknown)}")
    written = cell.source
    cell.source = "\n".join([written, *(f"{name} = {value!r}" for name, value in constants.items())])
    outside = {name: value for name, value in one_device().items() if name != "MPLBACKEND"}
    with tempfile.TemporaryDirectory() as folder:
        config = Config({"Kernel": {"connection_file": f"{folder}/kernel.json"}})
        resources = {"metadata": {"path": folder}}
        client = NotebookClient(
            notebook, resources=resources, kernel_manager_class=Kernel, config=config, record_timing=False, timeout=1800
        )
        client.execute(env={**outside, **QUIET, "PYTHONPATH": str(ROOT)})
    cell.source = written
    return notebook


def tidy(notebook: nbformat.NotebookNode) -> None:
    """Drop metadata that differs between runs, join pieces of one stream, and store pictures with 256 colours."""
    notebook.metadata["language_info"] = {"name": "python"}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = joined(cell.outputs)
    for output in pictures(notebook):
        written = io.BytesIO()
        Image.open(io.BytesIO(base64.b64decode(output.data["image/png"]))).convert("RGB").quantize(256).save(
            written, "PNG", optimize=True
        )
        output.data["image/png"] = base64.b64encode(written.getvalue()).decode()


def joined(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """Join neighbouring outputs of one stream, which would each begin a line of their own."""
    result: list[nbformat.NotebookNode] = []
    for output in outputs:
        before = result[-1] if result else None
        if before is not None and output.output_type == "stream" == before.output_type and before.name == output.name:
            before.text += output.text
        else:
            result.append(output)
    return result


def main() -> None:
    """Run the notebooks whose names start with an argument, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("begin", nargs="*", help="start of a name, such as 01")
    begin = tuple(parser.parse_args().begin) or ("",)
    for path in NOTEBOOKS:
        if path.name.startswith(begin):
            notebook = executed(path, {})
            tidy(notebook)
            nbformat.write(notebook, path)
            print(f"{path.relative_to(ROOT)}: {os.path.getsize(path) / 1000:.0f} kB")


if __name__ == "__main__":
    main()
