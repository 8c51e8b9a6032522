"""Where clients' rows are kept between the rounds that they take part in: on the mesh, in host memory or on disk.

A store of your own is a `Store`: a static value whose `engine(start)` returns the `Engine` that runs the rounds. For
rows outside the mesh write a `Population` (read rows, write rows, and what a checkpoint holds) for `StagedEngine`.
"""

from jaxfed.rows._population import DiskStore, HostStore
from jaxfed.rows._staged import StagedEngine
from jaxfed.rows.device import DeviceStore
from jaxfed.rows.engine import Engine, Population, Start, Store

__all__ = ["DeviceStore", "DiskStore", "Engine", "HostStore", "Population", "StagedEngine", "Start", "Store"]
