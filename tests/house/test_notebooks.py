"""The notebooks: executed at toy size, written with public names only, and committed with their outputs."""

import ast
import base64
import io
import re

import nbformat
import pytest
from PIL import Image

from tests.long.notebooks import NOTEBOOKS, ROOT, executed, names, parameters, pictures

#: A real model, which 04 decodes: make smollm2.
SMOLLM2 = ROOT / "models" / "smollm2"
#: Constants with which a notebook runs in seconds, and the number of pictures that it draws.
TOY = {
    "01_fedspeed": (
        {"SAMPLES": 240, "CLIENTS": 12, "COHORT": 4, "ROUNDS": 6, "EVALUATE_EVERY": 3, "SEEDS": 1}
        | {"LOCAL_STEPS": 2, "BATCH": 4, "RADII": (0.3,)},
        5,
    ),
    "02_mirror_decoding": (
        {"BRANCHES": 2, "PROMPTS": 1, "PROMPT_TOKENS": 8, "NEW_TOKENS": 60, "BUDGETS": (2,)} | {"POINTS": 8},
        5,
    ),
    "03_federated_draft": (
        {"CLIENTS": 3, "VALIDATION_CLIENTS": 1, "CLIENT_WINDOWS": 1, "TEST_WINDOWS": 1, "PROMPT_TOKENS": 8}
        | {
            "NEW_TOKENS": 8,
            "WINDOW": 2,
            "ROUNDS": 1,
            "COHORT": 2,
            "LOCAL_STEPS": 1,
            "BATCH": 1,
            "LEARNING_RATES": (0.5,),
        },
        2,
    ),
    "04_real_model": (
        {"FOLDER": str(SMOLLM2), "QUESTIONS": 8, "TEST_QUESTIONS": 1, "NEW_TOKENS": 9}
        | {"MINUTES": 1e-3, "VOCABULARY": 256, "WINDOWS": (2,)}
        | {"ROLES": 4, "ROUNDS": 1, "TOKENS": 8, "ALGORITHMS": {"fedavg": {"client_learning_rate": 0.3}}},
        2,
    ),
}
PUBLIC = {"jax", "jaxfed", "jaxspec", "flax", "numpy", "optax", "matplotlib", "PIL"}
STANDARD = {"importlib", "math", "pathlib"}

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tree_of(cell: nbformat.NotebookNode) -> ast.Module:
    """The syntax tree of a cell, with IPython's magics replaced by `pass`."""
    return ast.parse(re.sub(r"(?m)^(\s*)%.*", r"\1pass", cell.source))


def texts(notebook: nbformat.NotebookNode) -> list[str]:
    """All text of the outputs."""
    outputs = [output for cell in code(notebook) for output in cell.outputs]
    return [output.get("text", "") + "\n".join(output.get("traceback", ())) for output in outputs]


def read(path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def test_every_notebook_has_a_toy_size():
    assert [path.stem for path in NOTEBOOKS] == list(TOY)


@pytest.mark.slow
@every_notebook
def test_runs_at_toy_size(path):
    constants, count = TOY[path.stem]
    if path.stem == "04_real_model" and not (SMOLLM2 / "config.json").is_file():
        pytest.skip("models/smollm2 is absent: make smollm2")
    notebook = executed(path, constants)
    assert len(pictures(notebook)) == count
    assert not [output for cell in code(notebook) for output in cell.outputs if output.get("name") == "stderr"]
    assert all(cell.execution_count for cell in code(notebook))


def test_unknown_parameters_are_refused():
    with pytest.raises(ValueError, match=r"01_fedspeed.ipynb: expected parameters out of .*, got \['ROUND'\]"):
        executed(NOTEBOOKS[0], {"ROUND": 1})


@every_notebook
def test_cells_are_short(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    assert len(code(notebook)) <= 12
    assert max(cell.source.count("\n") for cell in code(notebook)) < 45
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    assert any("$$" in cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert names(parameters(notebook).source) >= TOY[path.stem][0].keys()


@every_notebook
def test_installs_and_opens_on_colab(path):
    """Badge and installation name one repository; nothing is installed if the packages are present."""
    notebook = read(path)
    links = [re.findall(r"github(?:\.com)?/([\w.-]+/[\w.-]+)", cell.source) for cell in notebook.cells]
    assert len({repository for names in links for repository in names}) == 1
    assert f"/blob/main/notebooks/{path.name}" in notebook.cells[0].source
    installing = [cell for cell in code(notebook) if "%pip" in cell.source]
    assert len(installing) == 1
    assert "find_spec" in installing[0].source
    assert "jax==" in installing[0].source


@every_notebook
def test_public_names_only(path):
    modules, used = set(), set()
    for node in [node for cell in code(read(path)) for node in ast.walk(tree_of(cell))]:
        if isinstance(node, ast.ImportFrom):
            modules.add(node.module)
            used |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Attribute):
            used.add(node.attr)
    assert {module.split(".")[0] for module in modules} <= PUBLIC | STANDARD
    assert not [name for dotted in modules | used for name in dotted.split(".") if name.startswith("_")]


@every_notebook
def test_committed_with_outputs(path):
    """Outputs are of one run from top to bottom, with pictures, and contain no path of the machine."""
    notebook, (_, count) = read(path), TOY[path.stem]
    assert [cell.execution_count for cell in code(notebook)] == list(range(1, len(code(notebook)) + 1))
    assert not [output for cell in code(notebook) for output in cell.outputs if output.output_type == "error"]
    images = [base64.b64decode(output.data["image/png"]) for output in pictures(notebook)]
    assert len(images) == count
    assert sum(map(len, images)) < 300_000
    assert all(min(Image.open(io.BytesIO(image)).size) > 100 for image in images)
    text = "\n".join(texts(notebook))
    assert not re.search(r"(?<![\w/])/(?!\s)[\w.]+/", text), "an absolute path"
    assert str(ROOT) not in text
    assert not any("execution" in cell.metadata for cell in notebook.cells)
