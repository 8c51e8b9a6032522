"""Checks of arguments, and files that others wrote."""
