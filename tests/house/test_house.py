"""The house: what is declared, pinned and shipped agrees with what the packages import and contain."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
import warnings
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PACKAGES = ("jaxfed", "jaxspec")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CORE = [Requirement(text) for text in PROJECT["dependencies"]]
EXTRAS = {extra: [Requirement(text) for text in lines] for extra, lines in PROJECT["optional-dependencies"].items()}
PER_PYTHON = sorted((ROOT / "constraints").glob("py3*.txt"))
PEERS = ROOT / "constraints" / "peers.txt"
OLDEST = ROOT / "constraints" / "oldest.txt"


def pins(path: Path) -> dict[str, str]:
    """Name to version of a constraints file, which may hold nothing but `name==version` and comments."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    pairs = [re.fullmatch(r"([a-z0-9][a-z0-9-]*)==([0-9][0-9a-z.]*)", line) for line in lines]
    assert all(pairs), [line for line, pair in zip(lines, pairs, strict=True) if not pair]
    return {pair[1]: pair[2] for pair in pairs if pair}


def third_party(path: Path) -> tuple[set[str], set[str]]:
    """Top-level names which a file imports when it is loaded, and those which it imports later, inside functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    late = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    imported: tuple[set[str], set[str]] = (set(), set())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = {node.module or ""}
        else:
            continue
        imported[id(node) in late].update(name.split(".")[0] for name in names)
    return imported[0] - sys.stdlib_module_names - {*PACKAGES}, imported[1] - sys.stdlib_module_names - {*PACKAGES}


def modules(requirements: list[Requirement]) -> set[str]:
    """Top-level import names, with jax's own jaxlib and ml_dtypes; only orbax-checkpoint goes by another one."""
    own = {requirement.name.replace("-", "_") for requirement in requirements}
    return own | {"orbax", "jaxlib", "ml_dtypes"}


@pytest.mark.parametrize("path", [*PER_PYTHON, PEERS, OLDEST], ids=lambda path: path.stem)
def test_constraints_hold_versions_only(path):
    text = path.read_text(encoding="utf-8")
    assert "://" not in text
    assert "+" not in text
    assert pins(path)


def test_every_supported_python_has_its_constraints():
    minors = [f"py3{text.rpartition('.')[2]}" for text in PROJECT["classifiers"] if "Python :: 3." in text]
    assert [path.stem for path in PER_PYTHON] == minors


@pytest.mark.parametrize("path", PER_PYTHON, ids=lambda path: path.stem)
def test_what_is_declared_is_pinned_above_its_lower_bound(path):
    pinned = pins(path)
    for requirement in [*CORE, *(each for name in EXTRAS if name != "peers" for each in EXTRAS[name])]:
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), requirement
    for requirement in EXTRAS["peers"]:
        assert requirement.specifier.contains((pinned | pins(PEERS))[canonicalize_name(requirement.name)]), requirement


def test_the_oldest_versions_are_the_lower_bounds():
    pinned = pins(OLDEST)
    for requirement in [*CORE, *EXTRAS["test"], *EXTRAS["dev"]]:
        (bound,) = (Version(spec.version).release for spec in requirement.specifier)
        version = Version(pinned[canonicalize_name(requirement.name)])
        assert version.release[: len(bound)] == bound, f"{requirement}, pinned {version}: raise the lower bound"


@pytest.mark.parametrize("path", PER_PYTHON, ids=lambda path: path.stem)
def test_peers_pin_nothing_twice(path):
    assert not pins(PEERS).keys() & pins(path).keys()


def test_lower_bounds_only():
    bounds = [spec.operator for requirement in [*CORE, *sum(EXTRAS.values(), [])] for spec in requirement.specifier]
    assert set(bounds) == {">="}


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_are_declared(package):
    """An extra is imported where it is needed; only the subpackage that is one extra's imports it at once."""
    for path in sorted((ROOT / package).rglob("*.py")):
        at_once, late = third_party(path)
        own = modules(EXTRAS["flower"]) if path.parent == ROOT / "jaxfed" / "flower" else set()
        known = modules(CORE) | own
        assert at_once <= known, f"{path}: import an extra inside the function that needs it, or declare it"
        assert late <= modules([*CORE, *sum(EXTRAS.values(), [])]), path


@pytest.mark.parametrize("script", PROJECT["scripts"])
def test_commands_exist(script):
    module, _, function = PROJECT["scripts"][script].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_wheel_ships_every_file(tmp_path):
    pytest.importorskip("hatchling", reason="hatchling is not installed: make setup")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    shipped = {name for name in zipfile.ZipFile(wheel).namelist() if name.split("/")[0] in PACKAGES}
    files = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert shipped == files
    assert {"jaxfed/py.typed", "jaxspec/py.typed", "jaxfed/data/shakespeare/roles.jsonl.xz"} <= shipped


def test_the_environment_is_strict():
    assert len(jax.devices()) >= 2, "unset XLA_FLAGS, or give --xla_force_host_platform_device_count=8 in it"
    with pytest.raises(ValueError, match="rank_promotion"):
        jnp.ones((2, 3)) + jnp.ones(3)
    with pytest.raises(ValueError, match="dtype_promotion"):
        jnp.ones(3) + jnp.ones(3, jnp.int32)
    with pytest.raises(DeprecationWarning):
        warnings.warn("old", DeprecationWarning, stacklevel=1)
