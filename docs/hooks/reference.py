"""The pages of the reference, written from the public names; mkdocstrings fills in what the docstrings say."""

import ast

import public
from public import Name

INDEX = "reference/index.md"

HEAD = """# API reference

Every public name of both packages, from its docstring. Shapes stand in brackets, such as [B, T];
[`jaxspec.models.base`](jaxspec.models.base.md) says which letter is what.
"""


def pages() -> dict[str, str]:
    """Markdown of every page, by its place in the site; the first is the index.

    Raises:
        ValueError: a public name without a docstring.
    """
    listed = {module: public.names(module) for module in public.modules()}
    lacking = sorted({line for names in listed.values() for name in names for line in public.undocumented(name)})
    if lacking:
        raise ValueError(f"expected a docstring of every public name, got none of: {', '.join(lacking)}; write it")
    homes: dict[str, Name] = {}
    written = {}
    for module in sorted(listed, key=lambda module: "." in module):  # packages first: their names are shown there
        written[module] = _page(module, listed[module], homes)
    return {INDEX: _index(listed), **{f"reference/{module}.md": written[module] for module in listed}}


def navigation(written: dict[str, str]) -> list[str | dict[str, list[str]]]:
    """The entries below "API reference"."""
    index, *others = written
    groups = [
        {package: [page for page in others if page.split("/")[1].split(".")[0] == package]}
        for package in public.PACKAGES
    ]
    return [index, *groups]


def _page(module: str, names: list[Name], homes: dict[str, Name]) -> str:
    elsewhere = [name for name in names if name.path in homes]
    own = [name for name in names if name.path not in homes]
    homes |= {name.path: name for name in own}
    about = _directive(module, members="false", show_root_heading="false", show_root_toc_entry="false")
    links = [f"[`{homes[name.path].shown}`][{name.path}]" for name in elsewhere]
    also = f"Shown elsewhere: {', '.join(links)}.\n" if links else ""
    parts = [_directive(name.path, heading=name.shown, toc_label=name.shown.rpartition(".")[2]) for name in own]
    return "\n".join([f"# {module}\n", about, also, *parts])


def _directive(path: str, **options: str) -> str:
    return "\n".join(
        [f"::: {path}", "    options:", *(f"      {name}: {value}" for name, value in options.items()), ""]
    )


def _index(listed: dict[str, list[Name]]) -> str:
    lines = [HEAD]
    for module, names in listed.items():
        about = (ast.get_docstring(public.tree_of(module)) or "").partition("\n")[0]
        links = ", ".join(f"[`{name.shown.rpartition('.')[2]}`][{name.path}]" for name in names)
        level = "##" if module in public.PACKAGES else "###"
        lines += [f"{level} [{module}]({module}.md)\n", f"{about}\n", f"{links}\n"]
    return "\n".join(lines)
