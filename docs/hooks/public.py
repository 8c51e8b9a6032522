"""What is public, read from the sources: nothing is imported, so that the site builds without jax.

A module is public if it is a package, stands in the ``__all__`` of one, or is named by the README, a page of docs/ or a
notebook. Its public names are those of ``__all__``; without one, all that it defines itself and that has no underscore.
"""

import ast
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PACKAGES = ("jaxfed", "jaxspec")
#: Public whether or not a page names them: what signatures speak of, and the bridge.
ALWAYS = (
    *("jaxfed.core.protocol", "jaxfed.core.samplers", "jaxfed.core.types"),
    *(
        "jaxspec.models.config",
        "jaxspec.verify.target",
        "jaxspec.verify.exits",
        "jaxspec.federated",
        "jaxspec.devices.sharding",
        "jaxspec.models.base",
    ),
    *("jaxspec.zoo", "jaxspec.zoo._grow"),
)
DOTTED = re.compile(rf"\b(?:{'|'.join(PACKAGES)})(?:\.\w+)+")

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


class Name(NamedTuple):
    """A public name.

    Attributes:
        shown: as users write it, ``jaxfed.fedspeed``.
        path: where it is defined, ``jaxfed.algorithms.fedspeed.fedspeed``.
    """

    shown: str
    path: str


@cache
def file_of(module: str) -> Path | None:
    """The source of a module."""
    base = ROOT / module.replace(".", "/")
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


@cache
def tree_of(module: str) -> ast.Module:
    """The parsed source of a module.

    Raises:
        ValueError: no such module.
    """
    path = file_of(module)
    if path is None:
        raise ValueError(f"expected a module of {' or '.join(PACKAGES)}, got {module!r}")
    return ast.parse(path.read_text(encoding="utf-8"))


def exports(module: str) -> list[str] | None:
    """The literal ``__all__`` of a module, if it has one."""
    for node in tree_of(module).body:
        if isinstance(node, ast.Assign) and _targets(node) == ["__all__"]:
            return list(ast.literal_eval(node.value))
    return None


def definitions(module: str) -> dict[str, ast.stmt]:
    """Functions, classes and assignments at the top of a module, by name."""
    found: dict[str, ast.stmt] = {}
    for node in tree_of(module).body:
        names = [node.name] if isinstance(node, Definition) else _targets(node)
        found |= dict.fromkeys(names, node)  # of overloads the last one, which has the docstring
    return found


def path_of(module: str, name: str) -> str:
    """Where a name of a module is defined, through all its imports; a module's own path for a module.

    Raises:
        ValueError: the module does not know the name.
    """
    if name in definitions(module):
        return f"{module}.{name}"
    for node in ast.walk(tree_of(module)):
        for alias in node.names if isinstance(node, ast.ImportFrom) else ():
            if (alias.asname or alias.name) == name and (node.module or "").split(".")[0] in PACKAGES:
                inner = f"{node.module}.{alias.name}"
                further = node.module != module and _knows(node.module, alias.name)
                return path_of(node.module, alias.name) if further else inner
    raise ValueError(f"expected {module} to define or import {name}, which its __all__ holds")


def names(module: str) -> list[Name]:
    """Public names of a module, but for those that are modules."""
    listed = exports(module)
    if listed is None:
        own = definitions(module)
        plain = [name for name in own if not name.startswith("_")]
        listed = [name for name in plain if isinstance(own[name], Definition) or document(module, name)]
    found = [Name(f"{module}.{name}", path_of(module, name)) for name in listed]
    return [name for name in found if file_of(name.path) is None]


def modules() -> list[str]:
    """All public modules; of every package itself first."""
    found = {*PACKAGES, *ALWAYS}
    for package in PACKAGES:
        found |= {path for name in exports(package) or () if file_of(path := path_of(package, name))}
    for text in _texts():
        found |= set(mentioned(text))
    return sorted(found, key=lambda name: (name.split(".")[0], name))


def mentioned(text: str) -> Iterator[str]:
    """Public modules that a text names, in prose, in attributes or in imports."""
    imports = re.findall(r"^\s*from ((?:jaxfed|jaxspec)[\w.]*) import ([\w, ]+)", text, re.MULTILINE)
    yield from (module for module, _ in imports)  # even where its package offers something else by that name
    dotted = [f"{module}.{name.split()[0]}" for module, many in imports for name in many.split(",") if name.strip()]
    for path in [*DOTTED.findall(text), *dotted]:
        parts = path.split(".")
        for length in range(len(parts), 1, -1):
            inner = ".".join(parts[:length])
            if file_of(inner) and not _shadowed(inner):
                yield inner
                break


def document(module: str, name: str) -> str | None:
    """The docstring of a function or class, the string below an assignment, or the ``#:`` lines above it."""
    body, node = tree_of(module).body, definitions(module)[name]
    if isinstance(node, Definition):
        return ast.get_docstring(node)
    following = body[body.index(node) + 1 : body.index(node) + 2]
    if following and isinstance(following[0], ast.Expr) and isinstance(following[0].value, ast.Constant):
        return str(following[0].value.value)
    return comment(file_of(module).read_text(encoding="utf-8").splitlines(), node.lineno)  # type: ignore[union-attr]


def comment(lines: list[str], number: int) -> str | None:
    """The ``#:`` lines right above line ``number`` (from 1)."""
    found: list[str] = []
    for line in reversed(lines[: number - 1]):
        if not line.strip().startswith("#:"):
            break
        found.insert(0, line.strip()[2:].strip())
    return "\n".join(found) or None


def undocumented(name: Name) -> list[str]:
    """What lacks a docstring: the name itself, and public methods of a class."""
    module, _, last = name.path.rpartition(".")
    node = definitions(module)[last]
    methods = node.body if isinstance(node, ast.ClassDef) else []
    lacking = [
        f"{name.shown}.{method.name}"
        for method in methods
        if isinstance(method, Definition) and (method.name == "__call__" or not method.name.startswith("_"))
        if not ast.get_docstring(method)
    ]
    return lacking if document(module, last) else [name.shown, *lacking]


def _knows(module: str, name: str) -> bool:
    return name in definitions(module) or _imports(module, name)


def _imports(module: str, name: str) -> bool:
    nodes = [node for node in tree_of(module).body if isinstance(node, ast.ImportFrom)]
    return any((alias.asname or alias.name) == name for node in nodes for alias in node.names)


def _shadowed(module: str) -> bool:
    """Whether its package offers something else by this name: ``jaxspec.mirror`` is a function."""
    package, _, name = module.rpartition(".")
    return bool(package) and _imports(package, name) and path_of(package, name) != module


def _targets(node: ast.stmt) -> list[str]:
    found = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [target.id for target in found if isinstance(target, ast.Name)]


def _texts() -> Iterator[str]:
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]:
        yield path.read_text(encoding="utf-8")
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        yield from ("".join(cell["source"]) for cell in cells)
