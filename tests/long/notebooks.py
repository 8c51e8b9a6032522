"""Runs the notebooks; ``make notebooks`` does so in full, in place, and leaves nothing in them but their outputs."""

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
#: tqdm's progress bars want a package that nothing here needs; they are off.
QUIET = {"PYTHONWARNINGS": "ignore:IProgress not found"}


class Kernel(AsyncKernelManager):
    """A kernel of this interpreter, even if another is registered under its name; it listens to no network."""

    transport = "ipc"

    @default("kernel_spec_manager")
    def _native_only(self) -> KernelSpecManager:
        return KernelSpecManager(kernel_dirs=[])


def parameters(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The one cell tagged "parameters"."""
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    return cell


def names(source: str) -> set[str]:
    """Names which a cell of parameters assigns."""
    targets = [target for node in ast.parse(source).body if isinstance(node, ast.Assign) for target in node.targets]
    return {node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)}


def pictures(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """Outputs that are pictures."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return [output for output in outputs if "image/png" in output.get("data", ())]


def executed(path: Path, constants: Mapping[str, Any]) -> nbformat.NotebookNode:
    """The notebook with outputs, run by this interpreter in a folder of its own, with the packages of this checkout.

    Args:
        path: of the notebook.
        constants: set after its cell of parameters, which must have assigned them.

    Raises:
        ValueError: a constant that is no parameter.
        CellExecutionError: a cell that fails, with its traceback.
    """
    notebook = nbformat.read(path, as_version=4)
    cell = parameters(notebook)
    if unknown := constants.keys() - names(cell.source):
        raise ValueError(f"{path.name}: expected parameters out of {sorted(names(cell.source))}, got {sorted(unknown)}")
    original = cell.source
    cell.source = "\n".join([original, *(f"{name} = {value!r}" for name, value in constants.items())])
    outside = {name: value for name, value in one_device().items() if name != "MPLBACKEND"}
    with tempfile.TemporaryDirectory() as folder:
        config = Config({"Kernel": {"connection_file": f"{folder}/kernel.json"}})
        resources = {"metadata": {"path": folder}}
        client = NotebookClient(
            notebook, resources=resources, kernel_manager_class=Kernel, config=config, record_timing=False, timeout=1800
        )
        client.execute(env={**outside, **QUIET, "PYTHONPATH": str(ROOT)})
    cell.source = original
    return notebook


def tidy(notebook: nbformat.NotebookNode) -> None:
    """Removes metadata that differs from run to run, and stores pictures with 256 colours."""
    notebook.metadata["language_info"] = {"name": "python"}
    for output in pictures(notebook):
        small = io.BytesIO()
        Image.open(io.BytesIO(base64.b64decode(output.data["image/png"]))).convert("RGB").quantize(256).save(
            small, "PNG", optimize=True
        )
        output.data["image/png"] = base64.b64encode(small.getvalue()).decode()


def main() -> None:
    """Runs the notebooks whose names begin with one of the arguments, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("begin", nargs="*", help="how names begin, such as 01")
    begin = tuple(parser.parse_args().begin) or ("",)
    for path in NOTEBOOKS:
        if path.name.startswith(begin):
            notebook = executed(path, {})
            tidy(notebook)
            nbformat.write(notebook, path)
            print(f"{path.relative_to(ROOT)}: {os.path.getsize(path) / 1000:.0f} kB")


if __name__ == "__main__":
    main()
