"""Who may import whom: the contracts in pyproject.toml, and the three rules that no contract can express."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("importlinter", reason="import-linter is not installed: make setup")
import grimp  # noqa: E402

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    """Modules of both packages and their direct imports."""
    return grimp.build_graph("jaxfed", "jaxspec", cache_dir=None)


def private_imports(graph: grimp.ImportGraph) -> list[str]:
    """Imports of a private file, or folder, from outside the room that holds it."""
    wrong = []
    for importer in graph.modules:
        for imported in graph.find_modules_directly_imported_by(importer):
            parts = imported.split(".")
            private = [index for index, part in enumerate(parts) if part.startswith("_")]
            if private and not f"{importer}.".startswith(".".join(parts[: private[0]]) + "."):
                wrong.append(f"{importer} imports {imported}")
    return sorted(wrong)


def python(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a program in a fresh interpreter."""
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_contracts():
    done = python("from importlinter.cli import lint_imports_command; lint_imports_command()", "--no-cache")
    assert done.returncode == 0, done.stdout + done.stderr


def test_private_files_are_imported_in_their_room_only(graph):
    assert not private_imports(graph)


def test_parts_import_no_algorithm(graph):
    parts = "jaxfed.algorithms.parts"
    imported = graph.find_upstream_modules(parts, as_package=True)
    assert f"{parts}._local" in graph.modules
    assert not {name for name in imported if name.startswith("jaxfed.algorithms") and not name.startswith(parts)}


def test_jaxfed_runs_without_jaxspec(graph):
    """Imports made at run time are not in the graph; a fresh interpreter shows them."""
    modules = sorted(name for name in graph.modules if name.startswith("jaxfed") and not name.endswith("__main__"))
    if importlib.util.find_spec("flwr") is None:
        modules = [name for name in modules if not name.startswith("jaxfed.flower")]
    program = f"""
import importlib, sys
for name in {modules!r}: importlib.import_module(name)
sys.exit(", ".join(name for name in sys.modules if name.split(".")[0] == "jaxspec") or None)
"""
    done = python(program)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("importer", "imported", "wrong"),
    [
        ("jaxspec.zoo.pairs", "jaxspec.models._decoder", True),
        ("jaxspec.modelsandmore", "jaxspec.models._decoder", True),
        ("jaxfed.data._skew.inner", "jaxfed.data._skew", False),
        ("jaxspec.models", "jaxspec.models._decoder", False),
        ("jaxspec.methods._mirror", "jaxspec.methods.candidates", False),
    ],
)
def test_the_rule_of_private_files(importer, imported, wrong):
    graph = grimp.ImportGraph()
    graph.add_import(importer=importer, imported=imported)
    assert bool(private_imports(graph)) == wrong
