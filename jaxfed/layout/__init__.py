"""Plans: schedules of a cohort over time and devices."""

from jaxfed.layout import plans
from jaxfed.layout.plans import chunked, map, sharded, vmap

__all__ = [
    "chunked",
    "map",
    "plans",
    "sharded",
    "vmap",
]
