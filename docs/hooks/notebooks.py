"""Notebooks as pages: their cells and committed outputs, nothing is run."""

import base64
import json
import re
from pathlib import Path
from typing import Any

import links

#: Kinds of output that a page can show, the first of them that is there.
PICTURES = {"image/png": "png", "image/jpeg": "jpg"}


def pages(folder: Path) -> dict[str, str | bytes]:
    """Markdown of every notebook and the files of its pictures, by their places in the site."""
    made: dict[str, str | bytes] = {}
    for path in sorted(folder.glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        parts = []
        for number, cell in enumerate(cells):
            text = "".join(cell["source"])
            if cell["cell_type"] == "markdown":
                parts.append(_formulas(links.moved(text, f"notebooks/{path.name}", f"notebooks/{path.stem}.md")))
            elif cell["cell_type"] == "code":
                parts.append(_fenced(text, "python"))
                for place, output in enumerate(cell["outputs"]):
                    shown, files = _output(output, f"{path.stem}_{number}_{place}")
                    parts.append(shown)
                    made |= {f"notebooks/{name}": content for name, content in files.items()}
        made[f"notebooks/{path.stem}.md"] = "\n\n".join(part for part in parts if part) + "\n"
    return made


def _formulas(text: str) -> str:
    """LaTeX between dollars as MathML, which browsers show without a library."""
    if "$" not in text:
        return text
    from latex2mathml.converter import convert

    blocks = re.compile(r"\$\$(.+?)\$\$", re.DOTALL)
    text = blocks.sub(lambda found: f"\n\n{convert(found[1], display='block')}\n\n", text)
    return re.sub(r"\$(.+?)\$", lambda found: convert(found[1]), text, flags=re.DOTALL)


def _output(output: dict[str, Any], name: str) -> tuple[str, dict[str, bytes]]:
    data = output.get("data", {})
    for kind, ending in PICTURES.items():
        if kind in data:
            file = f"{name}.{ending}"
            return f"![{name.replace('_', ' ')}]({file})", {file: base64.b64decode("".join(data[kind]))}
    text = "".join(output.get("text", data.get("text/plain", "")))
    return (_fenced(text, "text") if text.strip() else ""), {}


def _fenced(text: str, language: str) -> str:
    """A block whose fence is longer than any inside it."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
