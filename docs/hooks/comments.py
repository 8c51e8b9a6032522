"""For the reference: ``#:`` lines above an assignment are its docstring, as a string below it is."""

from typing import Any

import griffe
from public import comment


class Comments(griffe.Extension):
    """Reads them wherever an attribute has no docstring of its own."""

    def on_attribute_instance(self, *, node: Any, attr: griffe.Attribute, **_: Any) -> None:
        """Called by griffe with every attribute it finds."""
        if attr.docstring is None and attr.lineno and isinstance(attr.parent, griffe.Module):
            text = comment(attr.parent.lines, attr.lineno)
            if text:
                attr.docstring = griffe.Docstring(text, lineno=attr.lineno - 1, parent=attr)
