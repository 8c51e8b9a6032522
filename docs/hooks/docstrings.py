"""For the reference: what griffe does not read of our docstrings by itself."""

import re
from typing import Any

import griffe
from public import comment

#: Several attributes in one item, "samples_min, samples_max: samples of a client".
SEVERAL = re.compile(r"^( +)(\w+(?:, \w+)+): (.*)$", re.MULTILINE)


class Docstrings(griffe.Extension):
    """``#:`` lines above an assignment document it; a literal block begins after ``::``, which Markdown would show."""

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        """Called with every attribute that is found."""
        if attr.docstring is None and attr.lineno and isinstance(attr.parent, griffe.Module):
            text = comment(attr.parent.lines, attr.lineno)
            if text:
                attr.docstring = griffe.Docstring(text, lineno=attr.lineno - 1, parent=attr)

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called with everything that is found."""
        if obj.docstring is not None:
            plain = obj.docstring.value.replace("::\n\n", ":\n\n")
            obj.docstring.value = SEVERAL.sub(_one_by_one, plain)


def _one_by_one(item: re.Match[str]) -> str:
    indent, names, text = item.groups()
    return "\n".join(f"{indent}{name}: {text}" for name in names.split(", "))
