"""The commands of `python -m jaxfed`, one a module."""
