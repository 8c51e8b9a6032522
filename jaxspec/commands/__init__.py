"""The commands of ``python -m jaxspec``, one module each."""
