"""Checks of arguments, and reading files of other programs."""

__all__: list[str] = []
