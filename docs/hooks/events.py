"""What MkDocs calls: pages from files outside docs/, the reference, notebooks; and no request to another host."""

import re
import sys
from pathlib import Path
from typing import Any

import links
import reference
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import notebooks

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))
import page as figures  # noqa: E402

#: Of pages that have nothing beside them: room for the text.
ALONE = "---\nhide: [navigation]\n---\n\n"
#: What a browser fetches by itself.
FETCHED = re.compile(
    r"""<(?:script|img|iframe)[^>]*\ssrc=["']?(?:https?:)?//|<link(?![^>]*\brel=["']?(?:canonical|license))[^>]*\shref=["']?(?:https?:)?//"""
)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The pages of the reference take their places below its index."""
    try:
        written = reference.pages()
    except ValueError as error:
        raise PluginError(str(error)) from error
    for entry in config.nav or []:
        for title, page in entry.items():
            if page == reference.INDEX:
                entry[title] = reference.navigation(written)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds what is not written under docs/."""
    made: dict[str, str | bytes] = {**reference.pages(), **notebooks.pages(ROOT / "notebooks")}
    made["benchmarks/index.md"] = figures.page()
    for source, place in links.PAGES.items():
        text = links.moved((ROOT / source).read_text(encoding="utf-8"), source, place)
        made[place] = text if "/" in place else ALONE + text
    for place, content in made.items():
        files.append(File.generated(config, place, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Links of the pages under docs/ to files outside it."""
    written = page.file.generated_by is None
    return links.moved(markdown, f"docs/{page.file.src_uri}", page.file.src_uri) if written else markdown


def on_post_build(config: MkDocsConfig) -> None:
    """The site is whole without a network."""
    pages = sorted(Path(config.site_dir).rglob("*.html"))
    asking = [page.name for page in pages if FETCHED.search(page.read_text(encoding="utf-8"))]
    if asking:
        raise PluginError(f"expected pages that fetch nothing from elsewhere, got {', '.join(asking)}")
