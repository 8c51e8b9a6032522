"""Checks of arguments, and reading files of other programs."""
