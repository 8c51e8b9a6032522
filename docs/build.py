"""Run by mkdocs-gen-files. Pages keep their paths in the repository, so that links work in both; then the reference."""

import os.path
import re
import sys
from pathlib import Path

import griffe
import mkdocs_gen_files
from nbconvert import MarkdownExporter

ROOT = Path(__file__).parents[1]
PACKAGES = ("jaxfed", "jaxspec")
FILES = ("*.md", "docs/*.md", "docs/images/*", "benchmarks/README.md", "tests/support/*_reference.py")
HEAD = """# API reference

Every public name of both packages, from its docstring. Shapes stand in brackets, such as [B, T];
[`jaxspec.models`](jaxspec.models.md) explains the letters.
"""

sys.path.append(str(ROOT / "benchmarks"))
from page import page as figures  # noqa: E402


def write(path: str, content: str | bytes) -> None:
    """Add one file to the site."""
    with mkdocs_gen_files.open(path, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)


def repository_files() -> None:
    """Pages and pictures as they are, notebooks with their committed outputs, the page of figures; nothing is run."""
    for path in (path for pattern in FILES for path in sorted(ROOT.glob(pattern))):
        content = path.read_bytes()
        if path.suffix == ".md":
            content = re.sub(rb"(notebooks/\w+)\.ipynb\)", rb"\1.md)", content)
        write(path.relative_to(ROOT).as_posix(), content)
    for path in sorted(ROOT.glob("notebooks/*.ipynb")):
        text, resources = MarkdownExporter().from_filename(str(path), {"unique_key": path.stem})
        badges_as_words = re.sub(r"!\[([^\]]*)\]\(https?://[^)]*\)", r"\1", text)
        write(f"notebooks/{path.stem}.md", badges_as_words)
        for name, picture in resources["outputs"].items():
            write(f"notebooks/{name}", picture)
    write("benchmarks/figures.md", figures())


def public_modules(package: griffe.Module) -> list[griffe.Module]:
    """The package, its rooms (subpackages without an underscore), and the modules that its ``__all__`` lists."""
    listed = set(map(str, package.exports or ()))
    inner = [each for name, each in sorted(package.modules.items()) if not each.is_alias and not name.startswith("_")]
    public = [each for each in inner if each.is_subpackage or each.name in listed or package.parent is None]
    return [package, *(deeper for each in public for deeper in public_modules(each))]


def public_names(module: griffe.Module) -> dict[str, griffe.Object]:
    """What ``__all__`` lists, modules aside; without one functions, classes, documented values, no underscore."""
    if module.exports is None:
        own = {name: each for name, each in module.members.items() if not each.is_alias and not name.startswith("_")}
        public = {name: each for name, each in own.items() if not each.is_attribute or each.has_docstring}
    else:
        listed = {name: module[name] for name in map(str, module.exports)}
        public = {name: each.final_target if each.is_alias else each for name, each in listed.items()}
    return {name: each for name, each in public.items() if not each.is_module}


def undocumented(target: griffe.Object) -> list[str]:
    """What lacks a docstring: the name itself, and public methods of a class."""
    methods = [each for each in target.members.values() if each.is_function]
    public = [each for each in methods if each.name == "__call__" or not each.name.startswith("_")]
    return [each.path for each in (target, *public) if not each.has_docstring]


def directive(path: str, **options: str) -> str:
    """A block that mkdocstrings fills in."""
    return "\n".join(
        [f"::: {path}", "    options:", *(f"      {name}: {value}" for name, value in options.items()), ""]
    )


def reference() -> None:
    """One page for each public module; a name is described on the page of the module nearest to its definition."""
    loader = griffe.GriffeLoader(search_paths=[str(ROOT)])
    roots = [loader.load(package) for package in PACKAGES]
    loader.resolve_aliases(external=False)
    listed = {module.path: (module, public_names(module)) for root in roots for module in public_modules(root)}
    lacking = {path for _, names in listed.values() for target in names.values() for path in undocumented(target)}
    if lacking:
        raise SystemExit(f"expected a docstring of every public name, got none of: {', '.join(sorted(lacking))}")

    exported: dict[str, list[tuple[str, str]]] = {}  # where a name is defined: the modules that export it, and how
    for path, (_, names) in listed.items():
        for name, target in names.items():
            exported.setdefault(target.path, []).append((path, name))
    home = {
        defined: max(modules, key=lambda module: (len(os.path.commonprefix([module[0], defined])), -len(module[0])))
        for defined, modules in exported.items()
    }
    index, navigation = [HEAD], {package: [] for package in PACKAGES}
    for path, (module, names) in listed.items():
        about = module.docstring.value.partition("\n")[0] if module.docstring else ""
        links = {name: f"[`{name}`][{target.path}]" for name, target in names.items()}
        elsewhere = [links[name] for name, target in names.items() if home[target.path][0] != path]
        inner = [f"[`{other}`]({other}.md)" for other in listed if other.rpartition(".")[0] == path]
        parts = [
            f"# {path}\n",
            directive(path, members="false", show_root_heading="false", show_root_toc_entry="false"),
        ]
        parts += [f"Modules: {', '.join(inner)}.\n"] if inner else []
        parts += [f"Described on other pages: {', '.join(elsewhere)}.\n"] if elsewhere else []
        for name, target in names.items():
            if home[target.path][0] == path:
                shortest, called = min(exported[target.path], key=lambda module: module[0].count("."))
                parts.append(directive(target.path, heading=f"{shortest}.{called}", toc_label=name))
        write(f"reference/{path}.md", "\n".join(parts))
        level = "##" if path in PACKAGES else "###"
        index += [f"{level} [{path}]({path}.md)\n", f"{about}\n", f"{', '.join(links.values())}\n"]
        navigation[path.partition(".")[0]].append(f"reference/{path}.md")
    write("reference/index.md", "\n".join(index))
    entry = next(entry for entry in mkdocs_gen_files.config["nav"] if "API reference" in entry)
    entry["API reference"] = ["reference/index.md", *({package: pages} for package, pages in navigation.items())]


repository_files()
reference()
