"""How the clients of a cohort lie over time and devices."""

from jaxfed.layout import plans
from jaxfed.layout.plans import chunked, map, sharded, vmap

__all__ = [
    "chunked",
    "map",
    "plans",
    "sharded",
    "vmap",
]
