"""Pages that nobody writes: the reference holds every public name, and whoever lacks a docstring stops the build."""

import base64
import importlib
import inspect
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = "jaxfed", "jaxspec"


@pytest.fixture
def hooks(monkeypatch):
    """The modules that MkDocs is given; they import nothing of it."""
    monkeypatch.syspath_prepend(ROOT / "docs" / "hooks")
    return lambda name: importlib.import_module(name)


@pytest.fixture
def sources(hooks, monkeypatch, tmp_path):
    """From a text to a package ``jaxfed`` that has it in a module, as the hooks see it."""
    public = hooks("public")

    def write(text, listed=""):
        (tmp_path / "jaxfed").mkdir()
        (tmp_path / "jaxfed" / "__init__.py").write_text(f'"""A package."""\n{listed}')
        (tmp_path / "jaxfed" / "module.py").write_text(text)
        monkeypatch.setattr(public, "ROOT", tmp_path)
        public.file_of.cache_clear()
        public.tree_of.cache_clear()
        return public

    yield write
    public.file_of.cache_clear()
    public.tree_of.cache_clear()


def test_every_public_name_is_on_a_page(hooks):
    """What the packages export when they are imported, and what is shown, found by reading the sources alone."""
    pages = hooks("reference").pages()
    shown = {path for page in pages.values() for path in re.findall(r"^::: (\S+)$", page, re.MULTILINE)}
    for package in PACKAGES:
        module = importlib.import_module(package)
        for name in module.__all__:
            thing = getattr(module, name)
            if inspect.ismodule(thing):
                assert f"reference/{thing.__name__}.md" in pages, thing.__name__
                assert set(getattr(thing, "__all__", ())) <= set(re.findall(r"\w+", "".join(pages.values()))), name
            else:
                assert f"{thing.__module__}.{thing.__qualname__}" in shown, f"{package}.{name}"


def test_a_name_is_shown_once(hooks):
    pages = hooks("reference").pages()
    shown = [path for page in pages.values() for path in re.findall(r"^::: (\S+)$", page, re.MULTILINE)]
    assert len(shown) == len(set(shown)) > 300


def test_what_users_are_told_of_is_public(hooks):
    """Modules that a guide imports from, as modules and not as the functions of the same name."""
    found = hooks("public").modules()
    assert {
        "jaxfed.algorithms.parts._compose",
        "jaxfed.algorithms.parts.local",
        "jaxspec.training",
        "jaxspec.tune",
        "jaxspec.federated",
    } <= set(found)
    assert "jaxspec.mirror" not in found
    assert list(hooks("public").mentioned("from jaxspec.mirror import mirror, and jaxspec.mirror()")) == [
        "jaxspec.mirror"
    ]


def test_a_missing_docstring_stops_the_build(sources, hooks, monkeypatch):
    text = (
        '"""A module."""\n\ndef told():\n    """Words."""\n\ndef silent():\n    pass\n\nclass Half:\n    """Words."""\n'
    )
    public = sources(text + "\n    def method(self):\n        pass\n\n    def _own(self):\n        pass\n")
    monkeypatch.setattr(public, "modules", lambda: ["jaxfed.module"])
    with pytest.raises(
        ValueError, match=r"got none of: jaxfed\.module\.Half\.method, jaxfed\.module\.silent; write it"
    ):
        hooks("reference").pages()


def test_an_exported_constant_needs_words_too(sources):
    listed = 'from jaxfed.module import BARE, TOLD\n\n__all__ = ["BARE", "TOLD"]\n'
    public = sources('"""A module."""\n#: Words,\n#: and more.\nTOLD = 1\nBARE = 2\n', listed)
    assert public.document("jaxfed.module", "TOLD") == "Words,\nand more."
    found = public.names("jaxfed")
    assert [name.path for name in found] == ["jaxfed.module.BARE", "jaxfed.module.TOLD"]
    assert [public.undocumented(name) for name in found] == [["jaxfed.BARE"], []]


def test_an_export_that_nobody_defines_is_refused(sources):
    public = sources('"""A module."""\n', '__all__ = ["nothing"]\n')
    with pytest.raises(ValueError, match="expected jaxfed to define or import nothing"):
        public.names("jaxfed")


def test_links_follow_their_files_into_the_site(hooks):
    links = hooks("links")
    text = "[a](docs/drafts.md#tracks) ![b](docs/images/c.png) [d](benchmarks/README.md) [e](https://f.org) [g](#h)"
    assert links.moved(text, "README.md", "index.md") == (
        "[a](drafts.md#tracks) ![b](images/c.png) [d](benchmarks/notes.md) [e](https://f.org) [g](#h)"
    )
    assert links.moved("![a](../docs/images/c.png)", "benchmarks/README.md", "benchmarks/notes.md") == (
        "![a](../images/c.png)"
    )
    assert links.moved("[a](../README.md) [b](drafts.md)", "docs/own.md", "own.md") == "[a](index.md) [b](drafts.md)"


def test_a_notebook_becomes_a_page(hooks, tmp_path):
    """Words, code, what it printed, pictures as files; a fence within a cell does not end the block."""
    outputs = [
        {"output_type": "stream", "name": "stdout", "text": ["one\n", "two\n"]},
        {
            "output_type": "display_data",
            "data": {"image/png": base64.b64encode(b"png").decode(), "text/plain": "<Figure>"},
        },
    ]
    cells = [
        {
            "cell_type": "markdown",
            "source": ["# Title\n", "[![Open](https://a.org/b.svg)](https://a.org) ![](../docs/c.png)"],
        },
        {"cell_type": "code", "source": 'print("one")\n"""```"""', "outputs": outputs},
    ]
    (tmp_path / "01_a.ipynb").write_text(json.dumps({"cells": cells}))
    made = hooks("notebooks").pages(tmp_path)
    assert made.pop("notebooks/01_a_1_1.png") == b"png"
    assert made == {
        "notebooks/01_a.md": (
            "# Title\n[Open](https://a.org) ![](../c.png)\n\n"
            '````python\nprint("one")\n"""```"""\n````\n\n```text\none\ntwo\n```\n\n'
            "![01 a 1 1](01_a_1_1.png)\n"
        )
    }
