"""`jaxfed.simulate` and `flower.serve` from flat options, so that a test names only what it varies."""

import dataclasses

import jaxfed


def arguments(**options):
    """The options, those of `jaxfed.Layout` and `jaxfed.Report` gathered in these; without a progress bar."""
    gathered = {"layout": jaxfed.Layout, "report": jaxfed.Report}
    options = {"progress": False, **options}
    for name, kind in gathered.items():
        fields = [field.name for field in dataclasses.fields(kind) if field.name in options]
        options[name] = kind(**{field: options.pop(field) for field in fields})
    return options
