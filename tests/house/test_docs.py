"""Every Python block of the README and of the pages under docs/ runs; commands accept their arguments."""

import functools
import importlib
import pathlib
import re
import shlex
import subprocess
import sys
import tomllib

import pytest

from tests.support.environment import one_device

ROOT = pathlib.Path(__file__).parents[2]


def blocks(page: pathlib.Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


README = blocks(ROOT / "README.md")
PAGES = [page for page in sorted((ROOT / "docs").glob("**/*.md")) if blocks(page)]
COMMANDS = [
    pytest.param(line, id=f"{page.stem}: {line}")
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md")))
    for block in re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if line.strip()
]
TABLES = [
    pytest.param(block, id=page.stem)
    for page in sorted((ROOT / "docs").glob("**/*.md"))
    for block in re.findall(r"```toml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
]
#: Runs as real processes in tests/jaxfed/flower/test_flower.py.
FLOWER = {"flower-superlink", "flower-supernode", "flwr"}
NEEDS = {"flower": [pytest.mark.peers("flwr")]}
#: Blocks that import one of these run in a test of their own, after the page's other blocks.
OPTIONAL = ("equinox", "haiku")


def optional(block: str) -> str | None:
    """The optional library that a block needs."""
    return next((name for name in OPTIONAL if re.search(rf"^import {name}\b", block, re.MULTILINE)), None)


WITH = [
    pytest.param(page, name, id=f"{page.stem} with {name}", marks=pytest.mark.peers(name))
    for page in PAGES
    for name in OPTIONAL
    if any(optional(block) == name for block in blocks(page))
]


def run(program: str, folder: pathlib.Path) -> str:
    """What a fresh interpreter prints for a program in another folder, without the tests' devices."""
    environment = {**one_device(), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_readme_shows_both_packages():
    """One block of at most twenty lines for each package; the page has at most 150."""
    assert [("import jaxfed" in block or ", jaxfed" in block, "import jaxspec" in block) for block in README] == [
        (True, False),
        (False, True),
    ]
    assert max(block.count("\n") for block in README) <= 20
    assert (ROOT / "README.md").read_text(encoding="utf-8").count("\n") <= 150


def test_the_map_lists_every_room():
    table = (ROOT / "README.md").read_text(encoding="utf-8").partition("### Map of the rooms")[2]
    rows = [line.split("|") for line in table.splitlines() if line.startswith("| ")][1:]
    for column, package in ((1, "jaxfed"), (3, "jaxspec")):
        listed = re.findall(r"`(\w+)`", " ".join(row[column] for row in rows))
        rooms = [path.parent.name for path in (ROOT / package).glob("*/__init__.py")]
        assert sorted(set(listed) - {"plot"}) == sorted(rooms)


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))], ids=lambda page: page.stem
)
def test_python_is_called_python(page: pathlib.Path):
    """Blocks of another name are not run."""
    names = re.findall(r"^ *```(.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(names) <= {"python", "sh", "text", "toml"}


@pytest.mark.parametrize("line", COMMANDS)
def test_command_takes_its_arguments(line: str, monkeypatch: pytest.MonkeyPatch):
    """The command line parses them; what the commands do is tested elsewhere."""
    program, *arguments = [word for word in shlex.split(line, comments=True) if not re.match("[A-Z_]+=", word)]
    if program == "make":
        assert re.search(rf"^{arguments[0]}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    elif program == "python" and arguments[0] == "-m":
        module, called = importlib.import_module(f"{arguments[1]}.__main__"), []
        idle = {name: _instead(command, called) for name, command in module.COMMANDS.items()}
        monkeypatch.setattr(module, "COMMANDS", idle)
        module.main(arguments[2:])
        assert called == [arguments[2]]
    elif program == "python":
        command = [sys.executable, ROOT / arguments[0], "--help"]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert all(word in printed for word in arguments if word.startswith("--"))
    else:
        assert program in FLOWER


def _instead(command, called):
    @functools.wraps(command)
    def record(*args, **kwargs):
        called.append(command.__name__)

    return record


@pytest.mark.parametrize("block", TABLES)
def test_toml_is_read(block: str):
    assert tomllib.loads(block)


@pytest.mark.parametrize("block", README, ids=["jaxfed", "jaxspec"])
def test_block_of_the_readme_runs(block: str, tmp_path: pathlib.Path):
    assert run(block, tmp_path).strip()


@pytest.mark.slow
@pytest.mark.parametrize("page", [pytest.param(page, id=page.stem, marks=NEEDS.get(page.stem, ())) for page in PAGES])
def test_page_runs(page: pathlib.Path, tmp_path: pathlib.Path):
    """The blocks of a page are one program. "first → last" in its output is a loss, and must fall."""
    falls(run("\n".join(block for block in blocks(page) if optional(block) is None), tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize(("page", "name"), WITH)
def test_block_with_another_library_runs(page: pathlib.Path, name: str, tmp_path: pathlib.Path):
    falls(run("\n".join(block for block in blocks(page) if optional(block) in (None, name)), tmp_path))


def falls(printed: str) -> None:
    """Check that the output is not empty, and that every loss "first → last" in it falls."""
    losses = [[float(number) for number in line.split("→")] for line in printed.splitlines() if "→" in line]
    assert all(last < 0.8 * first for first, last in losses), losses
    assert printed.strip()


def test_an_own_algorithm_takes_under_forty_lines():
    """The first block of the page is the whole algorithm, imports included."""
    algorithm, *_ = blocks(ROOT / "docs" / "own_algorithm.md")
    assert "compose(" in algorithm
    assert algorithm.count("\n") < 40
