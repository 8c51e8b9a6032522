"""The public surface: names of the rooms' ``__all__`` exist, have docstrings, and are on one page of the site each."""

import importlib
import inspect
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = "jaxfed", "jaxspec"
SITE = pytest.mark.peers("mkdocs", "mkdocstrings", "mkdocs_gen_files", "nbconvert", "l2m4m")
#: What a browser fetches by itself.
FETCHED = re.compile(
    r"""<(?:script|img|iframe)[^>]*\ssrc=["']?(?:https?:)?//|<link(?![^>]*\brel=["']?(?:canonical|license))[^>]*\shref=["']?(?:https?:)?//"""
)


#: Packages and subpackages. The adapter to Flower is left to the build of the site: importing flwr warns.
ROOMS = sorted(
    ".".join(path.parent.relative_to(ROOT).parts)
    for package in PACKAGES
    for path in (ROOT / package).rglob("__init__.py")
    if path.parent.name != "flower"
)


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_exists_and_has_a_docstring(room):
    """Values are left to the build of the site: at run time they have the docstring of their type."""
    module = importlib.import_module(room)
    names = module.__all__
    assert len(names) == len(set(names))
    assert inspect.getdoc(module)
    for thing in (getattr(module, name) for name in names):
        if inspect.ismodule(thing) or getattr(thing, "__module__", "").startswith(PACKAGES):
            assert thing.__doc__, f"write the docstring of {thing.__name__} in {room}"
        if inspect.isclass(thing) and thing.__module__.startswith(PACKAGES):
            methods = [each for name, each in vars(thing).items() if name == "__call__" or not name.startswith("_")]
            for each in filter(inspect.isfunction, methods):
                assert each.__doc__, f"write the docstring of {thing.__name__}.{each.__name__} in {room}"


def build(folder: Path, site: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(site)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Every page of the site by its path."""
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT, folder)
    assert done.returncode == 0, done.stderr
    return {path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8") for path in folder.rglob("*.html")}


@SITE
@pytest.mark.slow
def test_every_public_name_is_on_one_page(site):
    anchors = Counter(name for text in site.values() for name in re.findall(r'<h2 id="(jax[\w.]+)"', text))
    assert {count for name, count in anchors.items()} == {1}
    for room in PACKAGES:
        module = importlib.import_module(room)
        for thing in (getattr(module, name) for name in module.__all__):
            if inspect.ismodule(thing):
                assert f"reference/{thing.__name__}.html" in site
            else:
                assert f"{thing.__module__}.{thing.__qualname__}" in anchors


@SITE
@pytest.mark.slow
def test_the_site_needs_no_network(site):
    assert not [path for path, text in site.items() if FETCHED.search(text)]


@SITE
@pytest.mark.slow
def test_a_notebook_is_a_page_with_its_pictures_and_formulas(site):
    page = site["notebooks/01_fedspeed.html"]
    assert "<math" in page
    assert re.search(r'<img[^>]*src="01_fedspeed_\d+_\d+\.png"', page)


@SITE
@pytest.mark.slow
@pytest.mark.parametrize("lacking", ["silent", "Half.method", "BARE"])
def test_a_missing_docstring_stops_the_build(lacking, tmp_path):
    text = {
        "silent": "def silent():\n    pass\n",
        "Half.method": 'class Half:\n    """Text."""\n\n    def method(self):\n        pass\n',
        "BARE": "BARE = 1\n",
    }[lacking]
    for path, content in {
        "jaxfed/__init__.py": f'"""A package."""\n\n__all__ = ["{lacking.partition(".")[0]}"]\n\n{text}',
        "jaxspec/__init__.py": '"""A package."""\n\n__all__ = []\n',
        "benchmarks/page.py": 'def page():\n    return "# Figures"\n',
        "docs/build.py": (ROOT / "docs" / "build.py").read_text(encoding="utf-8"),
    }.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(content)
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    shutil.copytree(ROOT / "docs" / "site", tmp_path / "docs" / "site")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode
    assert f"got none of: jaxfed.{lacking}'" in done.stderr
