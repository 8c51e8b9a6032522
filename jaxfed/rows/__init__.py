"""Where clients' rows lie between the rounds they are drawn in: on the mesh, in host memory or on disk."""

from jaxfed.rows._device import DeviceStore
from jaxfed.rows._population import DiskStore, HostStore, Population

__all__ = ["DeviceStore", "DiskStore", "HostStore", "Population"]
