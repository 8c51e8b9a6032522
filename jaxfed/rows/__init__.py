"""Where clients' rows are kept between the rounds that they take part in: on the mesh, in host memory or on disk.

A new place is a new `Store`: a static value whose `engine(start)` returns what plays the rounds. Rows outside the mesh
need a `Population` (read rows, write rows, and what a checkpoint holds), which `StagedEngine` plays.
"""

from jaxfed.rows._population import DiskStore, HostStore
from jaxfed.rows._staged import StagedEngine
from jaxfed.rows.device import DeviceStore
from jaxfed.rows.engine import Engine, Population, Start, Store

__all__ = ["DeviceStore", "DiskStore", "Engine", "HostStore", "Population", "StagedEngine", "Start", "Store"]
