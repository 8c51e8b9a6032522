"""Links of files outside docs/ that are pages of the site as well: README, CHANGELOG and their like."""

import posixpath
import re

#: Files of the repository, and where they lie in the site.
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/README.md": "benchmarks/notes.md",
}
#: A picture of another host, such as a badge: the site shows its words.
REMOTE = re.compile(r"!\[([^\]]*)\]\(https?://[^)]*\)")
LINK = re.compile(r"(\]\()([^)\s#:]+)((?:#[^)\s]*)?\))")


def moved(text: str, source: str, place: str) -> str:
    """A page's Markdown with its relative links mended.

    Args:
        text: of the file ``source`` of the repository.
        source: its path, from the repository's root.
        place: where it lies in the site.
    """

    def mended(link: re.Match[str]) -> str:
        before, path, after = link.groups()
        inside = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        target = PAGES.get(inside, inside.removeprefix("docs/"))
        return before + posixpath.relpath(target, posixpath.dirname(place) or ".") + after

    return LINK.sub(mended, REMOTE.sub(r"\1", text))
