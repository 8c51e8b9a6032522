"""Checks of arguments, and reading files of other programs."""

from jaxspec.core.arguments import whole, whole_numbers
from jaxspec.core.files import read_json, reading

__all__ = ["read_json", "reading", "whole", "whole_numbers"]
